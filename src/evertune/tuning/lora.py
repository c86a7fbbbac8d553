"""LoRA on the projections of the attention (Hu et al., ICLR 2022; HiDe-PET spec §4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, uniform


class LoRABlock(BlockTuning):
    """y + s · x A B for each target; A is [in, r], B is [r, out]."""

    def __init__(
        self, width: int, rank: int, scale: float, bound: float, targets: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.ParameterDict({t: uniform((width, rank), bound, generator) for t in targets})
        self.b = nn.ParameterDict({t: nn.Parameter(torch.zeros(rank, width)) for t in targets})

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        if name not in self.a:
            return y
        return cast(Tensor, y + (x @ self.a[name]) @ (self.b[name] * self.scale))


class LoRA(Tuning):
    """Low-rank updates of query, key or value maps; equals the plain model until trained (B starts at zero).

    Parameters
    ----------
    rank, alpha
        r, and α in s = α / r.
    targets
        Which maps, as letters: ``"qkv"``, ``"kv"`` (HiDe-PET), ``"qv"`` (the original).
    init
        Bound of the uniform draw of A: ``"lora"`` is 1/√D, the usual one; ``"wide"`` is 1/√r, which HiDe-PET's rates
        are tuned to.
    """

    kind = "lora"

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        rank: int = 5,
        alpha: float = 1.0,
        targets: str = "kv",
        init: str = "lora",
    ) -> None:
        super().__init__(shape, blocks, alpha=alpha)
        if rank < 1:
            raise ConfigError(f"lora: rank={rank} must be at least 1.")
        if not targets or set(targets) - set("qkv"):
            raise ConfigError(f"lora: targets {targets!r} must be letters out of q, k and v, like 'kv'.")
        if init not in ("lora", "wide"):
            raise ConfigError(f"lora: init {init!r} does not exist; choose 'lora' (1/√D) or 'wide' (1/√r).")
        bound = 1 / math.sqrt(shape.width if init == "lora" else rank)
        for i in self.indices:
            self.blocks[str(i)] = LoRABlock(shape.width, rank, alpha / rank, bound, targets, generator)
