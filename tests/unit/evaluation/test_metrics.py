from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import ConfigError, DataError
from evertune.evaluation import (
    AccuracyMatrix,
    accuracy_curve,
    area_under_curve,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    summary,
)
from evertune.evaluation.matrix import Counts

# Imbalanced on purpose. In percent: after stage 1: 90; stage 2: 70, 50; stage 3: 80, 52, 100.
CORRECT = np.array([[9, 0, 0], [7, 50, 0], [8, 52, 4]])
TOTALS = np.array([10, 100, 4])


def test_by_hand_over_samples() -> None:
    curve = accuracy_curve(CORRECT, TOTALS, weight="sample")
    assert curve == pytest.approx([90, 100 * 57 / 110, 100 * 64 / 114])
    assert final_accuracy(CORRECT, TOTALS, weight="sample") == pytest.approx(6400 / 114)
    assert average_accuracy(CORRECT, TOTALS, weight="sample") == pytest.approx((90 + 5700 / 110 + 6400 / 114) / 3)


def test_by_hand_as_mean_of_tasks() -> None:
    curve = accuracy_curve(CORRECT, TOTALS, weight="task")
    assert curve == pytest.approx([90, 60, (80 + 52 + 100) / 3])
    assert final_accuracy(CORRECT, TOTALS, weight="task") == pytest.approx(232 / 3)
    assert average_accuracy(CORRECT, TOTALS, weight="task") == pytest.approx((90 + 60 + 232 / 3) / 3)


def test_the_two_weights_differ_where_groups_do() -> None:
    by_sample = final_accuracy(CORRECT, TOTALS, weight="sample")
    assert final_accuracy(CORRECT, TOTALS, weight="task") - by_sample > 20


def test_forgetting_by_hand_with_and_without_the_last_stage() -> None:
    # Group 1 was best at 90 and ends at 80; group 2 is best at the end (52), before that 50.
    assert forgetting(CORRECT, TOTALS, include_last=True) == pytest.approx((10 + 0) / 2)
    assert forgetting(CORRECT, TOTALS, include_last=False) == pytest.approx((10 - 2) / 2)


def test_backward_transfer_by_hand() -> None:
    assert backward_transfer(CORRECT, TOTALS) == pytest.approx(((80 - 90) + (52 - 50)) / 2)


def test_one_stage_has_nothing_to_forget() -> None:
    correct, totals = np.array([[3]]), np.array([4])
    assert forgetting(correct, totals, include_last=True) == forgetting(correct, totals, include_last=False) == 0
    assert backward_transfer(correct, totals) == 0
    assert final_accuracy(correct, totals, weight="task") == average_accuracy(correct, totals, weight="sample") == 75


def test_groups_without_test_examples_do_not_count() -> None:
    correct, totals = np.array([[0, 0, 0], [0, 5, 0], [0, 4, 9]]), np.array([0, 5, 10])
    for weight, last in (("sample", 100 * 13 / 15), ("task", 85.0)):
        curve = accuracy_curve(correct, totals, weight=weight)  # type: ignore[arg-type]
        assert np.isnan(curve[0]) and curve[1:] == pytest.approx([100, last])
        assert average_accuracy(correct, totals, weight=weight) == pytest.approx((100 + last) / 2)  # type: ignore[arg-type]
    assert forgetting(correct, totals, include_last=True) == pytest.approx(20)
    assert backward_transfer(correct, totals) == pytest.approx(-20)
    only_last = np.array([[0, 0], [0, 3]]), np.array([0, 3])
    assert forgetting(*only_last, include_last=False) == backward_transfer(*only_last) == 0


@st.composite
def counts(draw: st.DrawFn, least: int = 1) -> tuple[Counts, Counts]:
    stages = draw(st.integers(1, 7))
    totals = draw(st.lists(st.integers(least, 50), min_size=stages, max_size=stages))
    # Cells above the diagonal are filled too: no metric may read them.
    rows = [[draw(st.integers(0, total)) for total in totals] for _ in range(stages)]
    return np.array(rows), np.array(totals)


