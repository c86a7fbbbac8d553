"""How far the features of tasks are from each other, without a Jacobian (NTK-CL spec §3.4, D10 and D12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.errors import DataError
from evertune.statistics import ClassMeans


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """The mean [C, L], in float64, of the features [n, L] of each class that occurs, in the order of labels."""
    means = ClassMeans()
    means.update(features, torch.unique(labels, return_inverse=True)[1])
    return means.sums / means.counts[:, None]


def basis(vectors: Tensor, rank: int | None = None) -> Tensor:
    """U [L, r] orthonormal, the leading directions of vectors [m, L]; all that they span unless ``rank`` says how many.

    Raises
    ------
    DataError
        The vectors span fewer directions than that.
    """
    _, sizes, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
    spanned = (
        int((sizes > max(vectors.shape) * torch.finfo(torch.float32).eps * sizes.max()).sum()) if len(sizes) else 0
    )
    wanted = spanned if rank is None else rank
    if not 1 <= wanted <= spanned:
        raise DataError(
            f"A basis of {wanted} directions was asked for, and {len(vectors)} samples span {spanned}: ask for a "
            "smaller one, or give more samples."
        )
    return cast(Tensor, directions)[:wanted].T


def principal_angles(one: Tensor, other: Tensor) -> Tensor:
    """Angles in degrees, the smallest first, between the spans of two orthonormal bases [L, r] and [L, s].

    Small ones by their sines, for cosines near 1 have lost them (Björck & Golub 1973).
    """
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    cosines = torch.linalg.svdvals(one.T @ other).clamp(0, 1)
    sines = torch.linalg.svdvals(other - one @ (one.T @ other)).flip(0).clamp(0, 1)
    return torch.rad2deg(torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos()))


@dataclass(frozen=True)
class FeatureOverlap:
    """D10 of all pairs of tasks, [T, T]: row t is the task whose class means are met, column s whose features.

    ``smallest_angle`` and ``mean_angle`` (degrees) are between the spans of their class means; ``inside`` is the mean
    ‖Uᵀẑ‖² of the features of s on the basis U of t; ``mean_cosine`` and ``max_cosine`` are of |cos| between features of
    s and class means of t. ``kernel`` is D12's normalised overlap: ‖ẐẐᵀ‖_F of the pair, scaled as D3.
    """

    smallest_angle: Tensor
    mean_angle: Tensor
    inside: Tensor
    mean_cosine: Tensor
    max_cosine: Tensor
    kernel: Tensor


def feature_overlap(features: Tensor, labels: Tensor, tasks: Tensor, rank: int | None = None) -> FeatureOverlap:
    """D10 and D12 of features [n, L] with class indices [n] and task numbers [n] from 0.

    ``rank`` is how many leading directions stand for the class means of a task; all by default.

    Raises
    ------
    DataError
        A task has too few samples for a basis of that rank.
    """
    unit = F.normalize(features.double(), dim=1)
    members = [tasks == t for t in range(int(tasks.max()) + 1)]
    means = [class_means(unit[own], labels[own]) for own in members]
    bases = [basis(m, rank) for m in means]
    count = len(members)
    found = {name: torch.zeros(count, count, dtype=torch.float64) for name in FeatureOverlap.__annotations__}
    for t in range(count):
        for s in range(count):
            z = unit[members[s]]
            angles = principal_angles(bases[t], bases[s])
            cosines = (z @ F.normalize(means[t], dim=1).T).abs()
            values = (
                angles[0], angles.mean(), (z @ bases[t]).square().sum(1).mean(), cosines.mean(), cosines.max(),
                (unit[members[t]] @ z.T).norm(),
            )  # fmt: skip
            for table, value in zip(found.values(), values, strict=True):
                table[t, s] = value
    own = found["kernel"].diagonal().sqrt().clone()
    found["kernel"] /= own[:, None] * own
    return FeatureOverlap(**found)
