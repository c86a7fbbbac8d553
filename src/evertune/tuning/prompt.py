"""Prompt tuning with tokens that stay: each tuned block puts its own in front (HiDe-PET spec §4.4, ProT)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, per_sample, uniform


class KeptPrompts(BlockTuning):
    """Prompts [p, D], or [B, p, D], in front of all tokens that enter the block."""

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.prompts = prompts

    @classmethod
    def mixed(cls, blocks: Sequence[Self], rows: Tensor) -> Self:
        return cls(per_sample([block.prompts for block in blocks], rows))

    def tokens_in(self, x: Tensor) -> Tensor:
        return torch.cat([self.prompts.expand(x.shape[0], -1, -1), x], dim=1)


class Prompt(Tuning):
    """Learned tokens at the beginning of the sequence, more with every tuned block; CLS moves behind them.

    Unlike :class:`VPT` none is dropped before the feature is read. It starts away from the plain model.

    Parameters
    ----------
    length
        p, tokens per tuned block.
    bound
        Of the uniform draw; 1 is HiDe-PET's.
    """

    kind = "prompt"
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
            raise ConfigError(f"prompt: length={length} must be at least 1.")
        if not 0 < bound < math.inf:
            raise ConfigError(f"prompt: bound={bound} must be above 0 and finite: equal prompts would stay equal.")
        self.prepended = length * len(self.indices)
        for i in self.indices:
            self.blocks[str(i)] = KeptPrompts(uniform((length, shape.width), bound, generator))
