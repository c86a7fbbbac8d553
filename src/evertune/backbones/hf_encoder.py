"""Text encoders of Hugging Face transformers as backbones: BERT (MiniLM is one), DistilBERT, RoBERTa and XLM-R.

Their blocks normalise after each residual. They are written down here once, over the library's own submodules and with
the sites opened; a test holds the result equal to the library's forward for every family.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones.attention import attention
from evertune.backbones.backbone import IDENTITY, Backbone, BlockSites, Shape, Sites, TextIdentity, digest
from evertune.errors import BackboneError

POOLINGS = ("mean", "cls")

PROBE = "Größe: 12,345.67 KM²—naïve “Quotes” & e-mails\tat foo_bar@x.org; 東京 ПРИВЕТ مرحبا 👍🏽 don't UNBELIEVABLY"
"""What a tokenizer makes of this belongs to its digest: case, accents, numbers, scripts, unknown signs."""


@dataclass(frozen=True)
class Parts:
    """The submodules of a block, under the names of the sites."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    norm1: nn.Module
    fc1: nn.Linear
    act: Callable[[Tensor], Tensor]
    fc2: nn.Linear
    norm2: nn.Module


def _bert(layer: Any) -> Parts:
    own, after, inner, out = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    return Parts(
        own.query, own.key, own.value, after.dense, after.LayerNorm,
        inner.dense, inner.intermediate_act_fn, out.dense, out.LayerNorm,
    )  # fmt: skip


def _distilbert(layer: Any) -> Parts:
    own, mlp = layer.attention, layer.ffn
    return Parts(
        own.q_lin, own.k_lin, own.v_lin, own.out_lin, layer.sa_layer_norm,
        mlp.lin1, mlp.activation, mlp.lin2, layer.output_layer_norm,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Any], list[Parts]]] = {
    "bert": lambda model: [_bert(layer) for layer in model.encoder.layer],
    "distilbert": lambda model: [_distilbert(layer) for layer in model.transformer.layer],
    "roberta": lambda model: [_bert(layer) for layer in model.encoder.layer],
    "xlm-roberta": lambda model: [_bert(layer) for layer in model.encoder.layer],
}
"""By ``model_type``: the blocks of a model."""


