"""Any timm ``VisionTransformer`` as a backbone: ViT, DeiT, DeiT-III, DINOv2 with registers, CLIP, SigLIP, AugReg …

A block without a tuning is the library's own call. A tuned block is the same arithmetic over the library's own
submodules with the sites opened; a test holds the two equal for every family.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from timm.models.vision_transformer import Attention, Block, Mlp, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones.attention import attention, slow
from evertune.backbones.backbone import IDENTITY, Backbone, BlockSites, ImageIdentity, Shape, Sites, digest
from evertune.errors import BackboneError

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and standard deviation of the channels, by name: none, ImageNet's, CIFAR-100's."""


class TimmViT(Backbone):
    """A timm ``VisionTransformer`` with its classifier removed.

    Parameters
    ----------
    model
        The model at its native input size, weights loaded. It is taken over, not copied.
    name
        What the weights are called (``architecture.tag`` where timm knows them).
    input_size
        Pixels; another size than the native one resamples patch and position embedding by timm's own rule.
    preprocessing
        ``"native"``: the checkpoint's own mean and standard deviation; ``"unit"``: inputs stay in [0, 1], the habit of
        RanPAC, SAFE, APER and SimpleCIL; ``"imagenet"``, ``"cifar"``: those of that data set.

    Raises
    ------
    BackboneError
        The model is not a ``VisionTransformer``, or one of its blocks is of a kind whose inside has no sites.
    """

    identity: ImageIdentity
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, name: str, *, input_size: int | None = None, preprocessing: str = "native"
    ) -> None:
        super().__init__()
        vit = servable(model, name)
        vit.reset_classifier(0, vit.global_pool)
        weights = digest(vit.state_dict())
        native = vit.patch_embed.img_size
        native_size = int(native[0]) if native else 224
        size = native_size if input_size is None else input_size
        if size != native_size:
            patch = int(vit.patch_embed.feat_ratio())
            if size < patch or size % patch:
                fitting = max(round(size / patch), 1) * patch
                raise BackboneError(
                    f"{name}: an input of {size} px is not a multiple of its {patch} px patches; try {fitting}."
                )
            vit.set_input_size(img_size=(size, size))
        if preprocessing == "native":
            settings = getattr(vit, "pretrained_cfg", {})  # absent if the model was not made by timm.create_model
            mean, std = (tuple(float(v) for v in settings.get(key, (0.5, 0.5, 0.5))) for key in ("mean", "std"))
        elif preprocessing in NORMALISATIONS:
            mean, std = NORMALISATIONS[preprocessing]
        else:
            raise BackboneError(
                f"Preprocessing {preprocessing!r} does not exist: choose 'native' (the checkpoint's mean and std), "
                "'unit' ([0, 1]), 'imagenet' or 'cifar' (the mean and std of that data set)."
            )
        self.vit = vit
        # Subclasses may read more: a distilled DeiT averages CLS and its distillation token.
        self.reads_cls = vit.global_pool == "token" and type(vit) is VisionTransformer
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        first = cast(Block, vit.blocks[0])
        self.shape = Shape(
            width=vit.embed_dim,
            depth=len(vit.blocks),
            heads=cast(Attention, first.attn).num_heads,
            hidden=cast(nn.Linear, cast(Mlp, first.mlp).fc1).out_features,
            tokens=vit.patch_embed.num_patches + vit.num_prefix_tokens,
        )
        self.identity = ImageIdentity(name, weights, preprocessing, mean, std, size)
        self.freeze()

    @property
    def cls_position(self) -> Tensor:
        positions, vit = self.vit.pos_embed, self.vit
        added = positions is not None and vit.cls_token is not None and not vit.no_embed_class
        if not added or not isinstance(vit.norm_pre, nn.Identity):
            return super().cls_position
        return cast(Tensor, positions)[0, 0]

    def embed(self, inputs: Tensor, tuning: Sites | None = None) -> Tensor:
        size = self.identity.input_size
        if inputs.ndim != 4 or inputs.shape[1:] != (3, size, size):
            raise BackboneError(
                f"{self.identity.name} takes images of shape [B, 3, {size}, {size}], got {list(inputs.shape)}: resize "
                "them, or load the backbone with another input_size."
            )
        if self.identity.preprocessing != "unit":
            inputs = (inputs - self.mean) / self.std
        x = self.vit.patch_embed(inputs)
        if tuning is not None:
            x = tuning.normed("patch_embed", x)
        return cast(Tensor, self.vit.norm_pre(self.vit._pos_embed(x)))

    def run(
        self, tokens: Tensor, tuning: Sites | None, start: float, stop: float, mask: Tensor | None = None
    ) -> Tensor:
        prepended = tuning.prepended if tuning is not None else 0
        reads_cls = self.reads_cls and not (tuning is not None and tuning.reads_prompts)
        for i in range(math.floor(start), math.ceil(stop)):
            sites = tuning.block(i) if tuning is not None else None
            cls = prepended if reads_cls and i == self.shape.depth - 1 else None
            block = cast(Block, self.vit.blocks[i])
            attends, feeds = start <= i, stop > i + 0.5
            if attends and feeds and sites is None and cls is None and not slow(tokens):
                tokens = block(tokens)
                continue
            tokens = _attend(block, tokens, sites or IDENTITY, cls) if attends else tokens
            tokens = _feed(block, tokens, sites or IDENTITY, cls) if feeds else tokens
        return tokens

    def read(self, tokens: Tensor, tuning: Sites | None, mask: Tensor | None = None) -> Tensor:
        if tuning is not None and tuning.reads_prompts:
            prompts = tuning.normed("norm", self.vit.norm(tokens[:, : tuning.prepended]))
            return cast(Tensor, self.vit.fc_norm(prompts.mean(1)))
        if tuning is not None and not self.reads_cls:
            tokens = tokens[:, tuning.prepended : tokens.shape[1] - tuning.appended]
        x = self.vit.norm(tokens)
        if tuning is not None:
            x = tuning.normed("norm", x)
        return self.vit.forward_head(x, pre_logits=True)

    def weight(self, block: int, name: str) -> Tensor:
        if not 0 <= block < self.shape.depth or name not in ("q", "k", "v", "o", "fc1", "fc2"):
            raise BackboneError(
                f"{self.identity.name} has no weight {name!r} in block {block}: it has q, k, v, o, fc1 and fc2 in "
                f"blocks 0 to {self.shape.depth - 1}."
            )
        inside = cast(Block, self.vit.blocks[block])
        attn, mlp = cast(Attention, inside.attn), cast(Mlp, inside.mlp)
        if name in ("q", "k", "v"):
            return attn.qkv.weight.view(3, attn.num_heads * attn.head_dim, -1)["qkv".index(name)]
        return {"o": attn.proj, "fc1": mlp.fc1, "fc2": mlp.fc2}[name].weight


