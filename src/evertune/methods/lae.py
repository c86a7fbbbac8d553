"""LAE, learning, accumulation, ensemble (Gao et al., ICCV 2023, arXiv 2303.10070): a tuning that learns every task, one
that accumulates it slowly, and the answer of whichever of them is surer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.methods.config import option, require
from evertune.methods.method import Batch, Generators, Optimise, Phase, TaskInfo, register
from evertune.methods.taskwise import Taskwise, TaskwiseConfig
from evertune.methods.training import OURS_LORA, TuningConfig
from evertune.tuning import Tuning

CIFAR100: dict[str, Any] = {
    "tuning": "lora", "blocks": "0-4", "head": "linear", "epochs": 5, "batch_size": 24, "optimizer": "adam",
    "rate": 0.0028125, "weight_decay": 0.0, "schedule": "constant",
    "by_kind": {
        "lora": {"tuning_options": {"rank": 5, "alpha": 5.0, "targets": "kv"}},
        "adapter": {"tuning_options": {"bottleneck": 5, "scale": 1.0, "dropout": 0.0}},
        "prefix": {"tuning_options": {"length": 10, "bound": 0.01}},
    },
}  # fmt: skip
"""The released settings; 0.0028125 is 0.03 · 24/256."""


@dataclass(frozen=True, kw_only=True)
class LAEConfig(TaskwiseConfig, TuningConfig):
    """Options of LAE; the paper presets are the settings of CIFAR-100 and ImageNet-R in ten tasks."""

    freeze_epochs: int = option(3, "epochs, after the first task, in which the classifier learns alone")
    follow_rate: float | None = option(None, "rate once the online tuning joins the classifier, if not the same")
    alpha: float = option(0.9999, "α: weight that the offline tuning's values keep")
    alpha_over: Literal["step", "task"] = option("step", "over which they keep it: each step, or a whole task")

    presets = {  # noqa: RUF012
        "evertune": OURS_LORA | {"follow_rate": 1e-3, "alpha": 0.9, "alpha_over": "task"},
        "paper": CIFAR100,
        "paper-imagenet-r": CIFAR100 | {"epochs": 50, "freeze_epochs": 30, "rate": 0.00046875},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.freeze_epochs >= 0, f"freeze_epochs={self.freeze_epochs} must not be negative.")
        rate = self.follow_rate
        require(rate is None or rate > 0, f"follow_rate={rate} must be positive, or none.")
        require(0 <= self.alpha <= 1, f"alpha={self.alpha} must be between 0 and 1.")

    def kept(self, size: int) -> float:
        """α of one step in a task of so many examples."""
        steps = self.epochs * -(-size // self.batch_size)
        return self.alpha ** (1 / max(steps, 1)) if self.alpha_over == "task" else self.alpha


@register
class LAE(Taskwise):
    """θ_on learns each task; θ_off ← α θ_off + (1 − α) θ_on after each step. p = max(softmax(z_on), softmax(z_off)),
    class by class. The first task has no θ_off: it begins as θ_on when that is learned."""

    name = "lae"
    paper = (
        "Qiankun Gao, Chen Zhao, Yifan Sun, Teng Xi, Gang Zhang, Bernard Ghanem, Jian Zhang. *A Unified Continual "
        "Learning Framework with General Parameter-Efficient Tuning.* ICCV 2023. [arXiv "
        "2303.10070](https://arxiv.org/abs/2303.10070)"
    )
    trains = "online"
    config_type = LAEConfig
    config: LAEConfig

    def __init__(self, config: LAEConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.online = config.fresh(shape, generators.init)
        self.offline = copy.deepcopy(self.online).freeze()

    def feature(self, passes: Passes) -> Tensor:
        return passes(self.online)

    def descents(self, task: TaskInfo) -> Sequence[Phase]:
        """The classifier alone at first: rows that begin anew would pull the tuning away from what it knows."""
        c = self.config
        if not self.tasks_seen:
            return super().descents(task)
        alone, weight = min(c.freeze_epochs, c.epochs), 1 - c.kept(task.size)

        def accumulated() -> Sequence[tuple[Tuning, Tuning, float]]:
            return [(self.offline, self.online, weight)]

        first = c.recipe(clip=c.clip, epochs=alone)
        rest = c.recipe(clip=c.clip, epochs=c.epochs - alone, rate=c.follow_rate)
        classifier, online = (functools.partial(loss, task) for loss in (self.classifier_loss, self.loss))
        return [
            Optimise("classifier", classifier, self.head.parameters, first, averaged=accumulated),
            Optimise(self.trains, online, self.trained, rest, averaged=accumulated),
        ]

    def classifier_loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        with torch.no_grad():
            feature = self.feature(batch.passes)
        return {"classification": self.classification(task, feature, batch.labels)}

    def close(self) -> None:
        if not self.tasks_seen:
            self.offline.follow(self.online, 1.0)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        """Of the ensemble as logarithms of p."""
        online = self.head(passes(self.online))
        offline = self.head(passes(self.offline)) if self.tasks_seen > 1 else online
        ensemble = torch.maximum(online.log_softmax(1), offline.log_softmax(1))
        return {"ensemble": ensemble, "online": online, "offline": offline}

    def forget(self, classes: Sequence[int]) -> list[str]:
        return [
            *super().forget(classes),
            f"Both tunings ({self.config.tuning}) were trained on every task and stay as they are; so do the rows of "
            "other classes, which were trained beside these.",
            "The scores of each expert stay what they were. Their ensemble compares probabilities, which fewer classes "
            "now share, so it changes a little.",
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.online, self.offline) if self.tasks_seen > 1 else (self.online,)

    def describe(self) -> dict[str, Any]:
        """Bytes of the tunings, and how far apart they are, as a part of the online one's length."""
        online, offline = (
            torch.cat([p.detach().flatten() for p in tuning.parameters()]) for tuning in (self.online, self.offline)
        )
        return {
            "bytes": {"tunings": self.online.nbytes + self.offline.nbytes},
            "apart": float((online - offline).norm() / online.norm()),
        }
