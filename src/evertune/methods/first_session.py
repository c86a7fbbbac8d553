"""What RanPAC, APER and FeCAM share: a tuning trained on the first task alone, then frozen (SAFE spec §4.2, §5.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.heads import CosineHead
from evertune.methods.config import option
from evertune.methods.method import Batch, Generators, Method, Optimise, Phase, Solve, TaskInfo
from evertune.methods.training import OURS_LORA, ScaledConfig, TuningConfig, parameters_of
from evertune.tuning import Tuning

ZERO_PROMPTS = {"vpt": {"tuning_options": {"init": "zeros"}}}
"""Released code starts prompts at zero, where all tokens of a block stay one (T9)."""

EVERTUNE: dict[str, Any] = OURS_LORA | {"sigma_init": 10.0}
"""What the ``evertune`` presets of all of them begin with."""


@dataclass(frozen=True, kw_only=True)
class FirstSessionConfig(ScaledConfig, TuningConfig):
    """Options of a method whose tuning learns with a cosine head."""

    epochs: int = option(20, "epochs in the first session")
    sigma_init: float = option(1.0, "scale of the cosine head at the start")


class FirstSession(Method):
    """Phase 1: cross-entropy on the cosine head, first task only; the head is discarded."""

    config: FirstSessionConfig

    def __init__(self, config: FirstSessionConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = config.fresh(shape, generators.init)
        self.head = CosineHead(width, config.sigma_init)

    def first_session(self, task: TaskInfo) -> list[Phase]:
        if task.index or not self.config.epochs:
            return [] if task.index else [Solve("freeze", self._freeze)]
        return [
            Solve("draw head", lambda: self.head.draw(task.seen, self.generators.init)),
            Optimise("first session", self.loss, lambda: parameters_of(self.tuning, self.head), self.config.recipe()),
            Solve("freeze", self._freeze),
        ]

    @property
    def branch(self) -> Tuning | None:
        """What the features come from: the tuning, or the plain model where no epoch ever trained it."""
        return self.tuning if self.config.epochs else None

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.branch,)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"classification": F.cross_entropy(self.head(batch.passes(self.tuning)), batch.labels)}

    def _freeze(self) -> None:
        self.tuning.freeze()
        self.head.weight = nn.Parameter(torch.zeros(0, self.width), requires_grad=False)

    def forget(self, classes: Sequence[int]) -> list[str]:
        if self.branch is None:
            return []
        return [
            f"The tuning ({self.tuning.kind}) was trained on the first task and stays as it is, whether or not its "
            "examples were of these classes."
        ]

    def restored(self) -> None:
        if self.tasks_seen:
            self.tuning.freeze()
