"""How far a task is from those seen: reuse what was shared with one of them, or open anew (HiDe-PET spec §11.1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.errors import ConfigError, TrainingError
from evertune.statistics.clusters import clusters, moments
from evertune.statistics.gram import CHUNK
from evertune.statistics.growing import Growing, moved, others


@dataclass(frozen=True)
class Match:
    """The past task nearest to a new one, its domain, how far it is in [0, 2], and the distances [N, T] behind that."""

    task: int
    domain: int
    distance: float
    distances: Tensor


class TaskCentroids(Growing):
    """Centroids of each task's features under the plain backbone, and the domain it was given, counted from 0.

    Parameters
    ----------
    k
        Centroids per task, found by k-means; fewer where a task has fewer distinct samples.
    order
        The distance to a task is the ``order``-th smallest among the new samples, as released: a handful of near
        samples makes a task near. With fewer samples it is the largest.
    quantile
        Given, this quantile of the distances takes the place of the order statistic; 0.5 is the median.

    Raises
    ------
    ConfigError
        ``k`` or ``order`` below 1, or ``quantile`` outside [0, 1].
    """

    of_data: ClassVar[dict[str, str]] = {
        "centroids": "centroids of each task",
        "owner": "nothing: bookkeeping",
        "domain": "nothing: bookkeeping",
    }
    centroids: Tensor
    owner: Tensor
    domain: Tensor

    def __init__(self, k: int = 10, *, order: int = 5, quantile: float | None = None) -> None:
        super().__init__()
        if k < 1 or order < 1:
            raise ConfigError(f"Task distances need at least 1: k={k}, order={order}.")
        if quantile is not None and not 0 <= quantile <= 1:
            raise ConfigError(f"Task distances: quantile={quantile} must lie between 0 and 1.")
        self.k, self.order, self.quantile = k, order, quantile
        self.register_buffer("centroids", torch.zeros(0, 0))  # [Σ k, L]
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long))  # [Σ k] task of each
        self.register_buffer("domain", torch.zeros(0, dtype=torch.long))  # [T]

    @property
    def tasks(self) -> int:
        return len(self.domain)

    @property
    def domains(self) -> int:
        return int(self.domain.max()) + 1 if self.tasks else 0

    def nearest(self, features: Tensor) -> Match | None:
        """The past task to which most of ``features`` [N, L] are nearest; ``None`` while there is none.

        Where as many samples choose two tasks, the earlier counts.

        Raises
        ------
        TrainingError
            No features, or NaN or infinity among them.
        """
        features = _checked(features)
        if not self.tasks:
            return None
        distances = torch.cat([self.distances(rows) for rows in torch.split(features, CHUNK)])
        task = int(distances.argmin(1).bincount(minlength=self.tasks).argmax())
        ascending = distances[:, task].sort().values
        if self.quantile is None:
            distance = ascending[min(self.order, len(ascending)) - 1]
        else:
            distance = ascending.quantile(self.quantile)
        return Match(task, int(self.domain[task]), float(distance), distances)

    def distances(self, features: Tensor) -> Tensor:
        """Of ``features`` [n, L] to each task, [n, T] in float64.

        That of a sample's direction to the nearest direction among the task's centroids, ‖û/‖û‖ − q/‖q‖‖.
        """
        directions, own = (F.normalize(x.double(), dim=1) for x in (features, self.centroids))
        # By products, as for larger batches otherwise, the last bits would depend on who else is asked for.
        distances = torch.cdist(directions, own, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.new_full((len(distances), self.tasks), 2.0)  # rounding may put them above
        return nearest.scatter_reduce_(1, self.owner.to(nearest.device).expand_as(distances), distances, "amin")

    def assign(self, match: Match | None, threshold: float) -> int:
        """The domain of a new task: that of its match within ``threshold``, else a new one; 0 for the first task."""
        return self.domains if match is None or match.distance > threshold else match.domain

    def add(self, features: Tensor, domain: int, generator: torch.Generator) -> None:
        """Keep the centroids of a task's ``features`` [N, L] under its ``domain``. The generator seeds k-means.

        Raises
        ------
        TrainingError
            No features, or NaN or infinity among them.
        """
        features = _checked(features)
        means, _, _ = moments(features, clusters(features, self.k, generator))
        means = means.to(self.centroids)
        self.centroids = torch.cat([self.centroids, means]) if self.tasks else means
        self.owner = torch.cat([self.owner, self.owner.new_full((len(means),), self.tasks)])
        self.domain = torch.cat([self.domain, self.domain.new_tensor([domain])])

    def forget(self, tasks: Collection[int]) -> list[int]:
        """Remove the centroids of ``tasks``, and the domains that no task is left of, which are given.

        Tasks and domains behind them move down.
        """
        domains = range(self.domains)
        kept = others(self.tasks, tasks).to(self.domain.device)
        own = torch.isin(self.owner, kept)
        self.centroids, self.owner = self.centroids[own], moved(self.owner[own], tasks)
        left = self.domain[kept]
        gone = sorted(set(domains) - set(left.tolist()))
        self.domain = moved(left, gone)
        return gone


def _checked(features: Tensor) -> Tensor:
    """``features`` [N, L] in float64, of which there are some and all are finite."""
    if not len(features) or not features.isfinite().all():
        raise TrainingError(
            f"A task's distance needs finite features, but of its {len(features)} rows "
            f"{int((~features.isfinite()).any(1).sum())} hold NaN or infinity; look at the task's data."
        )
    return features.detach().double()
