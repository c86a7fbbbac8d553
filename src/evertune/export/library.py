"""The library's own model beneath a backbone: what others load, and whether it gives the learner's features."""

from __future__ import annotations

import copy
from inspect import signature
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from evertune.backbones import Backbone, HFEncoder, TimmViT
from evertune.backbones.hf_encoder import FAMILIES
from evertune.errors import ExportError
from evertune.tuning import Tuning

TOLERANCE = 1e-5
"""How far an entry of a feature may be off, as a part of the largest there is (or of 1)."""
PROBES = 4
"""Images or texts on which an export is compared with the learner."""
LONGEST = 24
"""Tokens of the longest of those texts."""


def library_model(backbone: Backbone) -> nn.Module:
    """A copy of the timm or transformers model, to be changed at will: the backbone itself is shared and never is.

    Raises
    ------
    ExportError
        The backbone is neither of timm nor of transformers.
    """
    if isinstance(backbone, TimmViT):
        return copy.deepcopy(backbone.vit)
    if isinstance(backbone, HFEncoder):
        return copy.deepcopy(backbone.model)
    raise ExportError(f"{backbone.identity.name} is no model of timm or transformers: there is nothing to load into.")


def building_lines(backbone: Backbone) -> str:
    """Lines of Python that make ``model``, the library's own, as others have it."""
    name = backbone.identity.name.removeprefix("timm:")
    if isinstance(backbone, TimmViT):
        size = backbone.identity.input_size
        if name == "embedded":
            return f'from evertune import load_backbone\n\nmodel = load_backbone("embedded", input_size={size}).vit'
        made = f"timm.create_model({name!r}, pretrained=True, num_classes=0, img_size={size})"
        return f"import timm\n\nmodel = {made}.eval()"
    if not name.startswith("hf:"):
        return f"from evertune import load_backbone\n\nmodel = load_backbone({name!r}).model"
    encoder = cast(HFEncoder, backbone).model
    pooler = ", add_pooling_layer=False" if "add_pooling_layer" in signature(type(encoder)).parameters else ""
    made = f"AutoModel.from_pretrained({public_name(backbone)!r}{pooler})"
    return f"from transformers import AutoModel\n\nmodel = {made}.eval()"


def public_name(backbone: Backbone) -> str:
    """What the weights are called, without the folders of the machine they lie on."""
    name = backbone.identity.name
    if not name.startswith("hf:"):
        return name.removeprefix("timm:")
    source = name.removeprefix("hf:")
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() or folder.is_absolute() else source


def probes(backbone: Backbone) -> Tensor:
    """Random images [B, 3, S, S] in [0, 1], or token ids [B, N] of texts of different lengths, padded behind."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(backbone, TimmViT):
        size = backbone.identity.input_size
        return torch.rand(PROBES, 3, size, size, generator=generator).to(backbone.device)
    tokenizer = cast(HFEncoder, backbone).tokenizer
    longest, padding = min(backbone.shape.tokens, LONGEST), int(tokenizer.pad_token_id)
    ids = torch.randint(len(tokenizer), (PROBES, longest), generator=generator)
    ids[ids == padding] = (padding + 1) % len(tokenizer)
    lengths = torch.linspace(3, longest, PROBES).long()
    return ids.masked_fill(torch.arange(longest) >= lengths[:, None], padding).to(backbone.device)


def library_feature(backbone: Backbone, model: nn.Module, inputs: Tensor) -> Tensor:
    """The feature [B, L] that ``model``, called as its library has it called, gives of what the backbone takes."""
    if isinstance(backbone, TimmViT):
        return cast(Tensor, model((inputs - backbone.mean) / backbone.std))
    encoder = cast(HFEncoder, backbone)
    mask = encoder.mask(inputs)
    tokens: Tensor = model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
    if encoder.reads_cls:
        return tokens[:, 0]
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@torch.no_grad()
def require_equal(backbone: Backbone, tuning: Tuning, model: nn.Module, what: str) -> float:
    """The largest difference between features [B, L] of ``model`` and the learner's own under ``tuning``, in float32.

    Raises
    ------
    ExportError
        It is larger than rounding makes it.
    """
    inputs, training = probes(backbone), tuning.training
    expected = backbone(inputs, tuning.eval())
    tuning.train(training)
    difference = float((library_feature(backbone, model.eval(), inputs) - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ExportError(
            f"{what}, loaded back, gives features that differ from the learner's by {difference:.2g}, and rounding by "
            f"{allowed:.2g} at most: nothing was written. Please report this with the versions of the libraries."
        )
    return difference


def attention_maps(backbone: Backbone, model: nn.Module) -> dict[tuple[int, str], tuple[str, int]]:
    """Where ``q``, ``k`` and ``v`` of each block are in ``model``: a linear layer's name, and their first row in it.

    timm keeps the three in one layer, transformers of the BERT family in three.
    """
    if isinstance(backbone, HFEncoder):
        names = {id(module): name for name, module in model.named_modules()}
        blocks = FAMILIES[model.config.model_type](model)  # type: ignore[union-attr,index]
        return {(i, q): (names[id(getattr(block, q))], 0) for i, block in enumerate(blocks) for q in "qkv"}
    shape = backbone.shape
    return {(i, q): (f"blocks.{i}.attn.qkv", n * shape.width) for i in range(shape.depth) for n, q in enumerate("qkv")}
