"""The sequential adapter behind the attention (Houlsby et al., ICML 2019; HiDe-PET spec §4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, add_product, normal, per_sample


class SequentialAdapterBlock(BlockTuning):
    """o + s · (ReLU(o W_down + b_down) W_up + b_up) on the attention's output o, before its residual.

    W_down is [D, r], b_down [r], W_up [r, D], b_up [D], or one of each per sample.
    """

    def __init__(
        self, down_weight: Tensor, down_bias: Tensor, up_weight: Tensor, up_bias: Tensor, scale: float
    ) -> None:
        super().__init__()
        self.down_weight, self.down_bias = down_weight, down_bias
        self.up_weight, self.up_bias = up_weight, up_bias
        self.scale = scale

    @classmethod
    def mixed(cls, blocks: Sequence[Self], rows: Tensor) -> Self:
        return cls(
            per_sample([block.down_weight for block in blocks], rows),
            per_sample([block.down_bias for block in blocks], rows),
            per_sample([block.up_weight for block in blocks], rows),
            per_sample([block.up_bias for block in blocks], rows),
            blocks[0].scale,
        )

    def attended(self, y: Tensor) -> Tensor:
        # A bias [r] or [B, r] becomes [1, r] or [B, 1, r]: the same for all tokens.
        h = F.relu(y @ self.down_weight + self.down_bias.unsqueeze(-2))
        return add_product(y, h, self.up_weight, self.scale) + self.scale * self.up_bias.unsqueeze(-2)

    def writes(self) -> list[Tensor]:
        return [self.up_weight.mT]


class SequentialAdapter(Tuning):
    """A bottleneck behind every attention; equals the plain model until trained (W_up and the biases start at zero).

    Parameters
    ----------
    bottleneck
        r, hidden units per block.
    scale
        s, fixed.
    init
        Standard deviation of the normal draw of W_down: ``"wide"`` is 1/√(3r), which HiDe-PET's rates are tuned to;
        ``"usual"`` is 1/√(3D), by the number of inputs.
    """

    kind = "sequential_adapter"
    mixes = True

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        bottleneck: int = 5,
        scale: float = 1.0,
        init: str = "wide",
    ) -> None:
        super().__init__(shape, blocks, scale=scale)
        if bottleneck < 1:
            raise ConfigError(f"sequential_adapter: bottleneck={bottleneck} must be at least 1.")
        if init not in ("wide", "usual"):
            raise ConfigError(
                f"sequential_adapter: init {init!r} does not exist; choose 'wide' (1/√(3r)) or 'usual' (1/√(3D))."
            )
        std = 1 / math.sqrt(3 * (bottleneck if init == "wide" else shape.width))
        for i in self.indices:
            self.blocks[str(i)] = SequentialAdapterBlock(
                normal((shape.width, bottleneck), 0.0, std, generator),
                nn.Parameter(torch.zeros(bottleneck)),
                nn.Parameter(torch.zeros(bottleneck, shape.width)),
                nn.Parameter(torch.zeros(shape.width)),
                scale,
            )
