"""Sequential fine-tuning: each task is learned as if there had been no other. The mark below which forgetting shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead
from evertune.methods.method import Batch, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import OURS_LORA, LocalConfig, TuningConfig, parameters_of
from evertune.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LocalConfig, TuningConfig):
    """Options of sequential fine-tuning."""

    presets = {"evertune": OURS_LORA, "adapter": {}}  # noqa: RUF012


@register
class Finetune(Method):
    """One tuning and one linear layer, cross-entropy over all classes seen, nothing against forgetting."""

    name = "finetune"
    remembers = False
    config_type = FinetuneConfig
    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = config.fresh(shape, generators.init)
        self.head = LinearHead(width)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [
            Solve("grow head", lambda: self.head.grow(len(task.new), self.generators.init)),
            Optimise(
                "fine-tuning",
                lambda batch: self.loss(task, batch),
                lambda: parameters_of(self.tuning, self.head),
                self.config.recipe(),
            ),
        ]

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        logits = self.head(batch.passes(self.tuning))
        return {"classification": self.config.cross_entropy(logits, batch.labels, task.present)}

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
