"""Options that methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.methods.config import Config, option, require
from evertune.methods.losses import masked_cross_entropy
from evertune.methods.method import Recipe
from evertune.tuning import Tuning, make_tuning

OURS: dict[str, Any] = {"epochs": 10, "optimizer": "adam", "rate": 5e-3, "weight_decay": 0.0}
"""The training of the ``evertune`` presets; docs/defaults.md says how it was chosen."""
OURS_LORA: dict[str, Any] = OURS | {
    "tuning": "lora", "tuning_options": {"rank": 5, "alpha": 5.0, "targets": "qkv"}, "blocks": "0-2",
}  # fmt: skip
"""The same, and the tuning that it trains."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """Options of a method that descends on a loss."""

    epochs: int = option(20, "epochs of each task")
    batch_size: int = option(48, "images per step")
    optimizer: Literal["sgd", "adam"] = option("sgd", "sgd (with momentum), or adam with decoupled decay")
    rate: float = option(0.01, "learning rate at the start")
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(5e-4, "weight decay")
    decay: Literal["matrices", "all"] = option(
        "matrices", "what decays: matrices only, or all (released; pulls SSF's scales to 0 instead of 1, T10)"
    )
    schedule: Literal["cosine", "quarter", "step", "constant"] = option(
        "cosine",
        "rate: cosine to 0 over the epochs, a quarter of a cosine turn, a tenth at each milestone, or constant",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, f"epochs={self.epochs} must not be negative.")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1.")
        require(self.rate > 0, f"rate={self.rate} must be positive.")
        require(0 <= self.momentum < 1, f"momentum={self.momentum} must be at least 0 and below 1.")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative.")

    def recipe(self, **changes: Any) -> Recipe:
        """With some ``changes``; those that are None change nothing."""
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
        return Recipe(**values | {name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class TuningConfig(TrainingConfig):
    """Options of a method that trains a tuning."""

    tuning: str = option(
        "adapter", "kind of tuning: adapter, lora, ssf, vpt, token_mixing …; its own options are tuning.<name>"
    )
    blocks: str = option("all", "which blocks are tuned: all, 0-2, 0,3,7 …")
    tuning_options: dict[str, Any] = option({}, "options of the tuning")  # noqa: RUF009

    def fresh(self, shape: Shape, generator: torch.Generator) -> Tuning:
        """A tuning as these options want it, not trained yet."""
        return make_tuning(self.tuning, shape, generator, blocks=self.blocks, **self.tuning_options)


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(TrainingConfig):
    """Options of a method whose head starts from directions of length σ."""

    sigma_init: float = option(10.0, "scale of the cosine head at the start")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma_init > 0, f"sigma_init={self.sigma_init} must be positive.")


@dataclass(frozen=True, kw_only=True)
class AlignedConfig(TuningConfig):
    """Options of a method whose classifier is aligned on draws from Gaussians of all classes."""

    statistics: Literal["covariance", "variance", "lowrank"] = option(
        "covariance", "what is kept of a class's features beside their mean"
    )
    align_epochs: int = option(5, "epochs of the alignment; 0 leaves it out")
    align_rate: float = option(0.01, "rate of the alignment at the start")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.align_epochs >= 0, f"align_epochs={self.align_epochs} must not be negative.")
        require(self.align_rate > 0, f"align_rate={self.align_rate} must be positive.")


@dataclass(frozen=True, kw_only=True)
class LocalConfig(Config):
    """Options of a mark's cross-entropy."""

    local: bool = option(False, "cross-entropy of the task's classes alone; weight decay still moves the other rows")

    def cross_entropy(self, logits: Tensor, labels: Tensor, present: Sequence[int]) -> Tensor:
        """Of ``logits`` [B, K] over all classes seen, or over those ``present`` in the task."""
        return masked_cross_entropy(logits, labels, present) if self.local else F.cross_entropy(logits, labels)


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    """Of several modules, one after the other."""
    return [p for module in modules for p in module.parameters()]
