"""What is trained beside the frozen weights: a :class:`Tuning` per backbone pass, a :class:`BlockTuning` per block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from evertune.backbones import BlockSites, Shape, digest
from evertune.errors import ConfigError

TRAINED = "parameters trained on the data"
"""What a module whose parameters descend on a loss keeps of the data, in words."""


class BlockTuning(BlockSites, nn.Module):
    """A tuning's part in one block: trainable parameters, and some of the sites overridden."""

    @classmethod
    def mixed(cls, blocks: Sequence[Self], rows: Tensor) -> Self:
        """One block for a batch whose sample b is steered as by ``blocks[rows[b]]``; only where :attr:`Tuning.mixes`.

        It holds no parameters but a tensor of values per sample, made by :func:`per_sample`; gradients reach the
        blocks they came from.
        """
        raise ConfigError(f"{cls.__name__} cannot steer the samples of one batch differently: pass each part alone.")

    def writes(self) -> list[Tensor]:
        """The matrices [out, r] by which a bottleneck of r writes into the stream; none where there is none."""
        return []


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

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}
    prepended: int = 0
    appended: int = 0
    reads_prompts: bool = False
    tunes_embedding: bool = False
    kind: ClassVar[str] = ""
    spares_attention: ClassVar[bool] = False
    """Whether its first block's attention is still the plain model's: it acts beside or in front of the MLP."""
    mixes: ClassVar[bool] = False
    """Whether one pass can serve samples with different tunings of this kind."""

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
        self._made: tuple[list[tuple[int, int]], str] | None = None

    def block(self, index: int) -> BlockTuning | None:
        name = str(index)
        return cast(BlockTuning, self.blocks[name]) if name in self.blocks else None

    def writes(self) -> list[Tensor]:
        """Those of all blocks, :meth:`BlockTuning.writes`."""
        return [matrix for block in self.blocks.values() for matrix in cast(BlockTuning, block).writes()]

    def normed(self, name: str, y: Tensor) -> Tensor:
        """After the patch embedding (``patch_embed``) or the last LayerNorm (``norm``)."""
        return y

    @property
    def begins(self) -> float:
        """The place from which this tuning is not the plain model, as :meth:`Backbone.run` counts places."""
        return self.indices[0] + 0.5 * self.spares_attention

    def freeze(self) -> Self:
        """No more gradients and no more dropout, for good."""
        self.requires_grad_(False)
        self.zero_grad()  # an optimiser that still has these parameters would move them by the gradient left over
        return self.eval()

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return sum(p.nbytes for p in self.parameters())

    @property
    def frozen(self) -> bool:
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    @torch.no_grad()
    def follow(self, other: Tuning, weight: float) -> None:
        """θ ← (1 − w) θ + w · θ of ``other``, a tuning like this one: a step of a moving average of it."""
        for own, value in zip(self.parameters(), other.parameters(), strict=True):
            own.lerp_(value, weight)

    def fingerprint(self) -> str:
        """A digest of the values: equal for equal tunings. Made anew only when one was changed in place or replaced."""
        versions = [(p.data_ptr(), p._version) for p in self.parameters()]
        if self._made is None or self._made[0] != versions:
            described = f"{self.kind}{self.indices}{self.settings}{digest(self.state_dict())}"
            self._made = versions, hashlib.sha256(described.encode()).hexdigest()
        return self._made[1]


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from U(−bound, bound)."""
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * bound)


def normal(shape: tuple[int, ...], mean: float, std: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from N(mean, std²)."""
    return nn.Parameter(torch.randn(shape, generator=generator) * std + mean)


def per_sample(values: Iterable[Tensor], rows: Tensor) -> Tensor:
    """[B, ...]: for sample b the value number ``rows[b]``. Differentiable."""
    stacked = torch.stack(list(values))
    return stacked.index_select(0, rows.to(stacked.device))


def add_product(y: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """y + s · x W for tokens y [B, N, out] and x [B, N, in]; W is [in, out], or [B, in, out]: one per sample.

    The sum is made inside the matrix product: y is read once and no product is stored.
    """
    if weight.ndim == 3:
        return torch.baddbmm(y, x, weight, alpha=scale)
    return torch.addmm(y.flatten(0, 1), x.flatten(0, 1), weight, alpha=scale).view_as(y)
