"""What L2P, DualPrompt and CODA-Prompt share: each input is steered by what its plain feature chooses, and a head that
grows reads the feature; each task trains on its own classes alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, LinearHead
from evertune.methods.config import option, require
from evertune.methods.losses import task_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo
from evertune.methods.training import TrainingConfig
from evertune.statistics import ClassMeans
from evertune.tuning import Tuning

OURS: dict[str, Any] = {"epochs": 10, "optimizer": "adam", "rate": 5e-3, "weight_decay": 0.0}
"""The training of the ``evertune`` presets, that of the other methods."""


@dataclass(frozen=True, kw_only=True)
class PromptedConfig(TrainingConfig):
    """Options of a method whose prompts are chosen by a query."""

    head: Literal["cosine", "linear"] = option(
        "cosine", "cosine, whose rows start as means of their classes, or linear as published, drawn at random"
    )
    sigma_init: float = option(10.0, "scale of the cosine head at the start")
    clip: float | None = option(None, "bound of the gradient's norm")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma_init > 0, f"sigma_init={self.sigma_init} must be positive.")
        require(self.clip is None or self.clip > 0, f"clip={self.clip} must be positive, or none.")


class Prompted(Method):
    """CE over the classes of the task, and what else a method adds; prediction compares all classes."""

    dynamic = "each input chooses its prompts by its plain feature"
    config: PromptedConfig
    pool: Tuning

    def __init__(self, config: PromptedConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.head = CosineHead(width, config.sigma_init) if config.head == "cosine" else LinearHead(width)
        self.means = ClassMeans()  # of the task's classes, only while it is learned

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        collect = [Collect("class means", self._collect)] if self.config.head == "cosine" else []
        return [
            Solve("open", functools.partial(self.open, task)),
            *collect,
            Solve("grow head", functools.partial(self._grow, task)),
            Optimise(
                "prompts", functools.partial(self.loss, task), self.trained, self.config.recipe(clip=self.config.clip)
            ),
            Solve("close", self.close),
        ]

    def open(self, task: TaskInfo) -> None:
        """Make what the task trains."""

    def close(self) -> None:
        """Freeze what the task trained and later ones do not."""

    def feature(self, passes: Passes) -> Tensor:
        """What the head reads, [B, L], of inputs that choose for themselves."""
        raise NotImplementedError

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The feature [B, L] while learning, and further terms of the loss."""
        raise NotImplementedError

    def _collect(self, batch: Batch) -> None:
        self.means.update(self.learning(batch.passes)[0], batch.labels)

    def _grow(self, task: TaskInfo) -> None:
        if isinstance(self.head, LinearHead):
            self.head.grow(len(task.new), self.generators.init)
        elif task.new:
            self.head.imprint(self.means.means[list(task.new)])
        self.means.drop(range(len(self.means.counts)))

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        """Logits of other classes are left out."""
        feature, terms = self.learning(batch.passes)
        own = self.head(feature)[:, list(task.present)]
        return {"classification": task_cross_entropy(own, batch.labels, task.present), **terms}

    def trained(self) -> Iterable[nn.Parameter]:
        return (p for p in itertools.chain(self.pool.parameters(), self.head.parameters()) if p.requires_grad)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"classifier": self.head(self.feature(passes))}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.head.drop(classes)
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
