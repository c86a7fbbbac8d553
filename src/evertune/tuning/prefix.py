"""Prefix tuning: learned keys and values in front of those of the tokens (HiDe-PET spec §4.3, PreT)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, per_sample, uniform


class PrefixBlock(BlockTuning):
    """Keys and values [p, D], or [B, p, D], each split into heads; no projection, norm or position touches them."""

    def __init__(self, key: Tensor, value: Tensor, heads: int) -> None:
        super().__init__()
        self.key, self.value, self.heads = key, value, heads

    @classmethod
    def mixed(cls, blocks: Sequence[Self], rows: Tensor) -> Self:
        keys = per_sample([block.key for block in blocks], rows)
        values = per_sample([block.value for block in blocks], rows)
        return cls(keys, values, blocks[0].heads)

    def prefix(self) -> tuple[Tensor, Tensor]:
        return self._by_head(self.key), self._by_head(self.value)

    def _by_head(self, t: Tensor) -> Tensor:
        """[p, D] or [B, p, D] to [1 or B, H, p, d]."""
        length, width = t.shape[-2:]
        return t.view(-1, length, self.heads, width // self.heads).transpose(1, 2)


class Prefix(Tuning):
    """Keys and values that every query can attend to; it starts away from the plain model, as even zeros would.

    Parameters
    ----------
    length
        p, keys (and as many values) per block.
    bound
        Of the uniform draw; 1 is HiDe-PET's.
    """

    kind = "prefix"
    mixes = True

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        length: int = 20,
        bound: float = 1.0,
    ) -> None:
        super().__init__(shape, blocks)
        if length < 1:
            raise ConfigError(f"prefix: length={length} must be at least 1.")
        if not 0 < bound < math.inf:
            raise ConfigError(f"prefix: bound={bound} must be above 0 and finite: equal prefixes would stay equal.")
        for i in self.indices:
            key, value = (uniform((length, shape.width), bound, generator) for _ in range(2))
            self.blocks[str(i)] = PrefixBlock(key, value, shape.heads)
