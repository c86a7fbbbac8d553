"""EASE, an ensemble of expandable subspaces (Zhou et al., CVPR 2024, arXiv 2403.12030): an adapter per task, and class
means in the subspaces of all of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, PrototypeHead, section_scores
from evertune.methods.config import option, require
from evertune.methods.losses import task_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import OURS_LORA, ScaledConfig, TuningConfig, parameters_of
from evertune.statistics import SectionMeans
from evertune.tuning import Bank, Tuning

PAPER: dict[str, Any] = {"rate": 0.025, "decay": "all", "synthesis": "later"}


@dataclass(frozen=True, kw_only=True)
class EASEConfig(ScaledConfig, TuningConfig):
    """Options of EASE; the paper presets are the CIFAR-100 settings, without and with the plain model's section."""

    sigma_init: float = option(1.0, "scale of the cosine head at the start")
    alpha: float = option(0.1, "α: weight that the sections of other tasks than a class's own share")
    synthesis: Literal["task", "later"] = option(
        "task", "missing means are made from the classes of the subspace's task, or as released of later ones, too"
    )
    beta: float = option(0.0, "β: weight of the plain model's section; 0 leaves its pass out")

    presets = {  # noqa: RUF012
        "evertune": OURS_LORA | {"sigma_init": 10.0, "beta": 0.2},
        "paper": PAPER,
        "paper-plain": PAPER | {"beta": 0.2},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1: without training, all sections are equal.")
        for name in ("alpha", "beta"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")


@register
class EASE(Method):
    """Score of class c: Σ_b ω_cb cos(φ(x; A_b), P_cb) [+ β cos(φ(x), P_c)], with ω 1 for the class's own task and α
    shared by the others.

    P_cb of a task b that came later than class c is synthesised from the classes of b. A class that comes again, in
    another domain, is an own class of each of those tasks, which share the weight 1, and needs no synthesis between.
    """

    name = "ease"
    paper = (
        "Da-Wei Zhou, Hai-Long Sun, Han-Jia Ye, De-Chuan Zhan. *Expandable Subspace Ensemble for Pre-Trained "
        "Model-Based Class-Incremental Learning.* CVPR 2024. [arXiv 2403.12030](https://arxiv.org/abs/2403.12030)"
    )
    quadratic = "every class has a mean in the subspace of every task"
    config_type = EASEConfig
    config: EASEConfig

    def __init__(self, config: EASEConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.bank = Bank(config.fresh(shape, generators.init))
        self.head = CosineHead(width, config.sigma_init)  # of one task, for its classes
        self.sections, self.plain = SectionMeans(), PrototypeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [
            Solve("open", lambda: self._open(len(task.present))),
            Optimise("adapter", functools.partial(self.loss, task), self.trained, self.config.recipe()),
            Solve("freeze", self._finish),
            Collect("prototypes", self._collect),
        ]

    def _open(self, classes: int) -> None:
        self.bank.open(self.config.fresh(self.shape, self.generators.init))
        self.head.clear(self.config.sigma_init)
        self.head.draw(classes, self.generators.init)

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        logits = self.head(batch.passes(self.bank.last))
        return {"classification": task_cross_entropy(logits, batch.labels, task.present)}

    def trained(self) -> list[nn.Parameter]:
        return parameters_of(self.bank.last, self.head)

    def _finish(self) -> None:
        self.head.clear(self.config.sigma_init)
        self.restored()

    def restored(self) -> None:
        self.bank.freeze()

    # -- prototypes and prediction -------------------------------------------------------------------------------------

    def _features(self, passes: Passes) -> Tensor:
        """φ(x; A_1) … φ(x; A_T), [B, T, L]."""
        return torch.stack([passes(adapter) for adapter in self.bank], dim=1)

    def _collect(self, batch: Batch) -> None:
        """The task's classes in all subspaces, old and new, from one pass over its data."""
        self.sections.update(self._features(batch.passes), batch.labels)
        if self.config.beta:
            self.plain.update(batch.passes(), batch.labels)

    def _prototypes(self) -> Tensor:
        return self.sections.prototypes(later=self.config.synthesis == "later")

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        c, x = self.config, self._features(passes)
        weights = self.sections.weights(c.alpha)
        scores = section_scores(x.flatten(1), self._prototypes().flatten(1), weights)
        return {"reweighted": scores + c.beta * self.plain(passes()) if c.beta else scores}

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        """cos(φ(x; A_b), P_cb) in the subspace of the task b alone, which is one pass."""
        x, own = (F.normalize(z, dim=-1) for z in (passes.routed(self.bank, tasks), self._prototypes()))
        scores = x.new_zeros(len(x), len(own))
        for task in torch.unique(tasks):  # [B, K, L] at once would be a gigabyte of ViT-B's features and 1000 classes
            rows = tasks == task
            scores[rows] = x[rows] @ own[:, task].T
        return scores

    def forget(self, classes: Sequence[int]) -> list[str]:
        tasks = self.sections.forget(classes)
        self.bank.drop(tasks)
        self.plain.drop(classes)
        return [
            f"A task that keeps other classes keeps its tuning ({self.config.tuning}), which was trained on all of its "
            "classes.",
            "Means that were synthesised are so again, from the classes that are left, and the weights of sections are "
            "shared among fewer, so that scores of other classes change.",
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (*self.bank, None) if self.config.beta else tuple(self.bank)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"each tuning": self.bank.nbytes, "prototypes": self.sections.sums.nbytes}}
