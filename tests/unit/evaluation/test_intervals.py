from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evertune.errors import ConfigError, DataError
from evertune.evaluation import Interval, binomial_interval, interval, paired

VALUES = st.lists(st.floats(0, 100), min_size=2, max_size=10)


def test_students_interval_by_hand() -> None:
    # Mean 82, s = 2, t(0.975, 2) = 4.30265: half the width is 4.30265 · 2 / √3 = 4.96827.
    found = interval([80.0, 82.0, 84.0])
    assert (found.mean, found.count, found.level) == (82, 3, 0.95)
    assert (found.low, found.high) == pytest.approx((77.03173, 86.96827), abs=1e-5)
    assert str(found) == "82.00 [77.03, 86.97]"
    assert json.loads(json.dumps(found.as_dict()))["mean"] == 82


@given(VALUES, st.floats(0.5, 0.999))
def test_students_interval_against_scipy(values: list[float], level: float) -> None:
    if np.std(values) < 1e-6:
        return
    found = interval(values, level)
    low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_run_has_no_interval() -> None:
    found = interval([81.5])
    assert found == Interval(81.5, None, None, 1, 0.95) and str(found) == "81.50"
    alone = paired([81.5], [80.0])
    assert alone.difference.mean == 1.5 and alone.t_test is None and alone.wilcoxon is None


@pytest.mark.parametrize("seed", range(20))
def test_paired_runs_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(60, 90, size=2 + seed % 9)
    other = values + rng.normal(1, 2, size=values.size)
    found = paired(values.tolist(), other.tolist())
    assert found.difference.mean == pytest.approx(np.mean(values) - np.mean(other), abs=1e-9)
    assert found.t_test == pytest.approx(stats.ttest_rel(values, other).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(values, other).pvalue)
    # The interval of the difference leaves out zero where the test says p < 0.05, and only there.
    assert found.difference.low is not None and found.difference.high is not None and found.t_test is not None
    if abs(found.t_test - 0.05) > 1e-6:
        assert (found.difference.low > 0 or found.difference.high < 0) == (found.t_test < 0.05)
    json.dumps(found.as_dict(), allow_nan=False)


def test_pairing_takes_out_what_runs_share() -> None:
    order = np.array([60.0, 70.0, 80.0, 90.0])  # easy and hard class orders
    better = order + np.array([1.0, 1.2, 0.8, 1.1])
    pair = paired(better.tolist(), order.tolist())
    assert pair.difference.low is not None and pair.difference.low > 0.5
    alone, other = interval(better.tolist()), interval(order.tolist())
    assert alone.low is not None and other.high is not None and alone.low < other.high, "unpaired they overlap"


def test_equal_runs_and_equal_differences() -> None:
    same = paired([80.0, 81.0], [80.0, 81.0])
    assert same.t_test == same.wilcoxon == 1 and same.difference.mean == 0
    shifted = paired([82.0, 83.0, 84.0], [81.0, 82.0, 83.0])
    assert shifted.t_test is None, "without spread t is infinite"
    assert shifted.wilcoxon == stats.wilcoxon([1.0, 2.0, 3.0]).pvalue == 0.25


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_against_scipy(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    found = binomial_interval(correct, total)
    expected = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert found.mean == pytest.approx(100 * correct / total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([]), "one finite number per run"),
        (lambda: interval([1.0, math.nan]), "one finite number per run"),
        (lambda: paired([1.0, 2.0], [1.0]), "2 runs of one and 1 of the other"),
        (lambda: binomial_interval(3, 2), "3 correct of 2"),
        (lambda: binomial_interval(0, 0), "0 correct of 0"),
    ],
)
def test_impossible_values_are_refused(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level: float) -> None:
    for call in (lambda: interval([1.0, 2.0], level), lambda: binomial_interval(1, 2, level)):
        with pytest.raises(ConfigError, match="give the share of the interval"):
            call()
