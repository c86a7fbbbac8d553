"""SLCA, slow learner with classifier alignment (Zhang et al., ICCV 2023, arXiv 2303.05118), and what SLCA++ adds (Zhang
et al., arXiv 2408.08295): sequential fine-tuning at a small rate, and a classifier aligned on remembered Gaussians."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead, align, normalised
from evertune.methods.config import option, require
from evertune.methods.losses import reverse_cross_entropy, task_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import OURS_LORA, AlignedConfig
from evertune.statistics import ClassGaussians, TaskFeatures
from evertune.tuning import Tuning

PAPER: dict[str, Any] = {"tuning": "full", "schedule": "step", "decay": "all", "batch_size": 128}
PLUS: dict[str, Any] = PAPER | {
    "tuning": "lora", "tuning_options": {"rank": 4, "alpha": 3.2, "targets": "qkv"},
    "first": 0.5, "slow": 0.1, "schedule": "cosine", "reverse": 0.1, "mean_decay": 0.0, "shrink": 0.02,
}  # fmt: skip
"""The released CIFAR-100 settings; docs/methods/slca.md says what LoRA leaves out of SLCA++."""


@dataclass(frozen=True, kw_only=True)
class SLCAConfig(AlignedConfig):
    """Options of SLCA."""

    slow: float = option(0.01, "factor on the tuning's rate")
    first: float | None = option(None, "the same in the first task, if it is another")
    milestone: int = option(18, "epochs after which schedule=step takes a tenth")
    reverse: float = option(0.0, "weight of the reverse cross-entropy, which makes the loss symmetric (SLCA++)")

    align: bool = option(True, "align the classifier; without, it is the slow learner alone")
    draws: int = option(256, "draws of each class in each of them, and in each batch of all classes")
    temperature: float | None = option(0.1, "τ of the logit normalisation, or none")
    mean_decay: float = option(0.1, "means are drawn 1 − this · (tasks since) / (tasks) times as long")
    shrink: float = option(0.0, "μ: draws are 1 + μ · (tasks since) times smaller, rows larger (SLCA++)")

    presets = {  # noqa: RUF012
        "evertune": OURS_LORA | {"first": 1.0, "align_epochs": 30},
        "paper": PAPER,
        "slca++": PLUS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "milestone", "draws"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("slow", "reverse", "shrink"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        require(self.first is None or self.first >= 0, f"first={self.first} must not be negative, or none.")
        require(self.temperature is None or self.temperature > 0, f"temperature={self.temperature} must be positive.")
        require(0 <= self.mean_decay <= 1, f"mean_decay={self.mean_decay} must be between 0 and 1.")


@register
class SLCA(Method):
    """The tuning descends slowly, on the classes of each task alone and beside their rows of the classifier. A copy of
    the classifier answers, aligned anew after each task on draws of all classes."""

    name = "slca"
    paper = (
        "Gengwei Zhang, Liyuan Wang, Guoliang Kang, Ling Chen, Yunchao Wei. *SLCA: Slow Learner with Classifier "
        "Alignment for Continual Learning on a Pre-trained Model.* ICCV 2023. [arXiv "
        "2303.05118](https://arxiv.org/abs/2303.05118)"
    )
    config_type = SLCAConfig
    config: SLCAConfig

    def __init__(self, config: SLCAConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = config.fresh(shape, generators.init)
        self.head, self.aligned = LinearHead(width), LinearHead(width)
        self.own = LinearHead(width)  # the rows of a task's classes, while it is learned
        self.features = TaskFeatures()
        self.gaussians = ClassGaussians(config.statistics)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        c = self.config
        factor = c.slow if task.index or c.first is None else c.first
        learn: list[Phase] = [
            Solve("open", functools.partial(self._open, task)),
            Optimise(
                "slow learner",
                functools.partial(self.loss, task),
                lambda: [*self.tuning.parameters(), *self.own.parameters()],
                c.recipe(drop=c.milestone),
                lambda: [(self.tuning.parameters(), factor)],
            ),
            Solve("close", functools.partial(self._close, task)),
        ]
        if not c.align:
            return learn
        return [
            *learn,
            Collect("features", lambda batch: self.features.add(batch.passes(self.tuning), batch.labels)),
            Solve("alignment", functools.partial(self._align, task)),
        ]

    # -- the slow learner ----------------------------------------------------------------------------------------------

    def _open(self, task: TaskInfo) -> None:
        self.head.grow(len(task.new), self.generators.init)
        self.own = self.head.select(task.present)

    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of the task's classes; rows of others are not here, so not even weight decay moves them."""
        logits = self.own(batch.passes(self.tuning))
        terms = {"classification": task_cross_entropy(logits, batch.labels, task.present)}
        if self.config.reverse:
            terms["reverse"] = self.config.reverse * reverse_cross_entropy(logits, batch.labels, task.present)
        return terms

    def _close(self, task: TaskInfo) -> None:
        self.head.replace(task.present, self.own)
        self.own = self.own.select(())

    # -- classifier alignment ------------------------------------------------------------------------------------------

    def _align(self, task: TaskInfo) -> None:
        """Gaussians of the task's classes; then the classifier as its tasks left it learns all classes together."""
        c, gaussians = self.config, self.gaussians
        gaussians.learn(self.features, task.index, self.generators.sampling)
        self.aligned.load_state_dict(self.head.state_dict())
        if not task.index:
            return
        owner = gaussians.last_task

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(normalised(logits, owner, c.temperature) if c.temperature else logits, labels)

        align(
            self.aligned,
            self._draw,
            epochs=c.align_epochs,
            steps=gaussians.entries,
            batch=c.draws,
            rate=c.align_rate,
            weight_decay=c.weight_decay,
            loss=loss,
        )
        gaussians.rest()
        with torch.no_grad():
            self.aligned.weight.mul_(1 + c.shrink * (task.index - owner[:, None]))

    def _draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Features [n, L] of all classes equally often, and the classes [n].

        The older a class, the shorter its mean: by 1 − d · age / T (as released, for SLCA), or all of the draw by
        1 + (μ ± 0.01) · age (SLCA++).
        """
        c, gaussians = self.config, self.gaussians
        x, entry = gaussians.sample(n, self.generators.sampling, equally=True)
        tasks = int(gaussians.entry_task.max()) + 1
        age = (tasks - 1 - gaussians.entry_task)[entry][:, None]
        x = x - c.mean_decay * age / tasks * gaussians.centres[entry]
        if c.shrink:
            around = 0.02 * (torch.rand(n, 1, generator=self.generators.sampling).to(x) - 0.5)
            x = x / (1 + (c.shrink + around) * age)
        return x, gaussians.entry_class[entry]

    # -- prediction ----------------------------------------------------------------------------------------------------

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        head = self.aligned if self.config.align else self.head
        return {"classifier": head(passes(self.tuning))}

    def forget(self, classes: Sequence[int]) -> list[str]:
        for head in (self.head, self.aligned):
            head.drop(classes)
        self.gaussians.forget(classes)
        return [
            f"The tuning ({self.tuning.kind}) was trained on every task and stays as it is; so do the rows of other "
            "classes, which were trained beside these or aligned with draws of them."
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.tuning,)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"tuning": self.tuning.nbytes, "statistics": self.gaussians.nbytes}}
