"""Probes: how far a linear classifier comes on frozen features. Nothing below it learns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.heads import LinearHead, RidgeHead, align
from evertune.methods.config import option, require
from evertune.methods.method import Batch, Collect, Generators, Method, Phase, Solve, TaskInfo, register
from evertune.methods.ridge import RidgeGrid
from evertune.methods.training import LocalConfig
from evertune.statistics import Gram, TaskFeatures
from evertune.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(LocalConfig):
    """Options of the linear probe."""

    epochs: int = option(20, "epochs of each task")
    batch_size: int = option(48, "features per step")
    relative_rate: float = option(12.5, "learning rate times mean ‖φ‖² at the start; it falls along a cosine")
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(0.0, "weight decay")

    presets = {"evertune": {}}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        require(self.relative_rate > 0, f"relative_rate={self.relative_rate} must be positive.")
        require(0 <= self.momentum < 1, f"momentum={self.momentum} must be at least 0 and below 1.")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative.")


@register
class LinearProbe(Method):
    """softmax(W φ_0(x) + b), descended on task by task over features that were passed once: forgetting as it is where
    no feature changes."""

    name = "linear_probe"
    remembers = False
    config_type = LinearProbeConfig
    config: LinearProbeConfig

    def __init__(self, config: LinearProbeConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.task, self.head = TaskFeatures(), LinearHead(width)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [
            Solve("grow head", lambda: self.head.grow(len(task.new), self.generators.init)),
            Collect("features", lambda batch: self.task.add(batch.passes(), batch.labels)),
            Solve("descent", lambda: self._descend(task), self.head.parameters),
        ]

    def _descend(self, task: TaskInfo) -> None:
        c = self.config
        features, y = self.task.take()
        x, rest = features.float(), torch.zeros(0, dtype=torch.long)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            """Every example once, then once more in another order …"""
            nonlocal rest
            while len(rest) < n:
                rest = torch.cat([rest, torch.randperm(len(y), generator=self.generators.sampling)])
            rows, rest = rest[:n].to(y.device), rest[n:]
            return x[rows], y[rows]

        align(
            self.head,
            draw,
            epochs=c.epochs,
            steps=-(-len(y) // c.batch_size),
            batch=c.batch_size,
            rate=c.relative_rate / max(float(x.square().sum(1).mean()), 1e-12),
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            loss=functools.partial(c.cross_entropy, present=task.present),
        )

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"classifier": self.head(passes())}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.head.drop(classes)
        return ["Rows of other classes were trained beside these and stay as they are."]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None,)


@dataclass(frozen=True, kw_only=True)
class RidgeProbeConfig(RidgeGrid):
    """Options of the ridge probe."""

    ridge_low: int = option(-6, "smallest candidate of the ridge strength over the mean ‖φ‖², as a power of ten")
    ridge_high: int = option(1, "largest candidate, as a power of ten")

    presets = {"evertune": {}}  # noqa: RUF012


@register
class RidgeProbe(Method):
    """G += ΦᵀΦ, Q += ΦᵀY; A = (G + λI)⁻¹ Q, λ by generalised cross-validation; predict argmax_c φ_0(x)ᵀ A_c.

    Sums are all it knows, so it is the ridge on all data at once whatever the tasks were and in which order they came.
    """

    name = "ridge_probe"
    config_type = RidgeProbeConfig
    config: RidgeProbeConfig

    def __init__(self, config: RidgeProbeConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.gram, self.ridge = Gram(), RidgeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [Collect("statistics", self._collect), Solve("ridge", self._solve)]

    def _collect(self, batch: Batch) -> None:
        self.gram.update(batch.passes(), batch.labels)

    def _solve(self) -> None:
        c = self.config
        self.ridge.solve(self.gram, self.gram.cross_validated(c.grid) if c.strength is None else c.strength)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"ridge": self.ridge(passes())}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.gram.drop(classes)
        self.ridge.drop(classes)
        return [self.gram.stays]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None,)

    def describe(self) -> dict[str, Any]:
        return {"ridge strength": float(self.ridge.strength)}
