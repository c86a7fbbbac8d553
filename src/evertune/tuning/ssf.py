"""SSF, scaling and shifting features (Lian et al., NeurIPS 2022; SAFE spec §3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.tuning.tuning import BlockTuning, Tuning, normal


class ScaleShift(nn.Module):
    """v ⊙ γ + β, channel-wise; γ ~ N(1, std²), β ~ N(0, std²)."""

    def __init__(self, width: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.gamma = normal((width,), 1.0, std, generator)
        self.beta = normal((width,), 0.0, std, generator)

    def forward(self, v: Tensor) -> Tensor:
        return torch.addcmul(self.beta, v, self.gamma)


class SSFBlock(BlockTuning):
    """A scale and a shift after each linear map and LayerNorm of one block."""

    def __init__(self, shape: Shape, std: float, generator: torch.Generator) -> None:
        super().__init__()
        width = shape.width
        widths = {"norm1": width, "q": width, "k": width, "v": width, "o": width, "norm2": width, "fc1": shape.hidden}
        self.at = nn.ModuleDict({name: ScaleShift(w, std, generator) for name, w in {**widths, "fc2": width}.items()})

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        return cast(Tensor, self.at[name](y))

    def normed(self, name: str, y: Tensor) -> Tensor:
        return cast(Tensor, self.at[name](y))


class SSF(Tuning):
    """A scale and a shift after every linear map and LayerNorm, and after the patch embedding and the last norm.

    It does *not* start at the plain model: the draw is a small random perturbation (``std``).
    """

    kind = "ssf"

    def __init__(self, shape: Shape, blocks: Iterable[int], generator: torch.Generator, *, std: float = 0.02) -> None:
        super().__init__(shape, blocks)
        self.tunes_embedding = self.begins == 0  # a subset of deeper blocks leaves the beginning to be shared
        self.ends = nn.ModuleDict()
        if self.tunes_embedding:
            self.ends["patch_embed"] = ScaleShift(shape.width, std, generator)
        self.ends["norm"] = ScaleShift(shape.width, std, generator)
        for i in self.indices:
            self.blocks[str(i)] = SSFBlock(shape, std, generator)

    def normed(self, name: str, y: Tensor) -> Tensor:
        return cast(Tensor, self.ends[name](y)) if name in self.ends else y
