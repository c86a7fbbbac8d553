"""Clusters of features, and their means and variances."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def clusters(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The cluster [N] of each row of ``features`` [N, L] by k-means: k-means++ starts, the best of 10, Euclidean.

    Where there are at most ``k`` distinct rows, each is a cluster of its own.
    """
    from sklearn.cluster import KMeans  # takes most of a second to import

    distinct, own = torch.unique(features, dim=0, return_inverse=True)
    if len(distinct) <= k:
        return cast(Tensor, own)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    labels = KMeans(k, n_init=10, random_state=seed).fit_predict(features.cpu().numpy())
    return torch.as_tensor(labels, dtype=torch.long, device=features.device)


def moments(features: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means [K, L], population variances [K, L] and sizes [K] of the clusters that ``assignment`` [N] names."""
    means, variances, sizes = [], [], []
    for cluster in torch.unique(assignment):
        mean, deviations = centred(features[assignment == cluster])
        means.append(mean)
        variances.append(deviations.square().mean(0))
        sizes.append(len(deviations))
    return torch.stack(means), torch.stack(variances), torch.tensor(sizes)


def centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [L] of ``rows`` [n, L], and their deviations from it, which are exactly 0 where all rows are equal."""
    shifted = rows - rows[0]
    shift = shifted.mean(0)
    return rows[0] + shift, shifted - shift
