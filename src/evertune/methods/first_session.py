"""What RanPAC and APER share: a tuning trained on the first task alone, then frozen (SAFE spec §4.2, §5.1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.heads import CosineHead
from evertune.methods.config import Config, option, require
from evertune.methods.method import Batch, Generators, Method, Optimise, Phase, Recipe, Solve, TaskInfo
from evertune.tuning import make_tuning


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Config):
    """Options of a method that trains a tuning with a cosine head."""

    tuning: str = option("adapter", "kind of tuning: adapter, lora, ssf, vpt; its own options are tuning.<name>")
    blocks: str = option("all", "which blocks are tuned: all, 0-2, 0,3,7 …")
    tuning_options: dict[str, Any] = option({}, "options of the tuning")  # noqa: RUF009
    epochs: int = option(20, "epochs in the first session")
    batch_size: int = option(48, "images per step")
    optimizer: Literal["sgd", "adam"] = option("sgd", "sgd (with momentum), or adam with decoupled decay")
    rate: float = option(0.01, "learning rate at the start")
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(5e-4, "weight decay")
    decay: Literal["matrices", "all"] = option(
        "matrices", "what decays: matrices only, or all (released; pulls SSF's scales to 0 instead of 1, T10)"
    )
    schedule: Literal["cosine", "constant"] = option("cosine", "rate: cosine to 0 over the epochs, or constant")
    sigma_init: float = option(1.0, "scale of the cosine head at the start")

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"epochs={self.epochs} must not be negative.")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1.")
        require(self.rate > 0, f"rate={self.rate} must be positive.")
        require(0 <= self.momentum < 1, f"momentum={self.momentum} must be at least 0 and below 1.")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative.")
        require(self.sigma_init > 0, f"sigma_init={self.sigma_init} must be positive.")

    def recipe(self, **changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "rate": self.rate,
            "optimizer": self.optimizer,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "decay": self.decay,
            "schedule": self.schedule,
        }
        return Recipe(**values | changes)


ZERO_PROMPTS = {"vpt": {"init": "zeros"}}
"""Released code starts prompts at zero, where all tokens of a block stay one (T9)."""

EVERTUNE: dict[str, Any] = {
    "tuning": "lora",
    "tuning_options": {"rank": 5, "alpha": 5.0, "targets": "qkv"},
    "blocks": "0-2",
    "epochs": 10,
    "optimizer": "adam",
    "rate": 5e-3,
    "weight_decay": 0.0,
    "sigma_init": 10.0,
}
"""The training part of every ``evertune`` preset; docs/defaults.md says how it was chosen."""


class FirstSession(Method):
    """Phase 1: cross-entropy on the cosine head, first task only; the head is discarded."""

    config: TuningConfig

    def __init__(self, config: TuningConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.tuning = make_tuning(config.tuning, shape, generators.init, blocks=config.blocks, **config.tuning_options)
        self.head = CosineHead(width, config.sigma_init)

    def first_session(self, task: TaskInfo) -> list[Phase]:
        if task.index or not self.config.epochs:
            return [] if task.index else [Solve("freeze", self._freeze)]
        return [
            Solve("draw head", lambda: self.head.draw(task.seen, self.generators.init)),
            Optimise("first session", self.loss, self.parameters_trained, self.config.recipe()),
            Solve("freeze", self._freeze),
        ]

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"classification": F.cross_entropy(self.head(batch.passes(self.tuning)), batch.labels)}

    def parameters_trained(self) -> Iterable[nn.Parameter]:
        return itertools.chain(self.tuning.parameters(), self.head.parameters())

    def _freeze(self) -> None:
        self.tuning.freeze()
        self.head.weight = nn.Parameter(torch.zeros(0, self.width), requires_grad=False)

    def restored(self) -> None:
        if self.tasks_seen:
            self.tuning.freeze()
