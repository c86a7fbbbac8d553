"""The router head of HiDe-Prompt: a residual block before a classifier that grows (HiDe-PET spec §9)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.heads.linear import LinearHead
from evertune.tuning import TRAINED


class MLPHead(nn.Module):
    """Linear(LN(x + W₂ LN(GELU(W₁ x)))): features [B, L] to logits [B, K], with 2L hidden units.

    The block is drawn when the first classes come, so that all of it comes from one generator.
    """

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.widen, self.narrow, self.out = LinearHead(width), LinearHead(2 * width), LinearHead(width)
        self.hidden_norm, self.norm = nn.LayerNorm(2 * width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden_norm(F.gelu(self.widen(x)))
        return cast(Tensor, self.out(self.norm(x + self.narrow(hidden))))

    @property
    def classes(self) -> int:
        return self.out.classes

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append ``classes`` rows to the classifier as :class:`LinearHead` does; the block stays once it is drawn."""
        if not self.widen.classes:
            self.widen.grow(2 * self.width, generator)
            self.narrow.grow(self.width, generator)
        self.out.grow(classes, generator)

    def drop(self, classes: Collection[int]) -> None:
        """Remove the rows of ``classes``; the block stays."""
        self.out.drop(classes)
