"""LoRA on the projections of the attention (Hu et al., ICLR 2022; HiDe-PET spec §4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, add_product, per_sample, uniform

Factors = nn.ParameterDict | dict[str, Tensor]


class LoRABlock(BlockTuning):
    """y + s · x A B for each target; A is [in, r], B is [r, out], or one of each per sample."""

    def __init__(self, a: Factors, b: Factors, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = a, b, scale

    @classmethod
    def mixed(cls, blocks: Sequence[Self], rows: Tensor) -> Self:
        a = {name: per_sample([block.a[name] for block in blocks], rows) for name in blocks[0].a}
        b = {name: per_sample([block.b[name] for block in blocks], rows) for name in blocks[0].b}
        return cls(a, b, blocks[0].scale)

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        if name not in self.a:
            return y
        return add_product(y, x @ self.a[name], self.b[name], self.scale)

    def delta(self) -> dict[str, Tensor]:
        """ΔW = s (A B)ᵀ of each target, [out, in]: what this block adds to the frozen weight."""
        return {name: cast(Tensor, self.scale * (self.a[name] @ self.b[name]).T) for name in self.a}

    def writes(self) -> list[Tensor]:
        return [self.b[name].mT for name in self.b]

    @torch.no_grad()
    def blend(self, others: Sequence[LoRABlock], weight: float) -> None:
        """ΔW ← (1 − m) ΔW + m · mean of the others' ΔW, for m = ``weight``, brought back to rank r.

        The nearest matrix of rank r is the truncated SVD U S Vᵀ of A B; it is divided evenly: A = U √S, B = √S Vᵀ.
        All blocks have the same s, which therefore drops out.
        """
        for name in self.a:
            a, b = self.a[name], self.b[name]
            left = torch.cat([other.a[name] for other in others], dim=1).double()
            right = torch.cat([other.b[name] for other in others], dim=0).double()
            target = (1 - weight) * (a.double() @ b.double()) + weight / len(others) * (left @ right)
            u, s, vh = torch.linalg.svd(target, full_matrices=False)
            rank = len(b)
            root = s[:rank].sqrt()
            a.copy_(u[:, :rank] * root)
            b.copy_(root[:, None] * vh[:rank])


class LowRank(Tuning):
    """A change of weights of low rank: its blocks are :class:`LoRABlock`, so that it can be merged and exported.

    Parameters
    ----------
    targets
        Which maps of the attention it changes, as letters: ``"qkv"``, ``"kv"`` …

    Raises
    ------
    ConfigError
        No targets, or some that the attention has not.
    """

    def __init__(self, shape: Shape, blocks: Iterable[int], targets: str, **settings: float) -> None:
        super().__init__(shape, blocks, **settings)
        if not targets or set(targets) - set("qkv"):
            raise ConfigError(f"{self.kind}: targets {targets!r} must be letters out of q, k and v, like 'kv'.")

    def factored(self, index: int) -> LoRABlock:
        """One block with its A and B, for one of :attr:`indices`."""
        return cast(LoRABlock, self.block(index))


class LoRA(LowRank):
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
    mixes = True

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
        super().__init__(shape, blocks, targets, alpha=alpha)
        if rank < 1:
            raise ConfigError(f"lora: rank={rank} must be at least 1.")
        if init not in ("lora", "wide"):
            raise ConfigError(f"lora: init {init!r} does not exist; choose 'lora' (1/√D) or 'wide' (1/√r).")
        bound = 1 / math.sqrt(shape.width if init == "lora" else rank)
        for i in self.indices:
            a = nn.ParameterDict({t: uniform((shape.width, rank), bound, generator) for t in targets})
            b = nn.ParameterDict({t: nn.Parameter(torch.zeros(rank, shape.width)) for t in targets})
            self.blocks[str(i)] = LoRABlock(a, b, alpha / rank)
