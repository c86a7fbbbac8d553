"""The hybrid feature of NTK-CL (Liu et al., arXiv 2407.17120; NTK-CL spec §4.5)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.tuning.tuning import TRAINED, uniform


class HybridFusion(nn.Module):
    """m = ½ (W_v c + b_v) + c + 0.1 p for channel features c and patch features p [B, d] (4.2).

    The released module is attention of p over the one token c: its softmax is 1 whatever query and key are, and its
    dropout drops whole heads of the value.

    Parameters
    ----------
    width
        d.
    dropout
        Probability that a head of the value is dropped, in training.
    heads
        Of those; fewer where they do not divide d.
    attention
        Also hold the released query and key maps. They never act: only weight decay and the pull to the session
        before move them (T7).
    """

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}
    value_weight: nn.Parameter
    value_bias: nn.Parameter

    def __init__(
        self, width: int, generator: torch.Generator, *, dropout: float = 0.1, heads: int = 8, attention: bool = False
    ) -> None:
        super().__init__()
        self.dropout, self.heads = dropout, math.gcd(width, heads)
        bound = 1 / math.sqrt(width)
        for name in ("query", "key", "value") if attention else ("value",):
            self.register_parameter(f"{name}_weight", uniform((width, width), bound, generator))
            self.register_parameter(f"{name}_bias", uniform((width,), bound, generator))

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        value = F.linear(channel, self.value_weight, self.value_bias)
        if self.training and self.dropout:
            kept = F.dropout(value.new_ones(len(value), self.heads, 1), self.dropout)
            value = (value.view(len(value), self.heads, -1) * kept).flatten(1)
        return _mix(value, channel, patch)

    def of_means(self, channel: Tensor, patch: Tensor) -> Tensor:
        """m of mean features, without dropout: the mean of m, since m is affine in c and p."""
        value = self.value_weight
        channel, patch = channel.to(value), patch.to(value)
        return _mix(F.linear(channel, value, self.value_bias), channel, patch)


def _mix(value: Tensor, channel: Tensor, patch: Tensor) -> Tensor:
    return 0.5 * value + channel + 0.1 * patch