def _attend(block: Block, x: Tensor, sites: BlockSites, cls: int | None) -> Tensor:
    """The first half of a pre-norm block with its sites. With ``cls`` only that token is answered: keys and values of
    all tokens, but one query and output projection; nothing after the attention mixes tokens, so that is exact."""
    x = sites.tokens_in(x)
    h = sites.normed("norm1", block.norm1(x))
    context = sites.context()
    beyond = None if context is None else block.norm1(context)
    y = sites.attended(_attention(cast(Attention, block.attn), h, sites, cls, beyond))
    return cast(Tensor, (x if cls is None else x[:, cls : cls + 1]) + block.ls1(y))


def _feed(block: Block, x: Tensor, sites: BlockSites, cls: int | None) -> Tensor:
    """The second half, on what :func:`_attend` gave."""
    into_mlp, residual = sites.between(x) if cls is None else (x, x)
    y = block.ls2(_mlp(cast(Mlp, block.mlp), sites.normed("norm2", block.norm2(into_mlp)), sites))
    beside = sites.beside_mlp(x)
    out = residual + y if beside is None else residual + y + beside
    return sites.tokens_out(out) if cls is None else out


def _attention(attn: Attention, x: Tensor, sites: BlockSites, cls: int | None, context: Tensor | None = None) -> Tensor:
    batch, _, _ = x.shape
    inner = attn.num_heads * attn.head_dim
    asked = x if cls is None else x[:, cls : cls + 1]
    if cls is None:
        q, k, v = attn.qkv(x).chunk(3, dim=-1)
    else:
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q = F.linear(asked, weight[:inner], None if bias is None else bias[:inner])
        k, v = F.linear(x, weight[inner:], None if bias is None else bias[inner:]).chunk(2, dim=-1)
    q, k, v = sites.project(asked, "q", q), sites.project(x, "k", k), sites.project(x, "v", v)
    q, k, v = (t.view(batch, t.shape[1], attn.num_heads, attn.head_dim).transpose(1, 2) for t in (q, k, v))
    q, k = attn.q_norm(q), attn.k_norm(k)
    extra = sites.prefix()
    if extra is not None:  # in key and value space: [B or 1, H, P, d], after the projections and norms
        k, v = (torch.cat([p.expand(batch, -1, -1, -1), t], dim=2) for p, t in zip(extra, (k, v), strict=True))
    if context is not None:
        both = F.linear(context, attn.qkv.weight[inner:], None if attn.qkv.bias is None else attn.qkv.bias[inner:])
        keys, values = (
            t.view(1, len(context), attn.num_heads, attn.head_dim).transpose(1, 2) for t in both.chunk(2, dim=-1)
        )
        k, v = (torch.cat([t, c.expand(batch, -1, -1, -1)], dim=2) for t, c in ((k, attn.k_norm(keys)), (v, values)))
    y = attention(q, k, v).transpose(1, 2).reshape(batch, q.shape[2], inner)
    y = attn.norm(y) if hasattr(attn, "norm") else y
    return sites.project(y, "o", attn.proj(y))


def _mlp(mlp: Mlp, x: Tensor, sites: BlockSites) -> Tensor:
    h = mlp.norm(mlp.act(sites.project(x, "fc1", mlp.fc1(x))))
    return sites.project(h, "fc2", mlp.fc2(h))


def servable(model: nn.Module, name: str) -> VisionTransformer:
    """The model, if the sites can serve it; else a BackboneError that says why not."""
    if not isinstance(model, VisionTransformer):
        raise BackboneError(
            f"{name} is a {type(model).__name__}: the tuning sites are defined for timm's VisionTransformer "
            "(ViT, DeiT, DeiT-III, DINOv2, CLIP, SigLIP …). Choose one of those."
        )
    for i, block in enumerate(model.blocks):
        parts = (type(block), type(getattr(block, "attn", None)), type(getattr(block, "mlp", None)))
        if parts != (Block, Attention, Mlp):
            found = ", ".join(p.__name__ for p in parts)
            raise BackboneError(
                f"{name}: block {i} is made of ({found}), the tuning sites need timm's (Block, Attention, Mlp): its "
                "attention and MLP cannot be opened without changing what it computes."
            )
        if getattr(block.attn, "gate", None) is not None:
            raise BackboneError(f"{name}: the attention of block {i} is gated, which the tuning sites do not serve.")
    if model.global_pool == "":
        raise BackboneError(
            f"{name} pools nothing (global_pool=''): a feature per image is needed. Use 'token' or 'avg'."
        )
    return model
