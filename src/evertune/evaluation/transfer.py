"""The other forms of forgetting and transfer that papers and code bases print under the same two words.

Pure functions of the integer matrix, in percent, beside `forgetting` and `backward_transfer` of `metrics`. With a(t, i)
the accuracy on group i after stage t, both counted 1 … T:

===========================  ===========================================================================================
forgetting_first_minus_last  1/(T−1) Σ_{i<T} [a(i,i) − a(T,i)]
forgetting_from_any_stage    1/(T−1) Σ_{i<T} [max_{1≤k<T} a(k,i) − a(T,i)], k < i included
forgetting_with_zero_shot    1/(T−1) Σ_{i<T} [max_{i−1≤k≤T} a(k,i) − a(T,i)], a(i−1,i) only where it was measured
forgetting_without_newest    1/(T−1) Σ_{i≤T−2} [b(i) − a(T,i)], b(i) = a(i,i) (LibContinual) or
                             max_{i≤k≤T−2} a(k,i) (Continuum)
backward_transfer_all_pairs  1/(T(T−1)/2) Σ_{t} Σ_{i<t} [a(t,i) − a(i,i)] (Díaz-Rodríguez et al. 2018), or with i < t−1
                             only (LibContinual, Continuum)
forward_transfer             1/(T−1) Σ_{i≥2} [a(i−1,i) − b(i)] (Lopez-Paz and Ranzato 2017), b(i) the accuracy on group
                             i before anything was learned
===========================  ===========================================================================================

Those that look at a group before its task was learned take ``correct`` as ``AccuracyMatrix.counts(ahead=True)`` gives
it and raise NotMeasured where such a cell is lacking. Classes that were never learned have no score, so in a
class-incremental stream these cells are 0 by construction (`unseen_as_wrong`) and forward transfer says nothing; in a
domain-incremental one they are measurements. Groups without test examples count neither in a sum nor in its divisor;
with one stage every form is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from evertune.errors import DataError
from evertune.evaluation.matrix import Counts
from evertune.evaluation.metrics import backward_transfer
from evertune.evaluation.rates import Rates, accuracies


class NotMeasured(DataError):
    """A number that needs cells above the diagonal, or a baseline, which nobody measured."""


def unseen_as_wrong(correct: Counts) -> Counts:
    """``correct`` with 0 for the cells above the diagonal that were not measured: true where classes are new."""
    return np.where(np.tri(len(correct), dtype=bool), correct, np.maximum(correct, 0))


def forgetting_first_minus_last(correct: Counts, totals: Counts, *, digits: int | None = None) -> float:
    """Fall since the stage that learned the group; negative where later tasks helped (Avalanche).

    >>> forgetting_first_minus_last(np.array([[5, 0], [8, 9]]), np.array([10, 10]))
    -30.0
    """
    return 0.0 - backward_transfer(correct, totals, digits=digits)


def forgetting_from_any_stage(correct: Counts, totals: Counts) -> float:
    """Fall from the best stage before the last, those before the group was learned included (Renate)."""
    rates, tested = _tested(correct, totals, ahead=True)
    if not len(tested):
        return 0.0
    past = rates[:-1, tested]
    if np.isnan(past).any():
        stage, column = np.argwhere(np.isnan(past))[0]
        raise NotMeasured(f"needs a({stage + 1},{tested[column] + 1}), before the task was learned")
    return float(np.mean(past.max(axis=0) - rates[-1, tested]))


def forgetting_with_zero_shot(correct: Counts, totals: Counts) -> float:
    """Fall from the best stage, the last and the one just before the group was learned included (Mammoth)."""
    rates, tested = _tested(correct, totals, ahead=True)
    falls = [np.nanmax(rates[max(i - 1, 0) :, i]) - rates[-1, i] for i in tested]
    return float(np.mean(falls)) if falls else 0.0


def forgetting_without_newest(
    correct: Counts, totals: Counts, *, best: Literal["first", "max"], digits: int | None = None
) -> float:
    """Fall of all earlier groups but the newest, over the number with it: what two libraries compute.

    ``best``: "first" falls from the stage that learned the group (LibContinual), "max" from the best stage but the last
    two (Continuum).

    >>> correct, totals = np.array([[9, 0, 0], [7, 9, 0], [6, 1, 9]]), np.array([10, 10, 10])
    >>> forgetting_without_newest(correct, totals, best="first")  # (90 − 60) / 2: the second group's 80 are not seen
    15.0
    """
    rates, tested = _tested(correct, totals, digits=digits)
    old = [i for i in tested if i < len(totals) - 2]
    falls = [(rates[i, i] if best == "first" else rates[i:-2, i].max()) - rates[-1, i] for i in old]
    return float(np.sum(falls)) / len(tested) if falls else 0.0


def backward_transfer_all_pairs(correct: Counts, totals: Counts, *, newest: bool, digits: int | None = None) -> float:
    """Mean change since it was learned of every earlier group at every later stage.

    Without ``newest`` each stage passes over the group learned just before it, and the divisor does not.
    """
    rates, tested = _tested(correct, totals, digits=digits)
    pairs = [(t, i) for t in range(1, len(totals)) for i in tested if i < t]
    if not pairs:
        return 0.0
    return float(np.sum([rates[t, i] - rates[i, i] for t, i in pairs if newest or i < t - 1])) / len(pairs)


def forward_transfer(correct: Counts, totals: Counts, baseline: Sequence[float] | float | None) -> float:
    """Mean head start of a group just before its own task is learned, over what is right without learning.

    ``baseline``: accuracy b(i) of each group in percent before anything was learned (the first is not read), or one
    number for all: chance, or 0 where an untrained learner has no answer.

    Raises NotMeasured without a baseline, or where an a(i−1, i) is lacking.
    """
    rates, tested = _tested(correct, totals, ahead=True, first=1, last=len(totals))
    if not len(tested):
        return 0.0
    if baseline is None:
        raise NotMeasured("needs the accuracies before anything was learned (a baseline)")
    start = np.asarray(baseline, dtype=np.float64)
    if start.ndim and start.shape != totals.shape:
        raise DataError(f"baseline has shape {start.shape}; give one accuracy for each of the {len(totals)} groups.")
    if not np.all((start >= 0) & (start <= 100)):
        raise DataError(f"baseline holds {start.tolist()}; accuracies are from 0 to 100 percent.")
    before = rates[tested - 1, tested]
    if np.isnan(before).any():
        group = tested[int(np.argmax(np.isnan(before)))]
        raise NotMeasured(f"needs a({group},{group + 1}), just before the task was learned")
    return float(np.mean(before - np.broadcast_to(start, totals.shape)[tested]))


def _tested(
    correct: Counts,
    totals: Counts,
    *,
    ahead: bool = False,
    digits: int | None = None,
    first: int = 0,
    last: int | None = None,
) -> tuple[Rates, Counts]:
    """a [T, T] and the groups from first to last with test examples; by default all but the last group."""
    rates = accuracies(correct, totals, ahead=ahead, digits=digits)
    groups = np.arange(first, len(totals) - 1 if last is None else last)
    return rates, groups[totals[groups] > 0]