class HFEncoder(Backbone):
    """A text encoder of one of the :data:`FAMILIES`, without its pooler. Inputs are token ids [B, N], padded behind.

    The L2 normalisation at the end of many sentence-transformers is not applied: heads that need it normalise.

    Parameters
    ----------
    model
        Weights loaded. It is taken over, not copied.
    tokenizer
        The one that goes with the weights; :class:`evertune.streams.TextView` uses it.
    name
        What :func:`evertune.load_backbone` finds the weights by.
    pooling
        ``"mean"`` of the text's own tokens, as sentence-transformers do, or ``"cls"``, the first of them.
    max_length
        Tokens read at most, those the tokenizer adds included; by default as many as there are positions.

    Raises
    ------
    BackboneError
        The model is of no known family, its attention looks only back, or the length or pooling does not exist.
    """

    modality: ClassVar[str] = "text"
    identity: TextIdentity

    def __init__(
        self, model: nn.Module, tokenizer: Any, name: str, *, pooling: str = "cls", max_length: int | None = None
    ) -> None:
        super().__init__()
        config: Any = require_served(model.config, name)
        positions = require_tokenizer(tokenizer, model, name)
        length = positions if max_length is None else max_length
        if not 3 <= length <= positions:
            raise BackboneError(
                f"{name} has positions for 3 to {positions} tokens, so max_length={length} cannot be served."
            )
        if pooling not in POOLINGS:
            raise BackboneError(f"Pooling {pooling!r} does not exist: choose 'mean' or 'cls'.")
        if hasattr(model, "pooler"):
            model.pooler = None  # type: ignore[assignment]  # after the feature, and random in many checkpoints
        self.model = model.float()
        self.tokenizer = tokenizer
        self.reads_cls = pooling == "cls"
        self._padding = int(tokenizer.pad_token_id)
        # Not a module list: every part is already in the model.
        self._blocks = FAMILIES[config.model_type](model)
        first = self._blocks[0]
        self.shape = Shape(
            width=first.q.in_features,
            depth=len(self._blocks),
            heads=int(config.num_attention_heads),
            hidden=first.fc1.out_features,
            tokens=length,
            varies=True,
        )
        weights = digest(dict(model.named_parameters()))
        self.identity = TextIdentity(name, weights, describe_tokenizer(tokenizer), pooling, length)
        self.freeze()

    def mask(self, inputs: Tensor) -> Tensor:
        """True up to the last token that is no padding; a padding token inside a text is one of its words."""
        return (inputs != self._padding).flip(1).cumsum(1).flip(1) > 0

    def embed(self, inputs: Tensor, tuning: Sites | None = None) -> Tensor:
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.shape[1] > self.shape.tokens:
            raise BackboneError(
                f"{self.identity.name} takes token ids of shape [B, up to {self.shape.tokens}], got "
                f"{str(inputs.dtype).removeprefix('torch.')} of shape {list(inputs.shape)}: use its TextView."
            )
        x: Tensor = self.model.embeddings(input_ids=inputs)  # type: ignore[operator]
        return x if tuning is None else tuning.normed("patch_embed", x)

    def run(
        self, tokens: Tensor, tuning: Sites | None, start: float, stop: float, mask: Tensor | None = None
    ) -> Tensor:
        prepended = tuning.prepended if tuning is not None else 0
        reads_cls = self.reads_cls and not (tuning is not None and tuning.reads_prompts)
        for i in range(math.floor(start), math.ceil(stop)):
            sites = (tuning.block(i) if tuning is not None else None) or IDENTITY
            cls = prepended if reads_cls and i == self.shape.depth - 1 else None
            if start <= i:
                tokens = self._attend(self._blocks[i], tokens, sites, cls, mask, in_front=prepended > 0)
            if stop > i + 0.5:
                tokens = _feed(self._blocks[i], tokens, sites, cls)
        return tokens

    def read(self, tokens: Tensor, tuning: Sites | None, mask: Tensor | None = None) -> Tensor:
        if tuning is not None and tuning.reads_prompts:
            return tuning.normed("norm", tokens[:, : tuning.prepended]).mean(1)
        if tuning is not None:
            if not self.reads_cls:
                tokens = tokens[:, tuning.prepended : tokens.shape[1] - tuning.appended]
            tokens = tuning.normed("norm", tokens)
        if self.reads_cls:
            return tokens[:, 0]
        if mask is None:
            return tokens.mean(1)
        real = mask[..., None].to(tokens.dtype)
        return (tokens * real).sum(1) / real.sum(1)

    def weight(self, block: int, name: str) -> Tensor:
        if not 0 <= block < self.shape.depth or name not in ("q", "k", "v", "o", "fc1", "fc2"):
            raise BackboneError(
                f"{self.identity.name} has no weight {name!r} in block {block}: it has q, k, v, o, fc1 and fc2 in "
                f"blocks 0 to {self.shape.depth - 1}."
            )
        weight: Tensor = getattr(self._blocks[block], name).weight
        return weight

    def _attend(
        self, block: Parts, x: Tensor, sites: BlockSites, cls: int | None, mask: Tensor | None, *, in_front: bool
    ) -> Tensor:
        """The first half of a post-norm block with its sites. With ``cls`` only that token is answered."""
        x = sites.tokens_in(x)
        asked = x if cls is None else x[:, cls : cls + 1]
        q = self._by_head(sites.project(asked, "q", block.q(asked)))
        k = self._by_head(sites.project(x, "k", block.k(x)))
        v = self._by_head(sites.project(x, "v", block.v(x)))
        prefix, context = sites.prefix(), sites.context()
        if prefix is not None:
            k, v = (torch.cat([p.expand(x.shape[0], -1, -1, -1), t], 2) for p, t in zip(prefix, (k, v), strict=True))
        if context is not None:  # no norm stands in front of the maps here
            more = (self._by_head(f(context)[None]).expand(x.shape[0], -1, -1, -1) for f in (block.k, block.v))
            k, v = (torch.cat([t, c], 2) for t, c in zip((k, v), more, strict=True))
        if mask is not None:  # what a tuning adds is always seen
            tokens = x.shape[1] - mask.shape[1]
            before = (tokens if in_front else 0) + (0 if prefix is None else prefix[0].shape[2])
            mask = F.pad(mask, (before, k.shape[2] - mask.shape[1] - before), value=True)
        y = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        y = sites.attended(sites.project(y, "o", block.o(y)))
        return sites.normed("norm1", block.norm1(asked + y))

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, H, N, d]."""
        return x.reshape(*x.shape[:2], self.shape.heads, -1).transpose(1, 2)


def _feed(block: Parts, x: Tensor, sites: BlockSites, cls: int | None) -> Tensor:
    """The second half, on what the first gave: the stream after the attention's residual and its norm."""
    into_mlp, residual = sites.between(x) if cls is None else (x, x)
    h = block.act(sites.project(into_mlp, "fc1", block.fc1(into_mlp)))
    y = sites.project(h, "fc2", block.fc2(h))
    beside = sites.beside_mlp(x)
    out = sites.normed("norm2", block.norm2(residual + y if beside is None else residual + y + beside))
    return sites.tokens_out(out) if cls is None else out


def require_served(config: Any, name: str) -> Any:
    """The configuration, if a model of it can be served; else a BackboneError that says why not."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise BackboneError(
            f"{name} is of the kind {kind!r}; the tuning sites of texts are defined for {', '.join(FAMILIES)}. Choose "
            "a model of one of these families."
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise BackboneError(f"{name} is set up as a decoder: an encoder, whose tokens see the whole text, is needed.")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise BackboneError(f"{name} has {config.position_embedding_type} positions; only absolute ones are served.")
    return config


def require_tokenizer(tokenizer: Any, model: Any, name: str) -> int:
    """How many tokens the model has positions for; BackboneError if the tokenizer does not belong to it."""
    table, words = model.embeddings.position_embeddings, model.embeddings.word_embeddings.num_embeddings
    if tokenizer.pad_token_id is None:
        raise BackboneError(f"The tokenizer of {name} has no padding token, so texts cannot be put in one batch.")
    if len(tokenizer) > words:
        raise BackboneError(
            f"The tokenizer of {name} knows {len(tokenizer)} tokens, the model {words}: they do not belong together."
        )
    if table.padding_idx is None:
        return int(table.num_embeddings)
    if table.padding_idx != tokenizer.pad_token_id:  # this family counts positions from the padding token's id
        raise BackboneError(
            f"{name} pads with token {table.padding_idx}, its tokenizer with {tokenizer.pad_token_id}: they do not "
            "belong together."
        )
    return int(table.num_embeddings) - int(table.padding_idx) - 1


def describe_tokenizer(tokenizer: Any) -> str:
    """sha256 over the vocabulary and over the tokens of a probe: the same whatever release of a library made it."""
    made = tokenizer(PROBE, truncation=False, padding=False, verbose=False)["input_ids"]
    known = sorted((str(token), int(number)) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([known, made, tokenizer.pad_token_id]).encode()).hexdigest()
