"""Ridge regression on randomly projected features (RanPAC; SAFE spec §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evertune.statistics import CHUNK, Gram, Growing, TaskFeatures, holdout, select_ridge


def random_projection(width: int, features: int, generator: torch.Generator) -> Tensor:
    """R [L, M] with entries from N(0, 1), without scaling; drawn once and shared by all learners and tasks (T19)."""
    return torch.randn(width, features, generator=generator)


def project(features: Tensor, projection: Tensor) -> Tensor:
    """h = ReLU(φ R), [B, M], in float32 or wider; with an empty projection (M = 0) φ itself ("no RPs")."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return torch.relu(features @ projection.to(features.dtype)) if projection.numel() else features


FEWEST_HELD = 30
"""With fewer held-out rows their error is noise, which may be decades off (T6): every row is left out once instead."""


@dataclass(frozen=True)
class RidgeOptions:
    """How λ is found.

    ``strength`` fixes it; otherwise it is the best of ``grid`` on ``fraction`` of the current task, drawn by class
    (``stratified``) or not (released). Where the fraction is 0 or a stratified part is small, every row is left out
    once. With ``relative`` the candidates are multiples of the mean ‖h‖² of the task, so that one grid serves every
    backbone and number of features (T20).
    """

    grid: tuple[float, ...]
    strength: float | None = None
    fraction: float = 0.2
    stratified: bool = True
    relative: bool = False


class RidgeHead(Growing):
    """h(x)ᵀ A over the classes seen, with A = (G + λI)⁻¹ Q of the statistics it is solved from."""

    of_data: ClassVar[dict[str, str]] = {
        "A": "weights of each class, solved from second moments and class means",
        "strength": "a number chosen on the data",
    }
    by_class: ClassVar[dict[str, int]] = {"A": 1}
    A: Tensor
    strength: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", torch.zeros(0, 0))
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))  # the λ it was solved with

    def forward(self, h: Tensor) -> Tensor:
        """Projected features [B, M] to scores [B, K]."""
        return h.to(self.A.dtype) @ self.A

    @property
    def classes(self) -> int:
        return self.A.shape[1]

    def choose(
        self,
        features: Tensor,
        labels: Tensor,
        projection: Tensor,
        options: RidgeOptions,
        generator: torch.Generator,
    ) -> float:
        """λ for the current task's features [N, L] and labels [N]."""
        if options.strength is not None:
            return options.strength
        fit, held = holdout(labels, options.fraction, generator, stratified=options.stratified)
        if options.stratified and len(held) < FEWEST_HELD:
            fit, held = torch.arange(len(labels)), held[:0]
        fit, held = fit.to(features.device), held.to(features.device)
        grid = options.grid
        if options.relative:
            parts = torch.split(features, CHUNK)
            energy = sum(float(project(part, projection).square().sum()) for part in parts) / len(features)
            grid = tuple(energy * value for value in grid)
        return select_ridge(features, labels, grid, fit, held, lambda f: project(f, projection)).strength

    def fit(
        self,
        task: TaskFeatures,
        statistics: Gram,
        projection: Tensor,
        options: RidgeOptions,
        generator: torch.Generator,
    ) -> None:
        """Add a task's features to the ``statistics``, find λ on them, and solve; the features are cleared."""
        task.close()
        for phi, y in task.chunks():
            statistics.update(project(phi, projection), y)
        self.solve(statistics, self.choose(task.features, task.labels, projection, options, generator))
        task.clear()

    def solve(self, statistics: Gram, strength: float) -> None:
        """Take A from ``statistics`` with λ = ``strength``."""
        self.strength.fill_(strength)
        # Contiguous, as it will be after loading: products in another layout differ in the last bit.
        self.A = statistics.solve(strength).float().contiguous()