@given(counts())
def test_against_an_independent_oracle(case: tuple[Counts, Counts]) -> None:
    correct, totals = case
    last = len(totals) - 1
    # Every test example as one entry: the definition of top-1, with no weights anywhere.
    answers = [
        [np.repeat([1.0, 0.0], [correct[t, i], totals[i] - correct[t, i]]) for i in range(t + 1)]
        for t in range(last + 1)
    ]
    by_sample = [100 * np.concatenate(stage).mean() for stage in answers]
    by_task = [100 * np.mean([group.mean() for group in stage]) for stage in answers]
    assert accuracy_curve(correct, totals, weight="sample") == pytest.approx(by_sample)
    assert accuracy_curve(correct, totals, weight="task") == pytest.approx(by_task)
    assert final_accuracy(correct, totals, weight="sample") == pytest.approx(by_sample[-1])
    assert average_accuracy(correct, totals, weight="task") == pytest.approx(np.mean(by_task))
    if last == 0:
        return
    a = [[100 * group.mean() for group in stage] for stage in answers]
    best = [max(a[t][i] for t in range(i, last)) for i in range(last)]
    without = np.mean([best[i] - a[last][i] for i in range(last)])
    with_last = np.mean([max(best[i], a[last][i]) - a[last][i] for i in range(last)])
    assert forgetting(correct, totals, include_last=False) == pytest.approx(without, abs=1e-9)
    assert forgetting(correct, totals, include_last=True) == pytest.approx(with_last, abs=1e-9)
    moved = np.mean([a[last][i] - a[i][i] for i in range(last)])
    assert backward_transfer(correct, totals) == pytest.approx(moved, abs=1e-9)


@given(counts(), st.integers(2, 5))
def test_the_weights_agree_where_groups_are_equal_and_size_does_not_matter(
    case: tuple[Counts, Counts], factor: int
) -> None:
    correct, totals = np.minimum(case[0], case[1].min()), np.full_like(case[1], case[1].min())
    by_sample = accuracy_curve(correct, totals, weight="sample")
    assert by_sample == pytest.approx(accuracy_curve(correct, totals, weight="task"))
    assert by_sample == pytest.approx(accuracy_curve(factor * correct, factor * totals, weight="sample"))


@given(counts())
def test_forgetting_with_the_last_stage_is_never_negative_nor_smaller(case: tuple[Counts, Counts]) -> None:
    with_last = forgetting(*case, include_last=True)
    assert with_last >= 0
    assert with_last >= forgetting(*case, include_last=False) - 1e-9
    assert with_last >= -backward_transfer(*case) - 1e-9


@pytest.mark.golden
def test_hide_pets_released_metrics(shared: Path) -> None:
    golden = np.load(shared / "golden" / "hide_metrics.npz", allow_pickle=False)
    # Recorded as [evaluated task, stage] in percent with two decimals: whole counts of 10 000 examples each.
    correct = np.rint(100 * golden["accuracy[evaluated_task,stage]"].T).astype(np.int64)
    totals = np.full(len(correct), 10_000)
    curve = accuracy_curve(correct, totals, weight="task")
    assert curve == pytest.approx(golden["average_accuracy_per_stage"], abs=1e-9)
    for stage in range(1, len(correct) + 1):
        until = correct[:stage, :stage], totals[:stage]
        released = golden["forgetting_per_stage"][stage - 1]
        assert forgetting(*until, include_last=True) == pytest.approx(released, abs=1e-9)
        assert backward_transfer(*until) == pytest.approx(golden["backward_per_stage"][stage - 1], abs=1e-9)
    assert final_accuracy(correct, totals, weight="task") == pytest.approx(golden["FAA"], abs=1e-9)
    assert average_accuracy(correct, totals, weight="task") == pytest.approx(golden["CAA_mean_over_stages"], abs=1e-9)
    assert forgetting(correct, totals, include_last=True) == pytest.approx(golden["FFM_released"], abs=1e-9)
    without = golden["FFM_excluding_last_stage"]
    assert forgetting(correct, totals, include_last=False) == pytest.approx(without, abs=1e-9)


def test_summary_names_every_convention_for_every_part() -> None:
    matrix = AccuracyMatrix("mixture")
    for part, worse in (("slow", 1), ("mixture", 0)):
        for stage in range(3):
            for group in range(stage + 1):
                matrix.record(stage, group, CORRECT[stage, group] - worse, TOTALS[group], part=part)
    numbers = summary(matrix)
    assert list(numbers) == ["mixture", "slow"]
    assert numbers["mixture"] == pytest.approx(
        {
            "final_accuracy_sample": 6400 / 114,
            "final_accuracy_task": 232 / 3,
            "average_accuracy_sample": (90 + 5700 / 110 + 6400 / 114) / 3,
            "average_accuracy_task": (90 + 60 + 232 / 3) / 3,
            "forgetting_with_last_stage": 5,
            "forgetting_without_last_stage": 4,
            "backward_transfer": -4,
        }
    )
    assert numbers["slow"]["final_accuracy_sample"] == pytest.approx(6100 / 114)


def test_there_is_no_summary_of_nothing() -> None:
    with pytest.raises(DataError, match="empty"):
        summary(AccuracyMatrix())
    only_slow = AccuracyMatrix("mixture")
    only_slow.record(0, 0, 1, 2, part="slow")
    with pytest.raises(ConfigError, match="no part 'mixture'"):
        summary(only_slow)


