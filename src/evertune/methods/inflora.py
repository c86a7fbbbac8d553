"""InfLoRA, interference-free low-rank adaptation (Liang and Li, CVPR 2024, arXiv 2404.00228): each task learns in
directions that the inputs of earlier tasks do not reach."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.methods.config import option, require
from evertune.methods.method import Batch, Collect, Generators, Phase, Solve, TaskInfo, register
from evertune.methods.summed import SLOWER, Summed, SummedConfig
from evertune.statistics import GradientSpace, SecondMoments, principal
from evertune.tuning import Watched


@dataclass(frozen=True, kw_only=True)
class InfLoRAConfig(SummedConfig):
    """Options of InfLoRA; the paper preset is the released CIFAR-100 configuration."""

    targets: str = option("kv", "which maps of the attention, as letters out of q, k and v")
    rank: int = option(10, "r, rank of each task's branch")
    share: float = option(0.95, "ε, share of the inputs' squared norm that the memory holds after the first task")
    share_end: float = option(1.0, "what ε grows to, in equal steps")
    horizon: int = option(10, "T, so many tasks would bring ε to its end; after T of them it stays a step before")
    spectrum: Literal["inputs", "moments"] = option(
        "inputs", "whose norm and directions: those of the inputs H, or as released those of H Hᵀ, which keep fewer"
    )

    presets = {  # noqa: RUF012
        "evertune": SLOWER | {"rank": 5},
        "paper": {
            "epochs": 20, "batch_size": 128, "optimizer": "adam", "rate": 5e-4, "weight_decay": 0.0,
            "schedule": "quarter", "head": "linear", "spectrum": "moments",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, f"rank={self.rank} must be at least 1.")
        require(
            0 <= self.share <= self.share_end <= 1,
            f"share={self.share} to share_end={self.share_end}: shares are from 0 to 1, and do not shrink.",
        )
        require(self.horizon >= 1, f"horizon={self.horizon} must be at least 1.")

    def share_of(self, task: int) -> float:
        """ε_t of the task with this number, from 0."""
        return self.share + (self.share_end - self.share) * min(task, self.horizon - 1) / self.horizon


@register
class InfLoRA(Summed):
    """W_t = W_{t−1} + A_t B_t, where only A_t learns, from 0. The rows of B_t are the r main directions of the task's
    inputs H_t without what of them lies in M_t, which holds the main directions of earlier tasks' inputs.

    A tuning's A is B_tᵀ, and its B is A_tᵀ: inputs are rows there.
    """

    name = "inflora"
    paper = (
        "Yan-Shuo Liang, Wu-Jun Li. *InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning.* CVPR "
        "2024. [arXiv 2404.00228](https://arxiv.org/abs/2404.00228)"
    )
    config_type = InfLoRAConfig
    config: InfLoRAConfig

    def __init__(self, config: InfLoRAConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.memory = nn.ModuleList(GradientSpace(shape.width) for _ in self.tuning.indices)  # M_t of each block
        self.moments = SecondMoments()

    def open(self, task: TaskInfo) -> None:
        self.tuning.open(self.config.rank, self.generators.init)

    def before(self, task: TaskInfo) -> Sequence[Phase]:
        return [Collect("inputs", self._watch), Solve("design", self._design)]

    def after(self, task: TaskInfo) -> Sequence[Phase]:
        return [Collect("inputs learned", self._watch), Solve("remember", self._remember)]

    def _watch(self, batch: Batch) -> None:
        """Σ h hᵀ of what each block's maps read, [D, D]."""
        watched = Watched(self.tuning, batch.passes.mask)
        batch.passes(watched)
        self.moments.add(batch.passes.summed(watched.sums))

    @property
    def spaces(self) -> list[GradientSpace]:
        return [cast(GradientSpace, space) for space in self.memory]

    def _inputs(self) -> Iterator[Tensor]:
        """Of each block a matrix [D, D] with the directions and the norm that its inputs are taken to have."""
        for moment in self.moments.take():
            yield principal(moment, len(moment)) if self.config.spectrum == "inputs" else moment

    def _design(self) -> None:
        """B_t, with rows as long as LoRA's usual draw has them, and fixed."""
        for i, space, inputs in zip(self.tuning.indices, self.spaces, self._inputs(), strict=True):
            rows = space.design(inputs, self.config.rank) / math.sqrt(3)
            for m in self.tuning.maps_of(i).values():
                m.a.copy_(rows.T)
                m.a.requires_grad_(False)
        self.tuning.magnitudes.requires_grad_(False)

    def _remember(self) -> None:
        for space, inputs in zip(self.spaces, self._inputs(), strict=True):
            space.update(inputs, self.config.share_of(int(self.tasks_seen)))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"memory": [space.size for space in self.spaces], "of": self.shape.width}
