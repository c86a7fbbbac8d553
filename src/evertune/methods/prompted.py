"""What L2P, DualPrompt and CODA-Prompt share: each input is steered by what its plain feature chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.methods.config import option, require
from evertune.methods.taskwise import Taskwise, TaskwiseConfig
from evertune.tuning import ComponentPool, KeyedBank, PromptPool, Tuning

PUBLISHED: dict[str, Any] = {
    "epochs": 5, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "head": "linear", "clip": 1.0,
    "bound": 0.01,
}  # fmt: skip
"""What L2P and DualPrompt share in their authors' settings for CIFAR-100 (google-research/l2p)."""


@dataclass(frozen=True, kw_only=True)
class KeyedConfig(TaskwiseConfig):
    """Options of a method whose prompts are chosen by keys."""

    bound: float = option(1.0, "prompts and keys are drawn from U(−bound, bound)")
    pull: float = option(1.0, "λ, weight of the cosines of queries and chosen keys")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bound > 0, f"bound={self.bound} must be positive: equal prompts would stay equal.")
        require(self.pull >= 0, f"pull={self.pull} must not be negative.")


class Prompted(Taskwise):
    """The pool's prompts and keys learn with the head; a method says which of them steer an input."""

    trains = "prompts"
    pool: PromptPool | KeyedBank | ComponentPool

    def close(self) -> None:
        self.pool.close()

    def restored(self) -> None:
        self.close()

    def forget(self, classes: Sequence[int]) -> list[str]:
        super().forget(classes)
        return [
            "The prompts and their keys were trained on every task that they served, and those that serve others stay "
            "as they are; so do the rows of other classes, which were trained beside these."
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None, self.pool)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"prompts": self.pool.nbytes}}


def query(passes: Passes) -> Tensor:
    """q(x) [B, L], the plain feature: a constant."""
    with torch.no_grad():
        return passes().detach()
