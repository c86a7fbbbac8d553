"""What L2P, DualPrompt and CODA-Prompt share: each input is steered by what its plain feature chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.methods.taskwise import OURS, Taskwise, TaskwiseConfig
from evertune.tuning import Tuning

__all__ = ["OURS", "PUBLISHED", "Prompted", "PromptedConfig", "query"]

PUBLISHED: dict[str, Any] = {
    "epochs": 5, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "head": "linear", "clip": 1.0,
    "bound": 0.01,
}  # fmt: skip
"""What L2P and DualPrompt share in their authors' settings for CIFAR-100 (google-research/l2p)."""


@dataclass(frozen=True, kw_only=True)
class PromptedConfig(TaskwiseConfig):
    """Options of a method whose prompts are chosen by a query."""


class Prompted(Taskwise):
    """The pool's prompts and keys learn with the head; a method says which of them steer an input."""

    trains = "prompts"
    config: PromptedConfig
    pool: Tuning

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The feature [B, L] while learning, and further terms of the loss."""
        raise NotImplementedError

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
        return {"bytes": {"prompts": sum(p.nbytes for p in self.pool.parameters())}}


def query(passes: Passes) -> Tensor:
    """q(x) [B, L], the plain feature: a constant."""
    with torch.no_grad():
        return passes().detach()
