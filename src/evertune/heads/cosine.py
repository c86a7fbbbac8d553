"""Cosine classifier with one learnable scale (SAFE spec §1, §6.2)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.statistics import Growing
from evertune.tuning import TRAINED


def cosine_logits(x: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """σ · cos(x, w): features [B, L] and rows [K, L] to logits [B, K]."""
    return sigma * F.normalize(x, dim=1) @ F.normalize(weight, dim=1).T


class CosineHead(Growing):
    """σ · cos(x, w_c): features [B, L] to logits [B, K]. Grows by rows."""

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}
    by_class: ClassVar[dict[str, int]] = {"weight": 0}
    weight: nn.Parameter
    sigma: nn.Parameter

    def __init__(self, width: int, sigma: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.sigma = nn.Parameter(torch.tensor(float(sigma)))

    def forward(self, x: Tensor) -> Tensor:
        return cosine_logits(x, self.weight, self.sigma)

    @property
    def classes(self) -> int:
        return len(self.weight)

    def grow(self, rows: Tensor) -> None:
        """Append ``rows`` [C, L] for new classes.

        Rows of zeros are legal and harmful: the gradient of w/‖w‖ at zero is 10¹² times too long, so the first step
        throws the row to a norm of 10¹⁰ and its direction never changes again (SAFE spec T1). Imprint, or draw.
        """
        rows = rows.to(self.weight)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), rows]), requires_grad=self.weight.requires_grad)

    def draw(self, classes: int, generator: torch.Generator) -> None:
        """Append ``classes`` rows drawn from U(±1/√L)."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        self.grow((torch.rand(classes, self.weight.shape[1], generator=generator) * 2 - 1) * bound)

    def clear(self, sigma: float) -> None:
        """No class any more, and the scale ``sigma``: for the classes of another task alone."""
        self.weight = nn.Parameter(self.weight.new_zeros(0, self.weight.shape[1]))
        self.sigma = nn.Parameter(self.sigma.new_tensor(sigma))

    def imprint(self, means: Tensor) -> None:
        """Append rows along ``means`` [C, L], as long as the present rows are on average (D2)."""
        length = self.weight.detach().norm(dim=1).mean() if len(self.weight) else 1.0
        self.grow(F.normalize(means.to(self.weight), dim=1) * length)
