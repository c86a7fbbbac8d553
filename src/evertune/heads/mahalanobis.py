"""Mahalanobis distances to classes with covariances of their own (FeCAM: Goswami et al., NeurIPS 2023, arXiv
2309.14062)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from evertune.statistics import ClassScatters

AT_ONCE = 1 << 23
"""Numbers in float64 that are held for some classes at a time: 64 MB."""

FLOOR = 1e-6
"""Added to the diagonal, relative to its mean: what a covariance of fewer examples than dimensions cannot resolve."""


def tukey(x: Tensor, power: float) -> Tensor:
    """sign(x) |x|^λ: Tukey's ladder of powers, continued to negative features."""
    return x if power == 1 else x.sign() * x.abs().pow(power)


def shrunk(covariances: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """Σ + γ₁ V₁ I + γ₂ V₂ (1 − I) for [k, L, L], with V₁ the mean variance and V₂ the mean covariance of Σ.

    A covariance again if γ₂ ≤ γ₁, since −V₁/(L − 1) ≤ V₂ ≤ V₁.
    """
    width = covariances.shape[-1]
    diagonals = covariances.diagonal(dim1=1, dim2=2)
    own = diagonals.mean(1)
    between = (covariances.sum((1, 2)) - diagonals.sum(1)) / max(width * (width - 1), 1)
    result = covariances + gamma2 * between[:, None, None]
    result.diagonal(dim1=1, dim2=2).add_((gamma1 * own - gamma2 * between)[:, None])
    return result


def correlations(covariances: Tensor) -> Tensor:
    """Σ_ij / (σ_i σ_j), [k, L, L]: after it, distances to different classes can be compared."""
    deviations = covariances.diagonal(dim1=1, dim2=2).sqrt()
    return covariances / (deviations[:, :, None] * deviations[:, None, :])


def mahalanobis(x: Tensor, classes: ClassScatters, gamma1: float, gamma2: float, *, normalised: bool = True) -> Tensor:
    """(x − μ_c)ᵀ Σ_c⁻¹ (x − μ_c) for features [B, L] and all classes, [B, K], in float64.

    Σ_c is shrunk and, if ``normalised``, turned into correlations. Of diagonals, whose correlations would all be 1, the
    mean is made 1 instead. So it is of one Σ that all classes share, which has nothing to be compared with. Few classes
    at a time, so that memory does not grow with K.
    """
    x, means = x.to(classes.means), classes.means
    if classes.spread == "common":  # one factor whitens features and means alike
        shared = classes.covariances(0, 1)
        shared = shared / shared[0].diagonal().mean() if normalised else shared
        root = _root(shared, gamma1, gamma2, normalised=False)[0]
        white, centres = (torch.linalg.solve_triangular(root, z.T, upper=False).T for z in (x, means))
        return torch.cdist(white, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = x.shape[1]
    step = max(AT_ONCE // (width * (len(x) + width)), 1)
    parts = []
    for start in range(0, len(means), step):
        apart = x - means[start : start + step, None]  # [k, B, L]
        covariances = classes.covariances(start, start + step)
        if classes.spread == "diagonal":
            apart = apart / _deviations(covariances, gamma1, normalised)[:, None]
            parts.append(apart.square().sum(2))
        else:
            root = _root(covariances, gamma1, gamma2, normalised)
            parts.append(torch.linalg.solve_triangular(root, apart.mT, upper=False).square().sum(1))
    return torch.cat(parts).T


def _root(covariances: Tensor, gamma1: float, gamma2: float, normalised: bool) -> Tensor:
    """Cholesky factors [k, L, L] of what Σ_c become."""
    result = shrunk(covariances, gamma1, gamma2)
    diagonals = result.diagonal(dim1=1, dim2=2)
    diagonals.add_(FLOOR * diagonals.mean(1, keepdim=True))
    return cast(Tensor, torch.linalg.cholesky(correlations(result) if normalised else result))


def _deviations(variances: Tensor, gamma1: float, normalised: bool) -> Tensor:
    """Standard deviations [k, L] of what diagonals become."""
    result = variances + (gamma1 + FLOOR) * variances.mean(1, keepdim=True)
    return (result / result.mean(1, keepdim=True) if normalised else result).sqrt()
