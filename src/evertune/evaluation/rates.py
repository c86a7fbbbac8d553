"""From whole counts to percent: what every metric starts with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evertune.errors import DataError
from evertune.evaluation.matrix import Counts

Rates = NDArray[np.float64]


def accuracies(correct: Counts, totals: Counts, *, ahead: bool = False, digits: int | None = None) -> Rates:
    """a(t, i) in percent [T, T]: NaN in columns without test examples and, unless ``ahead``, above the diagonal.

    With ``ahead`` the cells above the diagonal are read too, NaN where they hold −1 (not measured). ``digits`` rounds
    every accuracy first, as several code bases do before they average.

    Raises DataError where counts are impossible or there is no test example at all.
    """
    stages = len(totals)
    if stages == 0 or totals.ndim != 1 or correct.shape != (stages, stages):
        raise DataError(
            f"correct has shape {correct.shape} and totals {totals.shape}; "
            "metrics need [T, T] and [T] with at least one stage (see AccuracyMatrix.counts)."
        )
    if not (np.issubdtype(correct.dtype, np.integer) and np.issubdtype(totals.dtype, np.integer)):
        raise DataError(f"correct is {correct.dtype} and totals {totals.dtype}; metrics need whole counts, not rates.")
    seen = np.tri(stages, dtype=bool)
    read = seen | (correct != -1) if ahead else seen
    impossible = np.argwhere(read & ((correct < 0) | (correct > totals)))
    if len(impossible):
        stage, group = impossible[0]
        raise DataError(
            f"stage {stage}, group {group}: {correct[stage, group]} correct of {totals[group]} test examples "
            "is impossible; check what was counted."
        )
    if not totals.any():
        raise DataError("none of the groups has a test example, so there is no accuracy; give the stream test data.")
    rates = percent(correct, totals, known=read & (totals > 0))
    return rates if digits is None else np.around(rates, digits)


def percent(correct: Counts, totals: Counts, known: NDArray[np.bool_]) -> Rates:
    """100 · correct / totals where known, NaN elsewhere."""
    rates: Rates = np.divide(100.0 * correct, totals, out=np.full(known.shape, np.nan), where=known)
    return rates


def mean(values: Rates) -> float:
    """Mean of the values that are known, NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
