"""A head that grows over one tuned feature, and tasks that train on their own classes alone: what LAE, the methods of
chosen prompts and those of summed directions share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, LinearHead
from evertune.methods.config import option, require
from evertune.methods.losses import masked_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo
from evertune.methods.training import ScaledConfig, parameters_of
from evertune.statistics import ClassMeans


@dataclass(frozen=True, kw_only=True)
class TaskwiseConfig(ScaledConfig):
    """Options of the head and of its training."""

    head: Literal["cosine", "linear"] = option(
        "cosine", "cosine, whose rows start as means of their classes, or linear as published, drawn at random"
    )
    clip: float | None = option(None, "bound of the gradient's norm")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip is None or self.clip > 0, f"clip={self.clip} must be positive, or none.")


class Taskwise(Method):
    """CE over the classes of the task, and what else a method adds; prediction compares all classes."""

    trains: ClassVar[str]
    """What the training phase is called."""
    config: TaskwiseConfig

    def __init__(self, config: TaskwiseConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.head = CosineHead(width, config.sigma_init) if config.head == "cosine" else LinearHead(width)
        self.means = ClassMeans()  # of the task's classes, only while it is learned

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        means = [Collect("class means", self._collect)] if self.config.head == "cosine" else []
        return [
            Solve("open", functools.partial(self.open, task)),
            *self.before(task),
            *means,
            Solve("grow head", functools.partial(self._grow, task)),
            *self.descents(task),
            *self.after(task),
            Solve("close", self.close),
        ]

    def open(self, task: TaskInfo) -> None:
        """Make what the task trains."""

    def before(self, task: TaskInfo) -> Sequence[Phase]:
        """Between opening and training."""
        return []

    def descents(self, task: TaskInfo) -> Sequence[Phase]:
        """What learns, once the head has grown."""
        recipe = self.config.recipe(clip=self.config.clip)
        return [Optimise(self.trains, functools.partial(self.loss, task), self.trained, recipe)]

    def after(self, task: TaskInfo) -> Sequence[Phase]:
        """Between training and closing."""
        return []

    def close(self) -> None:
        """Freeze what the task trained and later ones do not."""

    def feature(self, passes: Passes) -> Tensor:
        """What the head reads, [B, L]."""
        raise NotImplementedError

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The feature [B, L] while learning, and further terms of the loss."""
        return self.feature(passes), {}

    def imprinted(self, passes: Passes) -> Tensor:
        """The feature [B, L] whose class means the rows of new classes start as: that of learning."""
        return self.learning(passes)[0]

    def trained(self) -> list[nn.Parameter]:
        """Of these, those that are not frozen learn."""
        return parameters_of(*(tuning for tuning in self.branches if tuning is not None), self.head)

    def _collect(self, batch: Batch) -> None:
        self.means.update(self.imprinted(batch.passes), batch.labels)

    def _grow(self, task: TaskInfo) -> None:
        if isinstance(self.head, LinearHead):
            self.head.grow(len(task.new), self.generators.init)
        elif task.new:
            self.head.imprint(self.means.means[list(task.new)])
        self.means.drop(range(len(self.means.counts)))

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        feature, terms = self.learning(batch.passes)
        return {"classification": self.classification(task, feature, batch.labels), **terms}

    def classification(self, task: TaskInfo, feature: Tensor, labels: Tensor) -> Tensor:
        """Logits of other classes are left out."""
        return masked_cross_entropy(self.head(feature), labels, task.present)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"classifier": self.head(self.feature(passes))}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.head.drop(classes)
        return []
