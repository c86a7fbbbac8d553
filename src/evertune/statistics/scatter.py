"""Mean and spread of each class, exact however often a class comes again (FeCAM)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from evertune.statistics.growing import Growing

Spread = Literal["class", "common", "diagonal"]

ROUNDING = 1e-10
"""A mean variance below this part of the mean's square is rounding: copies of one example have no spread."""


class ClassScatters(Growing):
    """Means [K, L] (float64), counts [K], and the scatter S = Σ (x − μ)(x − μ)ᵀ (float32).

    Parameters
    ----------
    spread
        ``"class"``: S of each class, [K, L, L]. ``"common"``: their sum, [L, L]. ``"diagonal"``: the diagonal of each,
        [K, L].
    """

    of_data: ClassVar[dict[str, str]] = {
        "means": "class means; of a class of one example, its feature",
        "scatter": "class covariances, as sums; or their diagonals, or their sum over all classes",
        "counts": "how many examples each class had",
    }
    stays: ClassVar[str] = (
        "The common covariance sums those of all classes and cannot be divided among them: the spread of what is "
        "forgotten goes on counting there."
    )
    means: Tensor
    scatter: Tensor
    counts: Tensor

    def __init__(self, spread: Spread = "class") -> None:
        super().__init__()
        self.spread = spread
        own = {} if spread == "common" else {"scatter": 0}
        self.by_class = {"means": 0, "counts": 0} | own  # type: ignore[misc]  # one scatter belongs to no class
        self.register_buffer("means", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(0))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Add features [N, L] with class indices [N].

        Two parts of a class with n and m examples and means d apart have the scatter S_n + S_m + nm/(n + m) d dᵀ.
        """
        features, labels = features.to(self.means.device, torch.float64), labels.to(self.means.device)
        self._grow(int(labels.max()) + 1, features.shape[1])
        for c in torch.unique(labels).tolist():
            rows = features[labels == c]
            before, number = int(self.counts[c]), len(rows)
            mean = rows.mean(0)
            apart = (mean - self.means[c]) * (before * number / (before + number)) ** 0.5
            deviations = torch.cat([rows - mean, apart[None]])
            own = deviations.square().sum(0) if self.spread == "diagonal" else deviations.T @ deviations
            into = self.scatter if self.spread == "common" else self.scatter[c]
            into.copy_(into.double() + own)
            self.means[c] += (mean - self.means[c]) * (number / (before + number))
            self.counts[c] += number

    def _grow(self, classes: int, width: int) -> None:
        known = len(self.counts)
        shape = [width] if self.spread == "diagonal" else [width, width]
        if not known:
            self.means = self.means.new_zeros(0, width)
            if self.spread != "common" or self.scatter.ndim < 2:  # the common one may have outlived its classes
                self.scatter = self.scatter.new_zeros(shape if self.spread == "common" else [0, *shape])
        if (more := classes - known) > 0:
            self.means = torch.cat([self.means, self.means.new_zeros(more, width)])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            if self.spread != "common":
                self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(more, *shape)])

    def covariances(self, start: int, stop: int) -> Tensor:
        """Σ = S/(n − 1) of classes ``start`` to ``stop``, [k, L, L] or [k, L], in float64; the common one is [1, L, L].

        A class without spread, of one example or of copies of it, takes the covariance of all classes together; where
        no class has any, the unit matrix.
        """
        energy = self.means.square().mean(1)
        if self.spread == "common":
            return self._or_unit(self._together(), energy.mean())[None]
        freedom = (self.counts[start:stop] - 1).clamp_min(1).view(-1, *[1] * (self.scatter.ndim - 1))
        covariances = self.scatter[start:stop].double() / freedom
        flat = self._variance(covariances) <= ROUNDING * energy[start:stop]
        if flat.any():
            covariances[flat] = self._or_unit(self._together(), energy.mean())
        return covariances

    def _together(self) -> Tensor:
        """The covariance within classes, over all of them."""
        sums = self.scatter.double() if self.spread == "common" else self.scatter.sum(0, dtype=torch.float64)
        return sums / max(int(self.counts.sum()) - len(self.counts), 1)

    def _variance(self, covariances: Tensor) -> Tensor:
        """The mean variance [...] of covariances [..., L, L] or of diagonals [..., L]."""
        own = covariances if self.spread == "diagonal" else covariances.diagonal(dim1=-2, dim2=-1)
        return own.mean(-1)

    def _or_unit(self, covariance: Tensor, energy: Tensor) -> Tensor:
        if self._variance(covariance) > ROUNDING * energy:
            return covariance
        ones = covariance.new_ones(covariance.shape[-1])
        return ones if self.spread == "diagonal" else ones.diag()
