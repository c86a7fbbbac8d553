"""The frozen transformer: an input to tokens to blocks to one feature, and the sites where a tuning may steer it."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes a tuning needs to know: ``tokens`` counts everything the first block sees (CLS, registers, patches).

    Where their number ``varies`` from batch to batch, as with texts, it is the most there can be.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    tokens: int
    varies: bool = False


@dataclass(frozen=True)
class Identity:
    """What a number obtained with a backbone depends on.

    ``weights`` is the sha256 of the pre-trained tensors before any resampling, without classifier or pooler.
    """

    name: str
    weights: str

    @property
    def extent(self) -> str:
        """How much of an input is read, for people."""
        return "any size"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ImageIdentity(Identity):
    """``mean`` and ``std`` are applied to inputs in [0, 1]; ``input_size`` is in pixels."""

    preprocessing: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int

    @property
    def extent(self) -> str:
        return f"{self.input_size} px"


@dataclass(frozen=True)
class TextIdentity(Identity):
    """``tokenizer`` is a digest of what it does; ``pooling`` is "mean" or "cls"; ``max_length`` counts tokens."""

    tokenizer: str
    pooling: str
    max_length: int

    @property
    def extent(self) -> str:
        return f"up to {self.max_length} tokens"


class BlockSites:
    """The places in one block where a tuning may act. Every site is the identity until a subclass says otherwise.

    In the last block of a backbone whose feature is CLS only that token is answered, so ``tokens_out`` and ``between``
    are not called there: nothing after the attention of the last block reaches CLS from another token.
    """

    def tokens_in(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] entering the block; may add some."""
        return x

    def tokens_out(self, x: Tensor) -> Tensor:
        """Tokens leaving the block; may drop some."""
        return x

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        """After the linear maps ``q k v o fc1 fc2``: ``x`` went in, ``y`` came out."""
        return y

    def normed(self, name: str, y: Tensor) -> Tensor:
        """After ``norm1`` or ``norm2``."""
        return y

    def prefix(self) -> tuple[Tensor, Tensor] | None:
        """Extra keys and values [B or 1, H, P, d], put in front, in the space after the projections."""
        return None

    def context(self) -> Tensor | None:
        """Tokens [P, D], the same for every sample, that the block's attention reads but does not answer.

        They pass the block's own first norm and its key and value maps. It is what appending tokens on the way in and
        dropping them on the way out computes, without carrying them through queries, output map and MLP.
        """
        return None

    def attended(self, y: Tensor) -> Tensor:
        """The attention's output before its residual."""
        return y

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """After the attention's residual: the stream that enters the MLP, and the one its output is added to."""
        return x, x

    def beside_mlp(self, x: Tensor) -> Tensor | None:
        """Added parallel to the MLP; ``x`` is the un-normalised stream after the attention's residual."""
        return None


IDENTITY = BlockSites()
"""A block that nothing steers."""


class Sites(Protocol):
    """What one backbone pass asks of a tuning."""

    prepended: int
    """Tokens in front of CLS that are still there after the last block (0 unless prompts are kept)."""
    appended: int
    """Tokens behind all others that are still there after the last block."""
    reads_prompts: bool
    """Whether the feature is the mean of the prepended tokens after the last norm, instead of the backbone's own."""

    def block(self, index: int) -> BlockSites | None: ...
    def normed(self, name: str, y: Tensor) -> Tensor: ...


class Backbone(nn.Module, ABC):
    """A frozen pre-trained transformer; ``backbone(inputs, tuning)`` is the feature of each image or text.

    It owns no trainable parameter, is always in evaluation mode, and is never copied: every learner is this one object
    called with another tuning.
    """

    modality: ClassVar[str] = "image"
    """What it reads: ``"image"`` or ``"text"``."""
    shape: Shape
    identity: Identity

    def freeze(self) -> Self:
        self.requires_grad_(False)
        return self.train(False)

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever is asked: a frozen model has no training behaviour."""
        return super().train(False)

    @property
    def cls_position(self) -> Tensor:
        """[D], the position that is added to CLS as the last step before the first block; zeros where none is, as in
        text encoders, which normalise the sum."""
        return torch.zeros(self.shape.width, device=self.device)

    def mask(self, inputs: Tensor) -> Tensor | None:
        """Which tokens of each input are real and no padding, bool [B, N]; None where all are, as in images."""
        return None

    @abstractmethod
    def embed(self, inputs: Tensor, tuning: Sites | None = None) -> Tensor:
        """Images [B, 3, S, S] in [0, 1], or token ids [B, N], to tokens [B, N, D] as the first block sees them."""

    @abstractmethod
    def run(
        self, tokens: Tensor, tuning: Sites | None, start: float, stop: float, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, D] through blocks ``start`` to ``stop`` (exclusive); ``mask`` as :meth:`mask` gives it.

        Places count blocks: k + ½ is between the attention of block k (its residual added) and its
        MLP. Where only CLS is read afterwards, the last block answers one query per input and gives [B, 1, D].
        """

    @abstractmethod
    def read(self, tokens: Tensor, tuning: Sites | None, mask: Tensor | None = None) -> Tensor:
        """What the last block gave to the feature [B, L], pooled (CLS, average, attention)."""

    @abstractmethod
    def weight(self, block: int, name: str) -> Tensor:
        """The frozen linear map ``q``, ``k``, ``v``, ``o``, ``fc1`` or ``fc2`` of a block, [out, in]: a view.

        Raises
        ------
        BackboneError
            There is no such block or map.
        """

    def forward(self, inputs: Tensor, tuning: Sites | None = None) -> Tensor:
        """Images [B, 3, S, S] in [0, 1], or token ids [B, N], to features [B, L]."""
        mask = self.mask(inputs)
        tokens = self.run(self.embed(inputs, tuning), tuning, 0, self.shape.depth, mask)
        return self.read(tokens, tuning, mask)


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors: names, shapes and float32 values, independent of order and of how they were stored.

    >>> import torch
    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2, dtype=torch.float16)})
    True
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return total.hexdigest()
