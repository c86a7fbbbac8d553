"""Linear classifier that grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.statistics import Growing
from evertune.tuning import TRAINED


class LinearHead(Growing):
    """x Wᵀ + b: features [B, L] to logits [B, K]. Old rows are untouched when it grows."""

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}
    by_class: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0}
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def classes(self) -> int:
        return len(self.weight)

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append ``classes`` rows drawn from U(±1/√L), with zero bias."""
        width = self.weight.shape[1]
        rows = (torch.rand(classes, width, generator=generator) * 2 - 1) / math.sqrt(width)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), rows.to(self.weight)]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), self.bias.new_zeros(classes)]))

    def select(self, classes: Sequence[int]) -> LinearHead:
        """A head of its own with the values of these rows, in their order."""
        head = LinearHead(self.weight.shape[1])
        rows = torch.tensor(classes, dtype=torch.long, device=self.weight.device)
        head.weight, head.bias = nn.Parameter(self.weight.detach()[rows]), nn.Parameter(self.bias.detach()[rows])
        return head

    @torch.no_grad()
    def replace(self, classes: Sequence[int], head: LinearHead) -> None:
        """These rows get the values of ``head``'s, in its order."""
        rows = torch.tensor(classes, dtype=torch.long, device=self.weight.device)
        self.weight[rows], self.bias[rows] = head.weight, head.bias
