"""Gaussians kept of classes instead of their data, to draw features from again (HiDe-PET spec §8)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from evertune.errors import ConfigError, TrainingError, nearest
from evertune.statistics.clusters import centred, clusters, moments
from evertune.statistics.covariance import cholesky, coloured, principal
from evertune.statistics.features import TaskFeatures
from evertune.statistics.growing import Growing, moved

JITTER = 1e-4
"""Variance added in every direction, once: when a class is stored, or with clusters when they are drawn from."""

SPREADS: dict[str, tuple[str, ...]] = {
    "centroids": ("variances",),
    "covariance": ("covariances",),
    "variance": ("diagonals",),
    "lowrank": ("factors", "diagonals"),
}
"""The buffers each mode keeps beside the means; they tell whose a stored state is."""

OF_COMPONENTS = ("means", "counts", "owner", "live", "variances")
"""The buffers with a row for each component; the others have one for each entry."""


class ClassGaussians(Growing):
    """Features of classes as Gaussians: one *entry* per class and task, so that a class keeps its domains apart.

    Parameters
    ----------
    mode
        ``"centroids"``: clusters of k-means, N(μ_k, diag(v_k) + 1e-4 I) with population variances v_k.
        ``"covariance"``: N(μ, Σ) with Σ = unbiased sample covariance + 1e-4 I.
        ``"variance"``: N(μ, diag Σ).
        ``"lowrank"``, ours: N(μ, F Fᵀ + D), with F the leading eigenvectors of the sample covariance times the roots of
        their eigenvalues, and D diagonal such that the diagonal is exactly that of Σ. (rank + 2) L numbers per entry.
    centroids
        Clusters per entry; a class with fewer distinct samples has one cluster for each.
    rank
        Columns of F.

    Notes
    -----
    Features have width L; E entries consist of M components, which are clusters, or one for each entry.

    ==========================  ==================================================================================
    entry_class, entry_task     [E] class and task index
    means, counts, owner        [M, L] and [M] mean, number of samples and entry of each component
    live                        [M] whether it is drawn from
    variances                   [M, L] "centroids", without the 1e-4
    covariances                 [E, L, L] "covariance"
    diagonals                   [E, L] "variance", "lowrank" (of D)
    factors                     [E, L, min(rank, L)] "lowrank"
    ==========================  ==================================================================================

    A cluster without variance (a single sample, or copies of one) is a centre but not drawn from, as released; where
    an entry has no other, all its clusters are drawn from, so that no class is ever absent. The covariance of one
    sample is 1e-4 I.

    Raises
    ------
    ConfigError
        Unknown mode, or ``centroids`` or ``rank`` below 1; on loading, a state of another mode.
    """

    of_data: ClassVar[dict[str, str]] = {
        "entry_class": "nothing: bookkeeping",
        "entry_task": "nothing: bookkeeping",
        "owner": "nothing: bookkeeping",
        "live": "nothing: bookkeeping",
        "counts": "how many examples each class had",
        "means": "means or centroids of each class; of few examples, their features",
        "variances": "variances around the centroids of each class",
        "covariances": "class covariances",
        "diagonals": "class variances",
        "factors": "leading directions of class covariances",
    }
    entry_class: Tensor
    entry_task: Tensor
    means: Tensor
    counts: Tensor
    owner: Tensor
    live: Tensor
    variances: Tensor
    covariances: Tensor
    diagonals: Tensor
    factors: Tensor

    def __init__(self, mode: str = "centroids", *, centroids: int = 10, rank: int = 10) -> None:
        super().__init__()
        if mode not in SPREADS:
            raise ConfigError(f"No statistics mode is called {mode!r}. {nearest(mode, SPREADS)}")
        if centroids < 1 or rank < 1:
            raise ConfigError(f"Statistics need at least 1: centroids={centroids}, rank={rank}.")
        self.mode, self.centroids, self.rank = mode, centroids, rank
        for name in ("entry_class", "entry_task", "counts", "owner"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))
        self.register_buffer("live", torch.zeros(0, dtype=torch.bool))
        for name in ("means", *SPREADS[mode]):
            self.register_buffer(name, torch.zeros(0, 0))
        self._roots = torch.zeros(0, 0, 0)  # of the covariances; derived, so no state

    # -- learning ----------------------------------------------------------------------------------------------------

    def fit(self, features: Tensor, labels: Tensor, task: int, generator: torch.Generator) -> None:
        """Add an entry for each class of ``labels`` [N], in ascending order, from its rows of ``features`` [N, L].

        Moments are computed in float64 and kept in float32. The generator seeds k-means.

        Raises
        ------
        TrainingError
            Features of a class hold NaN or infinity; nothing was added.
        """
        features, labels = features.detach().double(), labels.to(features.device)
        added: list[dict[str, Tensor]] = []
        for c in torch.unique(labels).tolist():
            rows = features[labels == c]
            if not rows.isfinite().all():
                raise TrainingError(
                    f"The features of class {c} hold NaN or infinity, so nothing can be kept of it: the tuning has "
                    "diverged; lower its rate."
                )
            entry = self._entry(rows, generator)
            owner = torch.full_like(entry["counts"], self.entries + len(added))
            place = {"entry_class": torch.tensor([c]), "entry_task": torch.tensor([task]), "owner": owner}
            added.append(place | entry)
        for name in added[0] if added else ():
            own = getattr(self, name)
            new = torch.cat([entry[name] for entry in added]).to(own)
            setattr(self, name, torch.cat([own, new]) if len(own) else new)

    def learn(self, features: TaskFeatures, task: int, generator: torch.Generator) -> None:
        """:meth:`fit` on all that was collected of a task, which is then forgotten."""
        self.fit(*features.take(), task, generator)

    def _entry(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The components of one entry with samples ``rows`` [n, L], by the name of their buffer."""
        if self.mode == "centroids":
            means, variances, counts = moments(rows, clusters(rows, self.centroids, generator))
            live = (variances > 0).any(1)
            return {"means": means, "variances": variances, "counts": counts, "live": live if live.any() else ~live}
        mean, deviations = centred(rows)
        scaled = deviations / max(len(rows) - 1, 1) ** 0.5
        variance = scaled.square().sum(0) + JITTER
        one = {"means": mean[None], "counts": torch.tensor([len(rows)]), "live": torch.tensor([True])}
        if self.mode == "variance":
            return one | {"diagonals": variance[None]}
        covariance = scaled.T @ scaled
        if self.mode == "covariance":
            covariance.diagonal().add_(JITTER)
            return one | {"covariances": covariance[None]}
        factors = principal(covariance, self.rank)
        rest = (variance - factors.square().sum(1)).clamp_min(JITTER)  # never less, but for rounding
        return one | {"factors": factors[None], "diagonals": rest[None]}

    def forget(self, classes: Collection[int]) -> list[int]:
        """Remove the entries of ``classes``, and the tasks that no entry is left of, which are given.

        Entries, classes and tasks behind them move down.
        """
        stay = ~torch.isin(self.entry_class, self.entry_class.new_tensor(sorted(classes)))
        kept = stay[self.owner]  # [M]
        tasks = sorted(set(self.entry_task.tolist()) - set(self.entry_task[stay].tolist()))
        entries = (~stay).nonzero()[:, 0].tolist()
        for name in self._buffers:
            own = getattr(self, name)
            setattr(self, name, own[kept if name in OF_COMPONENTS else stay])
        self.owner = moved(self.owner, entries)
        self.entry_class, self.entry_task = moved(self.entry_class, classes), moved(self.entry_task, tasks)
        self.rest()
        return tasks

    # -- drawing -----------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator, *, equally: bool = False) -> tuple[Tensor, Tensor]:
        """``n`` independent draws: features [n, L] and the entries [n] they are of.

        Every live component is equally likely, so a class counts by its live clusters: what shuffling equally many
        draws of each and using the first ``n`` comes to (spec §8.3). All devices get the same draws. With ``equally``
        each component is drawn from equally often, but for one draw, in random order.

        Raises
        ------
        TrainingError
            Nothing was fitted yet, or a covariance is not positive definite (names the class).
        """
        if not self.entries:
            raise TrainingError("There are no class statistics to draw from: fit the features of a task first.")
        live = self.live.nonzero()[:, 0]
        if equally:
            choice = torch.randperm(n, generator=generator) % len(live)
        else:
            choice = torch.randint(len(live), (n,), generator=generator)
        component = live[choice.to(live.device)]
        entry = self.owner[component]
        return self.means[component] + self._deviations(component, entry, generator), entry

    def _deviations(self, component: Tensor, entry: Tensor, generator: torch.Generator) -> Tensor:
        """Draws [n, L] from N(0, Σ) of each component [n]."""
        width = self.means.shape[1]

        def normal(columns: int) -> Tensor:
            return torch.randn(len(entry), columns, generator=generator).to(self.means)

        match self.mode:
            case "centroids":
                return normal(width) * (self.variances + JITTER).sqrt()[component]
            case "covariance":
                return coloured(normal(width), entry, self._cholesky())
            case "variance":
                return normal(width) * self.diagonals.sqrt()[entry]
            case _:
                shared = coloured(normal(self.factors.shape[2]), entry, self.factors)
                return shared + normal(width) * self.diagonals.sqrt()[entry]

    def rest(self) -> None:
        """Forget the factors of covariances, which are as large as these; the next draw computes them anew."""
        self._roots = torch.zeros(0, 0, 0)

    def _cholesky(self) -> Tensor:
        """Factors [E, L, L] of the covariances, each computed once and remembered."""
        roots = self._roots.to(self.covariances)
        if len(roots) < self.entries:
            fresh = torch.stack([self._root(e) for e in range(len(roots), self.entries)]).to(roots)
            roots = torch.cat([roots, fresh]) if len(roots) else fresh
        self._roots = roots
        return roots

    def _root(self, entry: int) -> Tensor:
        """The Cholesky factor [L, L] in float64 of an entry's covariance."""
        root = cholesky(self.covariances[entry], JITTER)
        if root is None:
            raise TrainingError(
                f"The covariance kept of class {int(self.entry_class[entry])} is not positive definite, so nothing can "
                "be drawn from it: its state is damaged; go on from the last good one."
            )
        return root

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        return len(self.entry_class)

    @property
    def last_task(self) -> Tensor:
        """The last task of each class, [K]."""
        tasks = self.entry_task.new_zeros(int(self.entry_class.max()) + 1)
        return tasks.scatter_reduce(0, self.entry_class, self.entry_task, "amax")

    @property
    def centres(self) -> Tensor:
        """All means [M, L], also of clusters that are not drawn from."""
        return self.means

    @property
    def nbytes(self) -> int:
        """Bytes of the stored state."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def nbytes_per_class(self) -> float:
        """Mean over the classes seen, 0 before the first."""
        return self.nbytes / max(len(torch.unique(self.entry_class)), 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        every = {name for names in SPREADS.values() for name in names}
        stored = {name for name in every if prefix + name in state_dict}
        mode = next((mode for mode, names in SPREADS.items() if set(names) == stored), self.mode)
        if mode != self.mode:
            raise ConfigError(
                f"The stored class statistics are of mode {mode!r}, these of mode {self.mode!r}, and neither can be "
                f"made of the other: load with the mode {mode!r}."
            )
        self.rest()
        super()._load_from_state_dict(state_dict, prefix, *args)
