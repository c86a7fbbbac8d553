"""What is trained beside the frozen weights: a :class:`Tuning` per backbone pass, a :class:`BlockTuning` per block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from evertune.backbones import Shape, digest
from evertune.errors import ConfigError


class BlockTuning(nn.Module):
    """A tuning's part in one block. Every site is the identity until a subclass says otherwise.

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

    def attended(self, y: Tensor) -> Tensor:
        """The attention's output before its residual."""
        return y

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """After the attention's residual: the stream that enters the MLP, and the one its output is added to."""
        return x, x

    def beside_mlp(self, x: Tensor) -> Tensor | None:
        """Added parallel to the MLP; ``x`` is the un-normalised stream after the attention's residual."""
        return None


class Tuning(nn.Module):
    """Steers one pass of a frozen backbone. The plain pre-trained model is the absence of a tuning (``None``).

    Parameters
    ----------
    shape
        Of the backbone.
    blocks
        Indices of the blocks to steer.
    **settings
        Constants that the features depend on and that no parameter shows; they enter the fingerprint.

    Raises
    ------
    ConfigError
        No blocks, or some that the backbone has not.
    """

    prepended: int = 0
    tunes_embedding: bool = False
    kind: ClassVar[str] = ""

    def __init__(self, shape: Shape, blocks: Iterable[int], **settings: float) -> None:
        super().__init__()
        self.shape = shape
        self.settings = settings
        self.indices = tuple(sorted(set(blocks)))
        outside = [i for i in self.indices if not 0 <= i < shape.depth]
        if outside or not self.indices:
            raise ConfigError(
                f"{self.kind}: blocks {outside or '(none)'} asked for, the backbone has blocks 0 to {shape.depth - 1}."
            )
        self.blocks = nn.ModuleDict()

    def block(self, index: int) -> BlockTuning | None:
        name = str(index)
        return cast(BlockTuning, self.blocks[name]) if name in self.blocks else None

    def normed(self, name: str, y: Tensor) -> Tensor:
        """After the patch embedding (``patch_embed``) or the last LayerNorm (``norm``)."""
        return y

    @property
    def first_block(self) -> int:
        """The first block this tuning touches; everything before it is the plain model."""
        return self.indices[0]

    def freeze(self) -> Self:
        """No more gradients and no more dropout, for good."""
        self.requires_grad_(False)
        return self.eval()

    @property
    def frozen(self) -> bool:
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str:
        """A digest of the values: equal for equal tunings. Made anew at each call, at the cost of reading them once."""
        described = f"{self.kind}{self.indices}{self.settings}{digest(self.state_dict())}"
        return hashlib.sha256(described.encode()).hexdigest()


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from U(−bound, bound)."""
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)


def normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from N(mean, std²)."""
    return nn.Parameter(torch.randn(shape, generator=generator) * std + mean)
