"""What InfLoRA and SD-LoRA share: each task adds a direction to the weights, and the sum of all of them answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.methods.config import option
from evertune.methods.method import Generators
from evertune.methods.taskwise import Taskwise, TaskwiseConfig
from evertune.methods.training import OURS
from evertune.tuning import Directions, Tuning, parse_blocks

SLOWER: dict[str, Any] = OURS | {"blocks": "0-2", "rate": 2e-3}
"""The training of the ``evertune`` presets: at a lower rate than elsewhere, since every task moves the features of all
before it (docs/defaults.md)."""


@dataclass(frozen=True, kw_only=True)
class SummedConfig(TaskwiseConfig):
    """Options of a method that adds up directions."""

    blocks: str = option("all", "which blocks are tuned: all, 0-2, 0,3,7 …")
    targets: str = option("qv", "which maps of the attention, as letters out of q, k and v")


class Summed(Taskwise):
    """One pass under the weights W + Σ_k α_k A_k B_k; nothing is chosen."""

    trains = "direction"
    config: SummedConfig

    def __init__(self, config: SummedConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = Directions(shape, parse_blocks(config.blocks, shape.depth), targets=config.targets)

    def close(self) -> None:
        self.tuning.close()

    def restored(self) -> None:
        self.tuning.freeze()

    def feature(self, passes: Passes) -> Tensor:
        return passes(self.tuning)

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.tuning,)

    def forget(self, classes: Sequence[int]) -> list[str]:
        super().forget(classes)
        return [
            "The directions of all tasks stay, also those of tasks that are forgotten: later ones were trained on top "
            "of them. So do the rows of other classes."
        ]

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"tuning": self.tuning.nbytes}}
