"""Accuracy, forgetting and transfer as pure functions of the integer matrix, every convention by name.

All take ``correct`` [T, T] (stage t, group i; only i ≤ t is read) and ``totals`` [T] (test examples n_i per group), as
`AccuracyMatrix.counts` returns them, and give percent. With a_{t,i} = 100 · correct_{t,i} / n_i, stages counted 1 … T:

=================  ====================================================================================
accuracy_curve     weight "sample": A_t = Σ_{i≤t} n_i a_{t,i} / Σ_{i≤t} n_i;  "task": A_t = (1/t) Σ_{i≤t} a_{t,i}
final_accuracy     A_T
average_accuracy   (1/T) Σ_t A_t
forgetting         (1/(T−1)) Σ_{i<T} (max_t a_{t,i} − a_{T,i}), t up to T (include_last) or T − 1
backward_transfer  (1/(T−1)) Σ_{i<T} (a_{T,i} − a_{i,i})
=================  ====================================================================================

"sample" is top-1 over all test examples seen; both weights agree only where groups are equally large. To get a metric
as it stood after stage t, pass ``correct[:t, :t], totals[:t]``. Groups without test examples (n_i = 0) do not count.

Every function raises DataError where counts are impossible or there is no test example at all.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError, nearest
from evertune.evaluation.matrix import AccuracyMatrix, Counts

Weight = Literal["sample", "task"]


def accuracy_curve(correct: Counts, totals: Counts, *, weight: Weight) -> NDArray[np.float64]:
    """Accuracy [T] after each stage, over the groups seen by then; NaN while none of them has a test example.

    >>> accuracy_curve(np.array([[9, 0], [8, 5]]), np.array([10, 5]), weight="sample").round(2).tolist()
    [90.0, 86.67]
    >>> accuracy_curve(np.array([[9, 0], [8, 5]]), np.array([10, 5]), weight="task").tolist()
    [90.0, 90.0]
    """
    if weight not in get_args(Weight):
        raise ConfigError(f"unknown weight {weight!r}. {nearest(weight, get_args(Weight))}")
    accuracies = _accuracies(correct, totals)
    if weight == "task":
        return np.array([_mean(row) for row in accuracies])
    right, seen = np.tril(correct).sum(axis=1), np.cumsum(totals)
    return _percent(right, seen, known=seen > 0)


def final_accuracy(correct: Counts, totals: Counts, *, weight: Weight) -> float:
    """Accuracy after the last stage, A_T."""
    return float(accuracy_curve(correct, totals, weight=weight)[-1])


def average_accuracy(correct: Counts, totals: Counts, *, weight: Weight) -> float:
    """Mean of the accuracies after each stage, the first included: "average incremental accuracy", Ā."""
    return _mean(accuracy_curve(correct, totals, weight=weight))


def forgetting(correct: Counts, totals: Counts, *, include_last: bool) -> float:
    """Mean fall from each earlier group's best accuracy to its last; 0 while there is one stage.

    With the last stage among the candidates for the best it is never negative; without, a group that is best at the end
    counts as negative forgetting. Papers use both.

    >>> correct, totals = np.array([[5, 0], [8, 9]]), np.array([10, 10])
    >>> forgetting(correct, totals, include_last=True), forgetting(correct, totals, include_last=False)
    (0.0, -30.0)
    """
    past = _past(correct, totals)
    if past.shape[1] == 0:
        return 0.0
    best = np.nanmax(past if include_last else past[:-1], axis=0)
    return float(np.mean(best - past[-1]))


def backward_transfer(correct: Counts, totals: Counts) -> float:
    """Mean change of each earlier group's accuracy since the stage that learned it; 0 while there is one stage.

    >>> backward_transfer(np.array([[5, 0], [8, 9]]), np.array([10, 10]))
    30.0
    """
    accuracies = _accuracies(correct, totals)
    change = (accuracies[-1] - np.diag(accuracies))[:-1]
    return 0.0 if np.isnan(change).all() else _mean(change)


def summary(matrix: AccuracyMatrix) -> dict[str, dict[str, float]]:
    """Every metric in percent under the full name of its convention, per part, the primary part first."""
    matrix.counts()  # refuses a matrix that is empty or lacks its primary part
    return {part: _summary(*matrix.counts(part)) for part in matrix.parts}


def _summary(correct: Counts, totals: Counts) -> dict[str, float]:
    return {
        "final_accuracy_sample": final_accuracy(correct, totals, weight="sample"),
        "final_accuracy_task": final_accuracy(correct, totals, weight="task"),
        "average_accuracy_sample": average_accuracy(correct, totals, weight="sample"),
        "average_accuracy_task": average_accuracy(correct, totals, weight="task"),
        "forgetting_with_last_stage": forgetting(correct, totals, include_last=True),
        "forgetting_without_last_stage": forgetting(correct, totals, include_last=False),
        "backward_transfer": backward_transfer(correct, totals),
    }


def _accuracies(correct: Counts, totals: Counts) -> NDArray[np.float64]:
    """a [T, T] in percent, NaN above the diagonal and in columns without test examples."""
    stages = len(totals)
    if stages == 0 or totals.ndim != 1 or correct.shape != (stages, stages):
        raise DataError(
            f"correct has shape {correct.shape} and totals {totals.shape}; "
            "metrics need [T, T] and [T] with at least one stage (see AccuracyMatrix.counts)."
        )
    if not (np.issubdtype(correct.dtype, np.integer) and np.issubdtype(totals.dtype, np.integer)):
        raise DataError(f"correct is {correct.dtype} and totals {totals.dtype}; metrics need whole counts, not rates.")
    seen = np.tri(stages, dtype=bool)
    impossible = np.argwhere(seen & ((correct < 0) | (correct > totals)))
    if len(impossible):
        stage, group = impossible[0]
        raise DataError(
            f"stage {stage}, group {group}: {correct[stage, group]} correct of {totals[group]} test examples "
            "is impossible; check what was counted."
        )
    if not totals.any():
        raise DataError("none of the groups has a test example, so there is no accuracy; give the stream test data.")
    return _percent(correct, totals, known=seen & (totals > 0))


def _percent(correct: Counts, totals: Counts, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """100 · correct / totals where known, NaN elsewhere."""
    rates: NDArray[np.float64] = np.divide(100.0 * correct, totals, out=np.full(known.shape, np.nan), where=known)
    return rates


def _past(correct: Counts, totals: Counts) -> NDArray[np.float64]:
    """The columns of all groups but the last one's that have test examples, [T, at most T − 1]."""
    return _accuracies(correct, totals)[:, :-1][:, totals[:-1] > 0]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
