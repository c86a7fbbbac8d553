"""What is trained beside the frozen weights: a :class:`Tuning` per backbone pass, a :class:`BlockTuning` per block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from evertune.backbones import BlockSites, Shape, digest
from evertune.errors import ConfigError


class BlockTuning(BlockSites, nn.Module):
    """A tuning's part in one block: trainable parameters, and some of the sites overridden."""


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
