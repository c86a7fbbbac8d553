"""Factors of covariances, and draws that have them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def principal(covariance: Tensor, rank: int) -> Tensor:
    """F [L, min(rank, L)]: F Fᵀ is the best approximation of that rank to the covariance [L, L]."""
    values, vectors = torch.linalg.eigh(covariance)
    return cast(Tensor, vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt())


def cholesky(covariance: Tensor, jitter: float) -> Tensor | None:
    """The Cholesky factor [L, L] in float64 of a covariance; None where it is not positive definite.

    Rounding to float32 may outweigh the variance that was added where some are in the thousands; then ``jitter`` is
    added, ten times as much each time, until that suffices, but never more than the mean variance, which would be
    another distribution.
    """
    covariance = covariance.to(torch.float64, copy=True)
    limit = float(covariance.diagonal().mean())
    root, failed = torch.linalg.cholesky_ex(covariance)
    while failed.item() and jitter <= limit:
        covariance.diagonal().add_(jitter)
        root, failed = torch.linalg.cholesky_ex(covariance)
        jitter *= 10
    return None if failed.item() else cast(Tensor, root)


def coloured(noise: Tensor, entry: Tensor, roots: Tensor) -> Tensor:
    """A z [n, L] for each z of ``noise`` [n, q], with A [L, q] the one in ``roots`` [E, L, q] of its entry.

    Draws of one entry stand together, filled up to the most any entry has: one batched product.
    """
    counts = entry.bincount(minlength=len(roots))
    order = entry.argsort(stable=True)
    place = torch.empty_like(entry)
    place[order] = torch.arange(len(entry), device=entry.device) - (counts.cumsum(0) - counts)[entry[order]]
    padded = noise.new_zeros(len(roots), int(counts.max()), noise.shape[1])
    padded[entry, place] = noise
    return (padded @ roots.mT)[entry, place]