@pytest.mark.parametrize(
    ("correct", "totals", "message"),
    [
        (np.zeros((0, 0), int), np.zeros(0, int), "at least one stage"),
        (np.zeros((2, 3), int), np.array([1, 1]), r"shape \(2, 3\)"),
        (np.array([[0.5]]), np.array([1]), "whole counts, not rates"),
        (np.array([[1, 0], [3, 1]]), np.array([2, 2]), "stage 1, group 0: 3 correct of 2"),
        (np.array([[-1]]), np.array([2]), "-1 correct"),
        (np.array([[0]]), np.array([0]), "none of the groups has a test example"),
    ],
)
def test_impossible_counts_are_refused(correct: Counts, totals: Counts, message: str) -> None:
    for metric in (
        lambda: final_accuracy(correct, totals, weight="sample"),
        lambda: forgetting(correct, totals, include_last=True),
        lambda: backward_transfer(correct, totals),
    ):
        with pytest.raises(DataError, match=message):
            metric()


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown weight 'samples'\. Did you mean 'sample'"):
        accuracy_curve(CORRECT, TOTALS, weight="samples")  # type: ignore[arg-type]


def test_rounding_first_as_some_code_bases_do() -> None:
    # 57/110 = 51.818…, 64/114 = 56.140…; a(2,1) = 70, all others whole.
    assert accuracy_curve(CORRECT, TOTALS, weight="sample", digits=2).tolist() == [90, 51.82, 56.14]
    correct, totals = np.array([[2, 0], [1, 1]]), np.array([3, 7])
    assert accuracy_curve(correct, totals, weight="task", digits=2)[1] == pytest.approx((33.33 + 14.29) / 2, abs=1e-9)
    assert forgetting(correct, totals, include_last=True, digits=2) == pytest.approx(66.67 - 33.33, abs=1e-9)
    assert backward_transfer(correct, totals, digits=2) == pytest.approx(33.33 - 66.67, abs=1e-9)


def test_area_under_the_curve_by_hand() -> None:
    curve, examples = np.array([80.0, 60.0, 70.0]), np.array([100, 100, 200])
    # Over examples 100 to 200 the mean is 70, over 200 to 400 it is 65.
    assert area_under_curve(curve, examples) == pytest.approx((70 + 2 * 65) / 3)
    assert area_under_curve(curve, examples, rule="step") == pytest.approx((80 + 60 + 2 * 70) / 4)
    assert area_under_curve(curve[:1], examples[:1]) == area_under_curve(curve[:1], examples[:1], rule="step") == 80
    # Without the second measurement the line goes from the first to the third.
    unknown = np.array([80.0, np.nan, 70.0])
    assert area_under_curve(unknown, examples) == 75
    assert area_under_curve(unknown, examples, rule="step") == pytest.approx((80 + 3 * 70) / 4)
    assert np.isnan(area_under_curve(np.array([np.nan]), np.array([3])))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 1000)), min_size=2, max_size=8))
def test_area_under_the_curve_against_scipy_and_the_mean(stages: list[tuple[float, int]]) -> None:
    from scipy.integrate import trapezoid

    curve, examples = np.array([height for height, _ in stages]), np.array([count for _, count in stages])
    seen = np.cumsum(examples)
    assert area_under_curve(curve, examples) == pytest.approx(trapezoid(curve, seen) / (seen[-1] - seen[0]), abs=1e-9)
    equal = np.full_like(examples, 7)
    assert area_under_curve(curve, equal, rule="step") == pytest.approx(curve.mean(), abs=1e-9)


@pytest.mark.parametrize(
    ("curve", "examples", "message"),
    [
        ([80.0], [1, 2], "one number of training examples per stage"),
        ([], [], "one number of training examples per stage"),
        ([80.0, 70.0], [5, 0], "stage 1 has 0 training examples"),
    ],
)
def test_an_impossible_area_is_refused(curve: list[float], examples: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        area_under_curve(np.array(curve), np.array(examples))
    with pytest.raises(ConfigError, match="unknown rule 'steps'"):
        area_under_curve(np.array([1.0]), np.array([1]), rule="steps")  # type: ignore[arg-type]


def test_how_often_the_task_was_found_is_a_number_of_the_answer() -> None:
    matrix = AccuracyMatrix("answer")
    for stage in range(3):
        for group in range(stage + 1):
            matrix.record(stage, group, 0, TOTALS[group])
            matrix.record(stage, group, CORRECT[stage, group], TOTALS[group], part="router")
    numbers = summary(matrix)
    assert numbers["answer"]["task_identity_sample"] == pytest.approx(6400 / 114)
    assert numbers["answer"]["task_identity_task"] == pytest.approx(232 / 3)
    assert "task_identity_sample" not in numbers["router"]
