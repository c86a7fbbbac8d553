"""Accuracy, forgetting and transfer as pure functions of the integer matrix, every convention by name.

All take ``correct`` [T, T] (stage t, group i; only i ≤ t is read) and ``totals`` [T] (test examples n_i per group), as
`AccuracyMatrix.counts` returns them, and give percent. With a_{t,i} = 100 · correct_{t,i} / n_i, stages counted 1 … T:

=================  ====================================================================================
accuracy_curve     weight "sample": A_t = Σ_{i≤t} n_i a_{t,i} / Σ_{i≤t} n_i;  "task": A_t = (1/t) Σ_{i≤t} a_{t,i}
final_accuracy     A_T
average_accuracy   (1/T) Σ_t A_t
forgetting         (1/(T−1)) Σ_{i<T} (max_t a_{t,i} − a_{T,i}), t up to T (include_last) or T − 1
backward_transfer  (1/(T−1)) Σ_{i<T} (a_{T,i} − a_{i,i})
area_under_curve   ∫ A dn / ∫ dn over the training examples n seen, for streams that are measured while they run
=================  ====================================================================================

"sample" is top-1 over all test examples seen; both weights agree only where groups are equally large. To get a metric
as it stood after stage t, pass ``correct[:t, :t], totals[:t]``. Groups without test examples (n_i = 0) do not count.

Every function raises DataError where counts are impossible or there is no test example at all.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from evertune.errors import ConfigError, DataError, nearest
from evertune.evaluation.matrix import AccuracyMatrix, Counts
from evertune.evaluation.rates import Rates, accuracies, mean, percent

Weight = Literal["sample", "task"]
Rule = Literal["trapezoid", "step"]

ROUTER = "router"
"""The part in which an example is right when its task was inferred rightly (see `Learner.evaluate`)."""


def accuracy_curve(correct: Counts, totals: Counts, *, weight: Weight, digits: int | None = None) -> Rates:
    """Accuracy [T] after each stage, over the groups seen by then; NaN while none of them has a test example.

    ``digits`` rounds as the code bases do that round early: "sample" the curve, "task" each group before the mean.

    >>> accuracy_curve(np.array([[9, 0], [8, 5]]), np.array([10, 5]), weight="sample").round(2).tolist()
    [90.0, 86.67]
    >>> accuracy_curve(np.array([[9, 0], [8, 5]]), np.array([10, 5]), weight="task").tolist()
    [90.0, 90.0]
    """
    if weight not in get_args(Weight):
        raise ConfigError(f"unknown weight {weight!r}. {nearest(weight, get_args(Weight))}")
    rates = accuracies(correct, totals, digits=digits)
    if weight == "task":
        return np.array([mean(row) for row in rates])
    right, seen = np.tril(correct).sum(axis=1), np.cumsum(totals)
    curve = percent(right, seen, known=seen > 0)
    return curve if digits is None else np.around(curve, digits)


def final_accuracy(correct: Counts, totals: Counts, *, weight: Weight) -> float:
    """Accuracy after the last stage, A_T."""
    return float(accuracy_curve(correct, totals, weight=weight)[-1])


def average_accuracy(correct: Counts, totals: Counts, *, weight: Weight) -> float:
    """Mean of the accuracies after each stage, the first included: "average incremental accuracy", Ā."""
    return mean(accuracy_curve(correct, totals, weight=weight))


def forgetting(correct: Counts, totals: Counts, *, include_last: bool, digits: int | None = None) -> float:
    """Mean fall from each earlier group's best accuracy to its last; 0 while there is one stage.

    With the last stage among the candidates for the best it is never negative; without, a group that is best at the end
    counts as negative forgetting. Papers use both.

    >>> correct, totals = np.array([[5, 0], [8, 9]]), np.array([10, 10])
    >>> forgetting(correct, totals, include_last=True), forgetting(correct, totals, include_last=False)
    (0.0, -30.0)
    """
    past = accuracies(correct, totals, digits=digits)[:, :-1][:, totals[:-1] > 0]
    if past.shape[1] == 0:
        return 0.0
    best = np.nanmax(past if include_last else past[:-1], axis=0)
    return float(np.mean(best - past[-1]))


def backward_transfer(correct: Counts, totals: Counts, *, digits: int | None = None) -> float:
    """Mean change of each earlier group's accuracy since the stage that learned it; 0 while there is one stage.

    >>> backward_transfer(np.array([[5, 0], [8, 9]]), np.array([10, 10]))
    30.0
    """
    rates = accuracies(correct, totals, digits=digits)
    change = (rates[-1] - np.diag(rates))[:-1]
    return 0.0 if np.isnan(change).all() else mean(change)


def area_under_curve(curve: Rates, examples: Counts, *, rule: Rule = "trapezoid") -> float:
    """Mean height of an accuracy curve over the training examples seen (A_AUC of Koh et al. 2022, "i-Blurry").

    Unlike the mean over stages it does not favour a stage for being short. Stages without accuracy (NaN) are skipped.

    Parameters
    ----------
    curve
        Accuracy [T] after each stage, in percent.
    examples
        Training examples [T] of each stage, at least one.
    rule
        "trapezoid": straight lines between the measurements, from the first of them on. "step": each measurement stands
        for all examples since the one before, which is what the paper's code computes at equal distances.

    >>> area_under_curve(np.array([90.0, 60.0]), np.array([100, 300]))
    75.0
    >>> area_under_curve(np.array([90.0, 60.0]), np.array([100, 300]), rule="step")
    67.5
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"unknown rule {rule!r}. {nearest(rule, get_args(Rule))}")
    curve, examples = np.asarray(curve, dtype=np.float64), np.asarray(examples)
    if curve.ndim != 1 or curve.shape != examples.shape or not len(curve):
        raise DataError(
            f"curve has shape {curve.shape} and examples {examples.shape}; "
            "give one number of training examples per stage."
        )
    if (examples < 1).any():
        stage = int(np.argmax(examples < 1))
        raise DataError(f"stage {stage} has {examples[stage]} training examples; every stage has one at least.")
    known = ~np.isnan(curve)
    height, seen = curve[known], np.cumsum(examples)[known]
    if len(height) < 2:
        return mean(height)
    if rule == "step":
        return float(np.average(height, weights=np.diff(seen, prepend=0)))
    return float(np.average((height[1:] + height[:-1]) / 2, weights=np.diff(seen)))


def summary(matrix: AccuracyMatrix) -> dict[str, dict[str, float]]:
    """Every metric in percent under the full name of its convention, per part, the primary part first.

    Where the task of each test example was inferred (a part "router"), how often it was found is the primary part's
    ``task_identity_sample`` and ``task_identity_task``, after the last stage.
    """
    matrix.counts()  # refuses a matrix that is empty or lacks its primary part
    numbers = {part: _summary(*matrix.counts(part)) for part in matrix.parts}
    if ROUTER in numbers:
        for weight in get_args(Weight):
            numbers[matrix.primary][f"task_identity_{weight}"] = numbers[ROUTER][f"final_accuracy_{weight}"]
    return numbers


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
