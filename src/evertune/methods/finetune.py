"""Sequential fine-tuning: each task is learned as if there had been no other. The mark below which forgetting shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead
from evertune.methods.first_session import EVERTUNE
from evertune.methods.method import Batch, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import TuningConfig
from evertune.tuning import Tuning, make_tuning


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TuningConfig):
    """Options of sequential fine-tuning."""

    presets = {  # noqa: RUF012
        "evertune": {name: value for name, value in EVERTUNE.items() if name != "sigma_init"},
        "adapter": {},
    }


@register
class Finetune(Method):
    """One tuning and one linear layer, cross-entropy over all classes seen, nothing against forgetting."""

    name = "finetune"
    remembers = False
    config_type = FinetuneConfig
    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = make_tuning(config.tuning, shape, generators.init, blocks=config.blocks, **config.tuning_options)
        self.head = LinearHead(width)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [
            Solve("grow head", lambda: self.head.grow(len(task.new), self.generators.init)),
            Optimise("fine-tuning", self.loss, self.trained, self.config.recipe()),
        ]

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"classification": F.cross_entropy(self.head(batch.passes(self.tuning)), batch.labels)}

    def trained(self) -> Iterable[nn.Parameter]:
        return itertools.chain(self.tuning.parameters(), self.head.parameters())

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"classifier": self.head(passes(self.tuning))}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.head.drop(classes)
        return [
            f"The tuning ({self.tuning.kind}) was trained on every task and stays as it is; so do the rows of other "
            "classes, which were trained beside these."
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.tuning,)
