"""SD-LoRA, scalable decoupled low-rank adaptation (Wu et al., ICLR 2025, arXiv 2501.13198): directions of earlier tasks
stay, and how far to go in each of them is learned again with every task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from evertune.methods.config import option, require
from evertune.methods.method import TaskInfo, register
from evertune.methods.summed import SLOWER, Summed, SummedConfig

RELEASED: dict[str, Any] = {
    "epochs": 20, "batch_size": 128, "rate": 8e-3, "weight_decay": 0.0, "schedule": "constant", "head": "linear",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SDLoRAConfig(SummedConfig):
    """Options of SD-LoRA; the paper presets are its CIFAR-100 settings, and those of its two variants."""

    ranks: str = option("10", "rank of a direction; 10,4:8,8:6 is 8 from task 4 and 6 from task 8, counted from 0 (RR)")
    magnitude: float = option(0.8, "α of a new direction at the start")
    absorb: float = option(
        0.0, "τ, share of a new direction's squared norm; if less is left of it beside earlier ones, it goes (KD)"
    )

    presets = {  # noqa: RUF012
        "evertune": SLOWER | {"ranks": "5"},
        "paper": RELEASED,
        "paper-rr": RELEASED | {"ranks": "10,4:8,8:6"},
        "paper-kd": RELEASED | {"absorb": 9e-4},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            re.fullmatch(r"[1-9]\d*(,\d+:[1-9]\d*)*", self.ranks) is not None,
            f"ranks={self.ranks!r} is not understood: write '10', or '10,4:8' for 8 from task 4 on.",
        )
        require(self.magnitude > 0, f"magnitude={self.magnitude} must be positive: at 0 nothing would learn.")
        require(0 <= self.absorb < 1, f"absorb={self.absorb} must be at least 0 and below 1.")

    def rank_of(self, task: int) -> int:
        """The rank of the direction of the task with this number, from 0."""
        first, *changes = self.ranks.split(",")
        since = {0: int(first)} | {int(t): int(rank) for t, rank in (change.split(":") for change in changes)}
        return since[max(t for t in since if t <= task)]


@register
class SDLoRA(Summed):
    """W_t = W_0 + Σ_{k<t} α_k A_k B_k / ‖A_k B_k‖ + α_t A_t B_t: all α learn, and A_t and B_t.

    A direction is that of all maps together, and α_t is multiplied by the norm when A_t B_t is divided by it.
    """

    name = "sd_lora"
    paper = (
        "Yichen Wu, Hongming Piao, Long-Kai Huang, Renzhen Wang, Wanhua Li, Hanspeter Pfister, Deyu Meng, Kede Ma, "
        "Ying Wei. *SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning.* ICLR 2025. "
        "[arXiv 2501.13198](https://arxiv.org/abs/2501.13198)"
    )
    config_type = SDLoRAConfig
    config: SDLoRAConfig

    def open(self, task: TaskInfo) -> None:
        self.tuning.open(self.config.rank_of(int(self.tasks_seen)), self.generators.init, self.config.magnitude)

    def close(self) -> None:
        if not (self.config.absorb and self.tuning.absorb(self.config.absorb)):
            self.tuning.normalise()
            self.tuning.close()

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"magnitudes": [round(a, 4) for a in self.tuning.magnitudes.tolist()]}
