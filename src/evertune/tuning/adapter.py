"""AdaptFormer's adapter, parallel to the MLP (Chen et al., NeurIPS 2022; SAFE spec §3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, uniform


class AdapterBlock(BlockTuning):
    """s · (dropout(ReLU(x W_down + b_down)) W_up + b_up), added beside the MLP."""

    def __init__(self, width: int, bottleneck: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        # Kaiming-uniform with a = √5 is U(±1/√fan_in)
        self.down_weight = uniform((bottleneck, width), 1 / math.sqrt(width), generator)
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up_weight = nn.Parameter(torch.zeros(width, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(width))

    def beside_mlp(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.down_weight, self.down_bias))
        if self.training and self.dropout:
            h = F.dropout(h, self.dropout)
        # The scale goes to the small matrix, not to the tokens.
        return F.linear(h, self.up_weight * self.scale, self.up_bias * self.scale)

    def writes(self) -> list[Tensor]:
        return [self.up_weight]


class Adapter(Tuning):
    """A bottleneck beside every MLP; equals the plain model until trained (W_up and the biases start at zero).

    Parameters
    ----------
    bottleneck
        Hidden units per block.
    scale
        s, fixed.
    dropout
        On the hidden units, in training only.
    """

    kind = "adapter"
    spares_attention = True

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        bottleneck: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(shape, blocks, scale=scale)
        if bottleneck < 1:
            raise ConfigError(f"adapter: bottleneck={bottleneck} must be at least 1.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"adapter: dropout={dropout} must be at least 0 and below 1.")
        for i in self.indices:
            self.blocks[str(i)] = AdapterBlock(shape.width, bottleneck, scale, dropout, generator)
