"""How sure a number is: intervals over seeds, paired differences, and what a single test set can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it, in the unit of the values; without bounds (None) where there is one value."""

    mean: float
    low: float | None
    high: float | None
    count: int
    level: float

    def as_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Paired:
    """The differences a − b of runs that share their seed, and how likely such a mean is if there is none.

    ``t_test`` and ``wilcoxon`` are two-sided p-values, None below two pairs; ``t_test`` also where all differences are
    the same number. Wilcoxon's signed ranks ask nothing of the distribution, but with few pairs the smallest value they
    can give is 2^(1−n): 0.0625 with five.
    """

    difference: Interval
    t_test: float | None
    wilcoxon: float | None

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of runs that differ in their seed, with Student's t interval: mean ± t · s / √n.

    It is about the mean over seeds (class orders, initial values), not about test examples. One value has no interval.

    Raises DataError where a value is not finite or there is none.

    >>> print(interval([80.0, 82.0, 84.0]))
    82.00 [77.03, 86.97]
    """
    data = _finite(values, level)
    center = float(data.mean())
    if len(data) < 2:
        return Interval(center, None, None, len(data), level)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Interval(center, center - half, center + half, len(data), level)


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """Compare runs of two methods that share seeds, in the same order: what both gain from an easy order cancels.

    Raises DataError where the numbers of runs differ, a value is not finite, or there is none.

    >>> comparison = paired([81.0, 83.5, 84.0], [80.0, 82.0, 83.5])
    >>> print(comparison.difference, round(comparison.t_test, 3), comparison.wilcoxon)
    1.00 [-0.24, 2.24] 0.074 0.25
    """
    first, second = _finite(a, level), _finite(b, level)
    if len(first) != len(second):
        raise DataError(
            f"there are {len(first)} runs of one and {len(second)} of the other; pair them by seed, one of each."
        )
    difference = first - second
    found = interval(difference.tolist(), level)
    if len(difference) < 2:
        return Paired(found, None, None)
    if np.ptp(difference) == 0:  # without any spread t says nothing, unless there is no difference either
        same = difference[0] == 0
        return Paired(found, 1.0 if same else None, 1.0 if same else 2.0 ** (1 - len(difference)))
    from scipy.stats import ttest_1samp, wilcoxon

    return Paired(found, float(ttest_1samp(difference, 0.0).pvalue), float(wilcoxon(difference).pvalue))


def binomial_interval(correct: int, total: int, level: float = 0.95) -> Interval:
    """One accuracy in percent with Wilson's interval: what would vary had other test examples been drawn.

    The counts say which share was right, not which examples, so this is all that one run can tell of its test set; two
    methods on the same examples differ more surely than their two intervals suggest.

    Raises DataError where the counts are impossible.

    >>> print(binomial_interval(90, 100))
    90.00 [82.56, 94.48]
    """
    if not 0 <= correct <= total or total < 1:
        raise DataError(f"{correct} correct of {total} test examples is impossible; check what was counted.")
    _finite([0.0], level)
    from scipy.stats import norm

    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    rate = correct / total
    center = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(z2 * (rate * (1 - rate) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Interval(100 * rate, 100 * float(low), 100 * float(high), total, level)


def _finite(values: Sequence[float], level: float) -> NDArray[np.float64]:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; give the share of the interval, as 0.95.")
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise DataError(f"an interval needs one finite number per run, not {data.tolist()}.")
    return data
