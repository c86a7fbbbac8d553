"""What other code bases would have printed for the same integer matrix, and the two papers most of them name.

The formulas are those of the sources as coded, found by reading them; where a source says one thing in its
documentation and computes another, what it computes is here. a(t,i) is the accuracy in percent on group i after stage
t, c(t,i) the right answers, n(i) the test examples, all counted from 1 to T. Libraries that print fractions of 1 are
given in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evertune.errors import ConfigError, nearest
from evertune.evaluation.convention import Convention, Curve, Measured, Number, Quantity
from evertune.evaluation.matrix import AccuracyMatrix
from evertune.evaluation.metrics import Weight, accuracy_curve, backward_transfer, forgetting
from evertune.evaluation.rates import Rates, accuracies, mean, percent
from evertune.evaluation.transfer import (
    backward_transfer_all_pairs,
    forgetting_first_minus_last,
    forgetting_from_any_stage,
    forgetting_with_zero_shot,
    forgetting_without_newest,
    forward_transfer,
    unseen_as_wrong,
)

SAMPLE = "A(t) = 100 Σ_{i≤t} c(t,i) / Σ_{i≤t} n(i)"
SAMPLE_ROUNDED = f"{SAMPLE}, rounded to 2 decimals"
TASK = "A(t) = 1/t Σ_{i≤t} a(t,i)"
PAIRS = "1/(T(T−1)/2) Σ_t Σ_{i<t−1} [a(t,i) − a(i,i)]"


def _by(weight: Weight, digits: int | None = None) -> Curve:
    return lambda m: accuracy_curve(m.correct, m.totals, weight=weight, digits=digits)


def _whole_stream(m: Measured) -> Rates:
    """Accuracy [T] over the test examples of all groups, those of tasks to come included; NaN where not measured."""
    accuracies(m.correct, m.totals, ahead=True)  # refuses impossible counts
    known = ((m.correct >= 0) | (m.totals == 0)).all(axis=1) & bool(m.totals.any())
    return percent(m.correct.clip(min=0).sum(axis=1), np.full(len(m.totals), m.totals.sum()), known=known)


def _below_diagonal(m: Measured) -> float:
    rates = accuracies(m.correct, m.totals)
    below = rates[np.tri(len(rates), k=-1, dtype=bool)]
    return mean(below) if below.size else 0.0


BACKWARD = Number("1/(T−1) Σ_{i<T} [a(T,i) − a(i,i)]", lambda m: backward_transfer(m.correct, m.totals))
FORWARD = Number(
    "1/(T−1) Σ_{i≥2} [a(i−1,i) − b(i)], b(i) before anything was learned",
    lambda m: forward_transfer(m.correct, m.totals, m.baseline),
)
PAIRS_WITHOUT_NEWEST = Number(PAIRS, lambda m: backward_transfer_all_pairs(m.correct, m.totals, newest=False))

_AVALANCHE: dict[Quantity, Number] = {
    "forgetting": Number(
        "1/(T−1) Σ_{i<T} [a(i,i) − a(T,i)]", lambda m: forgetting_first_minus_last(m.correct, m.totals), 2
    ),
    "backward_transfer": Number(BACKWARD.formula, BACKWARD.compute, 2),
    "forward_transfer": Number(FORWARD.formula, FORWARD.compute, 2),
}
_LIBCONTINUAL: dict[Quantity, Number] = {
    "forgetting": Number(
        "1/(T−1) Σ_{i≤T−2} [a(i,i) − a(T,i)], each a rounded to 2 decimals",
        lambda m: forgetting_without_newest(m.correct, m.totals, best="first", digits=2),
        3,
    ),
    "backward_transfer": Number(
        f"{PAIRS}, each a rounded to 2 decimals",
        lambda m: backward_transfer_all_pairs(m.correct, m.totals, newest=False, digits=2),
        2,
    ),
}
_LIBCONTINUAL_NOTE = (
    "Leaves out the newest old task and divides as if it were there. Prints the best epoch on the test set beside it."
)
_RENATE: dict[Quantity, Number] = {
    "forgetting": Number(
        "1/(T−1) Σ_{i<T} [max_{1≤k<T} a(k,i) − a(T,i)], stages before task i included",
        lambda m: forgetting_from_any_stage(m.correct, m.totals),
    ),
    "backward_transfer": BACKWARD,
    "forward_transfer": FORWARD,
}

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "pilot", "LAMDA-PILOT trainer.py, utils/toolkit.py", SAMPLE_ROUNDED, _by("sample", 2), averaged=True,
            others={
                "forgetting": Number(
                    "1/(T−1) Σ_{i<T} [max_{t≤T} a(t,i) − a(T,i)], each a rounded to 2 decimals",
                    lambda m: forgetting(m.correct, m.totals, include_last=True, digits=2),
                )
            },
            note="The mean over the stages is of rounded values and not rounded itself.",
        ),
        Convention(
            "ntk-cl", "NTK-CL trainer.py, models/learner.py", SAMPLE_ROUNDED, _by("sample", 2), averaged=True
        ),
        Convention(
            "safe", "SAFE trainer.py", SAMPLE_ROUNDED, _by("sample", 2),
            note="Its log holds the mean over tasks too, which is what RanPAC returns.",
        ),
        Convention(
            "ranpac", "RanPAC trainer.py", f"{TASK}, each a and the mean rounded to 2 decimals",
            lambda m: np.around(accuracy_curve(m.correct, m.totals, weight="task", digits=2), 2),
        ),
        Convention(
            "hide-pet", "HiDe-PET engines (evaluate_till_now), and HiDe-Prompt", TASK, _by("task"), digits=4,
            others={
                "forgetting": Number(
                    "1/(T−1) Σ_{i<T} [max_{t≤T} a(t,i) − a(T,i)]",
                    lambda m: forgetting(m.correct, m.totals, include_last=True),
                    4,
                ),
                "backward_transfer": Number(BACKWARD.formula, BACKWARD.compute, 4),
            },
        ),
        Convention(
            "mammoth", "Mammoth utils/loggers.py, utils/metrics.py", TASK, _by("task"), digits=2,
            others={
                "forgetting": Number(
                    "1/(T−1) Σ_{i<T} [max_{i−1≤t≤T} a(t,i) − a(T,i)], a(i−1,i) where measured",
                    lambda m: forgetting_with_zero_shot(m.correct, m.totals),
                ),
                "backward_transfer": BACKWARD,
                "forward_transfer": FORWARD,
            },
            note="The same is printed for answers among the classes of the task: our part 'within task'.",
        ),
        Convention(
            "avalanche", "Avalanche evaluation/metrics/accuracy.py (StreamAccuracy), forgetting_bwt.py",
            "A(t) = 100 Σ_{i≤T} c(t,i) / Σ_{i≤T} n(i), tasks to come included", _whole_stream, digits=2,
            others=_AVALANCHE, note="Printed as fractions of 1 with 4 decimals.",
        ),
        Convention(
            "avalanche-trained", "Avalanche evaluation/metrics/accuracy.py (TrainedExperienceAccuracy)", SAMPLE,
            _by("sample"), digits=2, others=_AVALANCHE, note="Printed as fractions of 1 with 4 decimals.",
        ),
        Convention(
            "libcontinual", "LibContinual core/trainer.py ([Batch]), core/utils/utils.py", SAMPLE_ROUNDED,
            _by("sample", 2), averaged=True, digits=2, others=_LIBCONTINUAL, note=_LIBCONTINUAL_NOTE,
        ),
        Convention(
            "libcontinual-task", "LibContinual core/trainer.py ([Task]), core/utils/utils.py",
            f"{TASK}, each a rounded to 2 decimals", _by("task", 2), averaged=True, digits=2, others=_LIBCONTINUAL,
            note=_LIBCONTINUAL_NOTE,
        ),
        Convention(
            "renate", "Renate evaluation/metrics/classification.py (average_accuracy)", TASK, _by("task"),
            others=_RENATE, note="Printed as fractions of 1.",
        ),
        Convention(
            "renate-micro", "Renate evaluation/metrics/classification.py (micro_average_accuracy)", SAMPLE,
            _by("sample"), others=_RENATE, note="Printed as fractions of 1.",
        ),
        Convention(
            "continuum", "Continuum 1.2.7 continuum/metrics/metrics.py, logger.py", SAMPLE, _by("sample"),
            averaged=True,
            others={
                "forgetting": Number(
                    "1/(T−1) Σ_{i≤T−2} [max_{i≤k≤T−2} a(k,i) − a(T,i)]",
                    lambda m: forgetting_without_newest(m.correct, m.totals, best="max"),
                ),
                "backward_transfer": PAIRS_WITHOUT_NEWEST,
                "forward_transfer": Number("1/(T(T−1)/2) Σ_t Σ_{i<t} a(t,i)", _below_diagonal),
            },
            note="It names Chaudhry et al. and Lopez-Paz and Ranzato, but leaves out the newest old task, and its "
            "forward transfer is the mean accuracy on tasks already learned. Printed as fractions of 1.",
        ),
        Convention(
            "chaudhry", "Chaudhry et al. 2018, Riemannian Walk, section 3", TASK, _by("task"),
            others={
                "forgetting": Number(
                    "1/(T−1) Σ_{i<T} [max_{i≤k<T} a(k,i) − a(T,i)]",
                    lambda m: forgetting(m.correct, m.totals, include_last=False),
                )
            },
        ),
        Convention(
            "lopez-paz", "Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, section 3", TASK, _by("task"),
            others={"backward_transfer": BACKWARD, "forward_transfer": FORWARD},
        ),
    )
}  # fmt: skip
"""By name; each is a pure function of the matrix."""


def what_would_print(
    matrix: AccuracyMatrix,
    part: str | None = None,
    *,
    conventions: Iterable[str] | None = None,
    new_classes: bool = False,
    baseline: Sequence[float] | float | None = None,
) -> dict[str, dict[str, Any]]:
    """For each convention its source, a note, the accuracy after each stage and the numbers with their formulas.

    Parameters
    ----------
    part
        The primary one unless named.
    conventions
        Names out of CONVENTIONS; all by default.
    new_classes
        Every task brings classes of its own, so that examples of tasks to come cannot be answered: cells above the
        diagonal that were not measured are 0.
    baseline
        Accuracies b(i) in percent before anything was learned, for forward transfer.

    Returns
    -------
    Plain values for JSON: ``{name: {"source", "note", "curve": [T], "numbers": {quantity: {"value", "digits",
    "formula"}}}}``. A value that needs what was not measured is None, and its "reason" says what.

    Raises
    ------
    ConfigError
        A convention or part that does not exist.
    DataError
        Counts are impossible or missing.

    Examples
    --------
    >>> matrix = AccuracyMatrix()
    >>> for stage, group, correct, total in ((0, 0, 9, 10), (1, 0, 8, 10), (1, 1, 5, 5)):
    ...     matrix.record(stage, group, correct, total)
    >>> printed = what_would_print(matrix, conventions=["pilot", "ranpac"])
    >>> [column["numbers"]["final_accuracy"]["value"] for column in printed.values()]
    [86.67, 90.0]
    """
    names = list(CONVENTIONS) if conventions is None else list(conventions)
    for name in names:
        if name not in CONVENTIONS:
            raise ConfigError(f"there is no convention {name!r}. {nearest(name, CONVENTIONS)}")
    correct, totals = matrix.counts(part, ahead=True)
    measured = Measured(unseen_as_wrong(correct) if new_classes else correct, totals, baseline)
    return {name: CONVENTIONS[name].printed(measured) for name in names}
