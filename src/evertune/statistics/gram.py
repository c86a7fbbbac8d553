"""Second moments kept instead of data, and the ridge problems solved from them (RanPAC, SAFE spec §5.2, §5.3).

Everything here is float64: with fewer samples than features the Gram matrix is singular, its small eigenvalues lie
below what float32 resolves, and the solution turns into noise without an error (SAFE spec, T3 and T15).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evertune.errors import TrainingError
from evertune.statistics.growing import Growing

EIGEN_LIMIT = 1024
"""Up to this many fitting samples one eigendecomposition serves every λ; beyond, a Cholesky factor per λ is cheaper."""

CHUNK = 4096
"""Rows lifted to M features at a time."""

RESOLVED = 1e-13
"""Smallest λ, relative to the trace of G, that a Cholesky factor in float64 resolves to a few digits."""

NOT_FINITE = "The features hold NaN or infinity, so no ridge can be solved: the tuning has diverged; lower its rate."


class Gram(Growing):
    """G = Σ h hᵀ [M, M], Q = Σ h yᵀ [M, K] and the count of each class [K]; K grows with the labels seen.

    The sums do not depend on the order or the batching of the examples.
    """

    of_data: ClassVar[dict[str, str]] = {
        "G": "second moments of all classes together",
        "Q": "class means, as sums (of one example: its feature)",
        "counts": "how many examples each class had",
    }
    by_class: ClassVar[dict[str, int]] = {"Q": 1, "counts": 0}
    stays: ClassVar[str] = (
        "G sums the second moments of all classes and cannot be divided among them: the examples of what is forgotten "
        "go on counting there, as examples of no class."
    )
    G: Tensor
    Q: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("G", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("Q", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))

    def update(self, h: Tensor, labels: Tensor) -> None:
        """Add features ``h`` [B, M] with class indices ``labels`` [B]."""
        h = h.to(self.G.device, torch.float64)
        labels = labels.to(self.G.device)
        classes = max(len(self.counts), int(labels.max()) + 1) if len(labels) else len(self.counts)
        if not len(self.G):
            self.G, self.Q = h.new_zeros(h.shape[1], h.shape[1]), h.new_zeros(h.shape[1], 0)
        if classes > len(self.counts):
            self.Q = torch.cat([self.Q, self.Q.new_zeros(len(self.Q), classes - self.Q.shape[1])], 1)
            self.counts = torch.cat([self.counts, self.counts.new_zeros(classes - len(self.counts))])
        self.G.addmm_(h.T, h)
        self.Q.index_add_(1, labels, h.T)
        self.counts += torch.bincount(labels, minlength=classes)

    def solve(self, strength: float) -> Tensor:
        """A = (G + λI)⁻¹ Q, [M, K]; the minimiser of Σ ‖hᵀA − y‖² + λ‖A‖² over all examples added.

        A λ below what float64 resolves of G is raised to that floor (:data:`RESOLVED`): below it, the directions in
        which there is no data would be filled with rounding errors.

        Raises
        ------
        TrainingError
            The features held NaN or infinity.
        """
        trace = self.G.diagonal().sum().item()
        if not math.isfinite(trace):
            raise TrainingError(NOT_FINITE)
        strength = max(strength, RESOLVED * trace, torch.finfo(torch.float64).tiny)
        while not (solution := _cholesky_solve(self.G, strength, self.Q)).isfinite().all():
            strength *= 10.0
        return solution

    def cross_validated(self, multiples: Sequence[float]) -> float:
        """The λ with the smallest generalised cross-validation error, among ``multiples`` of the mean ‖h‖².

        n ‖Y − HA‖² / (n − tr H(G + λI)⁻¹Hᵀ)² of all n examples added (Golub, Heath, Wahba, Technometrics 1979), which
        the sums tell without an example: leave-one-out with the leverage of each row replaced by the mean of all.

        Raises
        ------
        TrainingError
            The features held NaN or infinity.
        """
        trace, n = self.G.diagonal().sum().item(), int(self.counts.sum())
        if not math.isfinite(trace):
            raise TrainingError(NOT_FINITE)
        values, vectors = torch.linalg.eigh(self.G)
        values, moments = values.clamp_min(0), (vectors.T @ self.Q).square().sum(1)
        candidates = [multiple * trace / n for multiple in multiples]
        errors = []
        for strength in candidates:
            residual = n - (moments * (values + 2 * strength) / (values + strength) ** 2).sum().item()
            free = n - (values / (values + strength)).sum().item()
            errors.append(max(residual, 0.0) / free**2 if free > 0 else math.inf)
        return candidates[min(range(len(errors)), key=errors.__getitem__)]


@dataclass(frozen=True)
class Selection:
    """The ridge strength chosen, and the mean squared error of every candidate."""

    strength: float
    grid: tuple[float, ...]
    losses: tuple[float, ...]


def select_ridge(
    features: Tensor,
    labels: Tensor,
    grid: Sequence[float],
    fit_rows: Tensor,
    val_rows: Tensor,
    lift: Callable[[Tensor], Tensor] = lambda features: features,
) -> Selection:
    """The λ of ``grid`` with the smallest held-out mean squared error against one-hot targets.

    Parameters
    ----------
    features, labels
        Features [N, L] and class indices [N] of the current task. Classes that do not occur have no column in the
        one-hot target: they would only rescale the error.
    grid
        Candidate strengths.
    fit_rows, val_rows
        Disjoint row indices. With no validation row, leave-one-out errors on ``fit_rows`` are used instead.
    lift
        φ [·, L] to h [·, M], applied to a few thousand rows at a time.

    Notes
    -----
    With fewer fitting samples than features the N×N kernel is solved (dual), otherwise the M×M Gram (primal): each is
    the smaller and the better conditioned of the two there. A candidate whose system cannot be solved in float64 counts
    as infinitely bad, and not-a-number never wins (SAFE spec T3, T4).

    Raises
    ------
    TrainingError
        The features hold NaN or infinity, or no candidate gives a finite error.
    """
    if not features.isfinite().all():
        raise TrainingError(NOT_FINITE)
    present, columns = torch.unique(labels, return_inverse=True)
    y = torch.eye(len(present), dtype=torch.float64, device=features.device)[columns.to(features.device)]
    wide = lift(features[:1]).shape[1]
    fit, target, val, truth = features[fit_rows], y[fit_rows], features[val_rows], y[val_rows]
    if not len(val):
        losses = _leave_one_out(lift(fit).double(), target, grid)
    elif len(fit) <= wide:
        losses = _dual(lift(fit).double(), target, lift(val).double(), truth, grid)
    else:
        losses = _primal(fit, target, val, truth, grid, lift)
    losses = torch.where(losses.isfinite(), losses, torch.inf)
    best = int(losses.argmin())
    if not losses[best].isfinite():
        raise TrainingError(f"No ridge strength of {tuple(grid)} gives a finite error: add larger candidates.")
    return Selection(float(grid[best]), tuple(map(float, grid)), tuple(losses.tolist()))


def _dual(fit: Tensor, target: Tensor, val: Tensor, y: Tensor, grid: Sequence[float]) -> Tensor:
    """A = Hᵀ(HHᵀ + λI)⁻¹Y, so predictions need only the two kernels."""
    kernel, cross = fit @ fit.T, val @ fit.T
    if len(fit) <= EIGEN_LIMIT:
        values, vectors = torch.linalg.eigh(kernel)
        left, right = cross @ vectors, vectors.T @ target
        floor = torch.finfo(values.dtype).eps * values[-1] * len(fit)
        # Directions of eigenvalue zero carry no data (cross is zero there too): rounding must not be divided by λ.
        kept = (values > floor).to(values.dtype)
        return torch.stack([((left * (kept / (values.clamp_min(0) + s))) @ right - y).square().mean() for s in grid])
    return torch.stack([(cross @ _cholesky_solve(kernel, s, target) - y).square().mean() for s in grid])


def _primal(
    fit: Tensor, target: Tensor, val: Tensor, y: Tensor, grid: Sequence[float], lift: Callable[[Tensor], Tensor]
) -> Tensor:
    """The M×M system, with never more than ``CHUNK`` lifted rows in memory."""
    gram = moment = torch.zeros((), dtype=torch.float64, device=fit.device)
    for rows, targets in zip(torch.split(fit, CHUNK), torch.split(target, CHUNK), strict=True):
        h = lift(rows).double()
        gram, moment = gram + h.T @ h, moment + h.T @ targets
    solutions = [_cholesky_solve(gram, s, moment) for s in grid]
    losses = torch.zeros(len(solutions), dtype=torch.float64, device=fit.device)
    for rows, targets in zip(torch.split(val, CHUNK), torch.split(y, CHUNK), strict=True):
        h = lift(rows).double()
        losses += torch.stack([(h @ a - targets).square().sum() for a in solutions])
    return losses / y.numel()


def _leave_one_out(fit: Tensor, target: Tensor, grid: Sequence[float]) -> Tensor:
    """Exact leave-one-out errors: with C = (HHᵀ + λI)⁻¹, the residual of row i is (C Y)_i / C_ii."""
    values, vectors = torch.linalg.eigh(fit @ fit.T)
    right = vectors.T @ target
    losses = []
    for strength in grid:
        weight = 1 / (values.clamp_min(0) + strength)
        residual = (vectors * weight) @ right / ((vectors.square() * weight).sum(1, keepdim=True))
        losses.append(residual.square().mean())
    return torch.stack(losses)


def _cholesky_solve(matrix: Tensor, strength: float, right: Tensor) -> Tensor:
    """(matrix + λI)⁻¹ right, or infinity where that is not positive definite in float64."""
    system = matrix.clone()
    system.diagonal().add_(strength)
    factor, info = torch.linalg.cholesky_ex(system)
    return torch.full_like(right, torch.inf) if info.item() else torch.cholesky_solve(right, factor)
