from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import DataError
from evertune.evaluation.matrix import Counts
from evertune.evaluation.metrics import backward_transfer, forgetting
from evertune.evaluation.transfer import (
    NotMeasured,
    backward_transfer_all_pairs,
    forgetting_first_minus_last,
    forgetting_from_any_stage,
    forgetting_with_zero_shot,
    forgetting_without_newest,
    forward_transfer,
    unseen_as_wrong,
)


@st.composite
def counts(draw: st.DrawFn, least: int = 1) -> tuple[Counts, Counts]:
    """All cells measured, those above the diagonal too."""
    stages = draw(st.integers(1, 6))
    totals = draw(st.lists(st.integers(least, 50), min_size=stages, max_size=stages).filter(any))
    return np.array([[draw(st.integers(0, n)) for n in totals] for _ in range(stages)]), np.array(totals)


@given(counts())
def test_against_the_formulas_written_out(case: tuple[Counts, Counts]) -> None:
    correct, totals = case
    stages = len(totals)
    a = 100 * correct / totals
    last = stages - 1

    def mean(values: list[float], of: int | None = None) -> float:
        of = len(values) if of is None else of
        return sum(values) / of if of else 0.0

    old = range(last)
    assert forgetting_first_minus_last(*case) == pytest.approx(mean([a[i, i] - a[last, i] for i in old]), abs=1e-9)
    any_stage = [max(a[k, i] for k in range(last)) - a[last, i] for i in old]
    assert forgetting_from_any_stage(*case) == pytest.approx(mean(any_stage), abs=1e-9)
    zero_shot = [max(a[k, i] for k in range(max(i - 1, 0), stages)) - a[last, i] for i in old]
    assert forgetting_with_zero_shot(*case) == pytest.approx(mean(zero_shot), abs=1e-9)
    first = [a[i, i] - a[last, i] for i in range(stages - 2)]
    assert forgetting_without_newest(*case, best="first") == pytest.approx(mean(first, of=last), abs=1e-9)
    best = [max(a[k, i] for k in range(i, stages - 2)) - a[last, i] for i in range(stages - 2)]
    assert forgetting_without_newest(*case, best="max") == pytest.approx(mean(best, of=last), abs=1e-9)
    pairs = [(t, i) for t in range(stages) for i in range(t)]
    moved = [a[t, i] - a[i, i] for t, i in pairs]
    assert backward_transfer_all_pairs(*case, newest=True) == pytest.approx(mean(moved), abs=1e-9)
    older = [a[t, i] - a[i, i] for t, i in pairs if i < t - 1]
    assert backward_transfer_all_pairs(*case, newest=False) == pytest.approx(mean(older, of=len(pairs)), abs=1e-9)
    ahead = [a[i - 1, i] - 7 for i in range(1, stages)]
    assert forward_transfer(*case, 7) == pytest.approx(mean(ahead), abs=1e-9)
    assert forward_transfer(*case, [7] * stages) == pytest.approx(mean(ahead), abs=1e-9)


@given(counts())
def test_where_classes_are_new_looking_ahead_finds_nothing(case: tuple[Counts, Counts]) -> None:
    correct, totals = np.where(np.tri(len(case[1]), dtype=bool), case[0], -1), case[1]
    wrong = unseen_as_wrong(correct)
    assert (wrong >= 0).all() and (np.tril(wrong) == np.tril(correct)).all()
    assert forgetting_with_zero_shot(correct, totals) == pytest.approx(forgetting(correct, totals, include_last=True))
    assert forgetting_with_zero_shot(wrong, totals) == pytest.approx(forgetting(correct, totals, include_last=True))
    before_last = forgetting(correct, totals, include_last=False)
    assert forgetting_from_any_stage(wrong, totals) == pytest.approx(before_last, abs=1e-9)
    assert forward_transfer(wrong, totals, 0) == 0


@given(counts(least=0))
def test_groups_without_test_examples_leave_every_form_finite(case: tuple[Counts, Counts]) -> None:
    values = [
        forgetting_first_minus_last(*case),
        forgetting_from_any_stage(*case),
        forgetting_with_zero_shot(*case),
        forgetting_without_newest(*case, best="max"),
        backward_transfer_all_pairs(*case, newest=True),
        forward_transfer(*case, 0),
    ]
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(-backward_transfer(*case), abs=1e-9)


def test_what_is_lacking_is_named() -> None:
    correct, totals = np.array([[5, 3, -1], [4, 6, -1], [3, 5, 7]]), np.array([10, 10, 10])
    with pytest.raises(NotMeasured, match=r"a\(2,3\), just before the task was learned"):
        forward_transfer(correct, totals, 0)
    assert forgetting_from_any_stage(correct, totals) == pytest.approx((20 + 10) / 2), "group 3 is not asked for"
    correct[0, 1] = -1
    with pytest.raises(NotMeasured, match=r"a\(1,2\), before the task was learned"):
        forgetting_from_any_stage(correct, totals)
    with pytest.raises(NotMeasured, match="baseline"):
        forward_transfer(correct, totals, None)


def test_impossible_counts_ahead_are_refused() -> None:
    correct, totals = np.array([[5, 11], [4, 6]]), np.array([10, 10])
    assert forgetting_without_newest(correct, totals, best="first") == 0, "forms that do not look ahead do not care"
    with pytest.raises(DataError, match="stage 0, group 1: 11 correct of 10"):
        forward_transfer(correct, totals, 0)
    correct[0, 1] = -2
    with pytest.raises(DataError, match="-2 correct of 10"):
        forgetting_with_zero_shot(correct, totals)
