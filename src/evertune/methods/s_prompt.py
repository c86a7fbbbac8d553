"""S-Prompts (Wang, Huang, Hong, NeurIPS 2022, arXiv 2207.12819), for images alone (S-iPrompts): a prompt and a
classifier for each task, learned independently, and centroids of plain features that tell the task of an input."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead
from evertune.methods.config import option, require
from evertune.methods.losses import task_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import OURS, ScaledConfig, TuningConfig, parameters_of
from evertune.statistics import ShownClasses, TaskCentroids, TaskFeatures
from evertune.tuning import Bank, Tuning


@dataclass(frozen=True, kw_only=True)
class SPromptConfig(ScaledConfig, TuningConfig):
    """Options of S-Prompts; ``paper`` is the released setting for DomainNet and CORe50: there is none for CIFAR-100."""

    tuning: str = option("prompt", "kind of tuning that each task has; its own options are tuning.<name>")
    blocks: str = option("0", "which blocks are tuned; prompts of the first one alone are input prompts")
    centroids: int = option(5, "K, centroids of each task's plain features")
    head: Literal["imprinted", "linear"] = option(
        "imprinted", "linear on directions, from the mean of each class; or linear as published, drawn at random"
    )
    sigma_init: float = option(10.0, "length of imprinted rows at the start")

    presets = {  # noqa: RUF012
        "evertune": OURS | {"tuning_options": {"length": 20}, "centroids": 10},
        "paper": {
            "tuning_options": {"length": 10, "bound": 0.036}, "epochs": 10, "batch_size": 128, "rate": 0.01,
            "weight_decay": 2e-4, "decay": "all", "head": "linear",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.centroids >= 1, f"centroids={self.centroids} must be at least 1.")


@register
class SPrompt(Method):
    """min CE(g_t(f(x; P_t)), y) for each task t by itself. An input is taken to be of the task with the centroid
    nearest to its plain feature, and gets that task's prompt and classifier."""

    name = "s_prompt"
    paper = (
        "Yabin Wang, Zhiwu Huang, Xiaopeng Hong. *S-Prompts Learning with Pre-trained Transformers: An Occam's "
        "Razor for Domain Incremental Learning.* NeurIPS 2022. [arXiv "
        "2207.12819](https://arxiv.org/abs/2207.12819)"
    )
    dynamic = "it finds out which task each input is of, and passes it again under the prompt of that task"
    config_type = SPromptConfig
    config: SPromptConfig

    def __init__(self, config: SPromptConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.bank = Bank(config.fresh(shape, generators.init))
        self.heads = LinearHead(width)  # g_1 … g_T, a row for every class of every task
        self.own = LinearHead(width)  # g_t, while it is learned
        self.shown = ShownClasses()  # which task and class each row is for
        self.plain, self.centroids = TaskFeatures(), TaskCentroids(config.centroids)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [
            Collect("plain features", lambda batch: self.plain.add(batch.passes(), batch.labels)),
            Solve("open", functools.partial(self._open, task)),
            Optimise(
                "prompt",
                functools.partial(self.loss, task),
                lambda: parameters_of(self.bank[task.index], self.own),
                self.config.recipe(),
            ),
            Solve("close", self._close),
        ]

    def _open(self, task: TaskInfo) -> None:
        self.plain.close()
        self.bank.open(self.config.fresh(self.shape, self.generators.init))
        self.heads.grow(len(task.present), self.generators.init)
        self.own = self.heads.select(range(-len(task.present), 0))
        if self.config.head == "imprinted":
            means = F.normalize(self.plain.means(task.present), dim=1)
            self.own.weight.copy_(self.config.sigma_init * means)
        self.shown.add(task.index, task.present)
        directions = F.normalize(self.plain.features, dim=1)
        self.centroids.add(directions, self.centroids.tasks, self.generators.sampling)
        self.plain.clear()

    def _read(self, head: LinearHead, feature: Tensor) -> Tensor:
        logits: Tensor = head(F.normalize(feature, dim=1) if self.config.head == "imprinted" else feature)
        return logits

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        logits = self._read(self.own, batch.passes(self.bank[task.index]))
        return {"classification": task_cross_entropy(logits, batch.labels, task.present)}

    def _close(self) -> None:
        self.heads.replace(range(-self.own.classes, 0), self.own)
        self.own = self.own.select(())
        self.restored()

    def restored(self) -> None:
        self.bank.freeze()

    # -- prediction ----------------------------------------------------------------------------------------------------

    def identify(self, passes: Passes) -> Tensor:
        return self.centroids.distances(passes()).argmin(1)

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        """Logits of the classes that the task has; 0 for others."""
        logits, shown = self._read(self.heads, passes.routed(self.bank, tasks)), self.shown
        own = logits * (shown.tasks == tasks.to(shown.tasks)[:, None])
        return logits.new_zeros(len(logits), shown.table.shape[1]).index_add(1, shown.classes, own)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        """Classes that the task has not are below all that it has."""
        tasks = self.identify(passes)
        own, has = self.told(passes, tasks), self.shown.table[tasks]
        lowest = own.masked_fill(~has, torch.inf).amin(1, keepdim=True)
        return {"routed": own.where(has, lowest - 1)}

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, classes: Sequence[int]) -> list[str]:
        """Rows by class; prompt and centroids of a task that has no class left."""
        self.heads.drop([j for j, c in enumerate(self.shown.classes.tolist()) if c in classes])
        tasks = self.shown.forget(classes)
        self.bank.drop(tasks)
        self.centroids.forget(tasks)
        return [
            f"A task that keeps other classes keeps its tuning ({self.config.tuning}) and its centroids, which were "
            "made on all of its classes, and the rows of the others, which were trained beside these.",
            "Inputs nearest to a centroid that is gone are taken to be of another task.",
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None, *self.bank)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"each tuning": self.bank.nbytes, "centroids": self.centroids.centroids.nbytes}}
