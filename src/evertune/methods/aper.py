"""APER (Zhou et al., arXiv 2303.07338, IJCV 2024; earlier called ADAM; SAFE spec §4.2): class means in the
concatenation of the plain model and one adapted to the first task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.heads import PrototypeHead
from evertune.methods.first_session import EVERTUNE, ZERO_PROMPTS, FirstSession, FirstSessionConfig
from evertune.methods.method import Batch, Collect, Generators, Phase, TaskInfo, register
from evertune.methods.simple_cil import SimpleCIL
from evertune.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class APERConfig(FirstSessionConfig):
    """Options of APER; the paper presets are the CIFAR-100 and ImageNet-R settings of its adapter variant."""

    presets = {  # noqa: RUF012
        "evertune": EVERTUNE,
        "paper": {},
        "paper-imagenet-r": {"epochs": 10, "rate": 0.05, "batch_size": 16, "weight_decay": 5e-3},
        "released": {"decay": "all", "by_kind": ZERO_PROMPTS},
    }


@register
class APER(FirstSession):
    """Prototypes of [φ_0(x), φ_1(x)], in this order and without normalising either half."""

    name = "aper"
    paper = SimpleCIL.paper
    config_type = APERConfig

    def __init__(self, config: APERConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.prototypes = PrototypeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [*self.first_session(task), Collect("prototypes", self._collect)]

    def _features(self, passes: Passes) -> Tensor:
        tuned = passes(self.branch)  # first, so that the plain pass reuses the blocks before the first tuned one
        return torch.cat([passes(), tuned], dim=1)

    def _collect(self, batch: Batch) -> None:
        self.prototypes.update(self._features(batch.passes), batch.labels)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": self.prototypes(self._features(passes))}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.prototypes.drop(classes)
        return super().forget(classes)

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.branch, None)
