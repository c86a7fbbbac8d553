from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import ConfigError, DataError, StorageError
from evertune.evaluation import AccuracyMatrix


def two_parts() -> AccuracyMatrix:
    matrix = AccuracyMatrix("mixture")
    for part, rows in {"slow": [[8], [7, 3]], "mixture": [[9], [8, 4]]}.items():
        for stage, row in enumerate(rows):
            for group, correct in enumerate(row):
                matrix.record(stage, group, correct, [10, 5][group], part=part, name=["cat", "dog"][group])
    return matrix


@st.composite
def matrices(draw: st.DrawFn) -> AccuracyMatrix:
    stages = draw(st.integers(1, 5))
    parts = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3, unique=True))
    totals = draw(st.lists(st.integers(0, 30), min_size=stages, max_size=stages))
    matrix = AccuracyMatrix(parts[-1])
    for part in parts:
        for stage in range(stages):
            for group in range(stage + 1):
                matrix.record(stage, group, draw(st.integers(0, totals[group])), totals[group], part=part)
    return matrix


def test_counts_and_accuracies() -> None:
    matrix = two_parts()
    correct, totals = matrix.counts()
    assert correct.tolist() == [[9, 0], [8, 4]] and totals.tolist() == [10, 5]
    assert correct.dtype == totals.dtype == np.int64
    assert matrix.counts("slow")[0].tolist() == [[8, 0], [7, 3]]
    assert matrix.accuracy(1, 0) == 80.0 and matrix.accuracy(1, 1, "slow") == 60.0
    assert matrix.stages == 2
    assert matrix.names == ("cat", "dog")
    assert matrix.parts == ("mixture", "slow"), "the primary part comes first, whenever it was recorded"
    assert repr(matrix) == "AccuracyMatrix(2 stages; parts: mixture, slow)"


def test_groups_without_a_name_are_numbered_from_one() -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, 0, 1, 2)
    assert matrix.names == ("task 1",)


def test_a_cell_recorded_again_is_replaced() -> None:
    matrix = two_parts()
    matrix.record(1, 0, 3, 10)
    assert matrix.accuracy(1, 0) == 30.0


def test_numpy_integers_are_welcome_and_a_group_may_be_empty() -> None:
    matrix = AccuracyMatrix()
    matrix.record(np.int64(0), np.int32(0), np.int64(0), np.int64(0))
    assert math.isnan(matrix.accuracy(0, 0))
    assert json.loads(matrix.to_json())["totals"] == [0]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((0, 1, 1, 5), "stage 0, group 1: .*groups seen so far"),
        ((1, -1, 1, 5), "groups seen so far"),
        ((2, 2, 6, 5), "stage 2, group 2: 6 correct of 5 test examples is impossible"),
        ((2, 2, -1, 5), "-1 correct of 5"),
        ((2, 1, 3, 6), "6 test examples, but 5 when the group was recorded first"),
        ((2, 2, 0.5, 5), "correct must be a whole number, not 0.5; record counts, not rates"),
    ],
)
def test_impossible_cells_are_refused(cell: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        two_parts().record(*cell)


def test_a_group_keeps_its_name() -> None:
    with pytest.raises(DataError, match="named 'fox', but 'cat' before"):
        two_parts().record(1, 0, 8, 10, name="fox")


def test_an_empty_matrix_and_an_unknown_part_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        AccuracyMatrix().counts()
    with pytest.raises(ConfigError, match=r"no part 'slw'\. Did you mean 'slow'"):
        two_parts().counts("slw")


def test_half_a_stage_is_no_stage() -> None:
    matrix = two_parts()
    matrix.record(2, 2, 5, 5)
    with pytest.raises(DataError, match=r"part 'mixture' lacks the cells \(stage, group\) \(2, 0\), \(2, 1\); record"):
        matrix.counts()
    with pytest.raises(DataError, match="was not recorded"):
        matrix.accuracy(2, 0)


@given(matrices())
def test_json_round_trip(matrix: AccuracyMatrix) -> None:
    again = AccuracyMatrix.from_json(matrix.to_json())
    assert again == matrix
    assert again.parts == matrix.parts
    assert again.to_json() == matrix.to_json()


def test_json_round_trip_of_an_unfinished_and_an_empty_matrix() -> None:
    matrix = two_parts()
    matrix.record(3, 2, 5, 5, part="slow")
    assert AccuracyMatrix.from_json(matrix.to_json()) == matrix
    assert AccuracyMatrix.from_json(AccuracyMatrix("fast").to_json()) == AccuracyMatrix("fast")
    assert matrix != two_parts()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop("totals"), "'totals' is missing"),
        (lambda content: content.update(format="other/1"), "its format is 'other/1'"),
        (lambda content: content["totals"].pop(), "out of range"),
        (lambda content: content["totals"].__setitem__(0, 3), "8 correct of 3|9 correct of 3"),
        (lambda content: content["correct"]["slow"][0].__setitem__(0, 0.8), "whole number"),
        (lambda content: content["correct"]["slow"][0].append(1), "groups seen so far"),
        (lambda content: content.update(correct=[1]), "no attribute"),
        (lambda content: content.update(primary=3), "3 is not a name"),
        (lambda content: content.update(names=[7, None]), "7 is not a name"),
    ],
)
def test_a_damaged_file_is_refused(damage: object, message: str) -> None:
    content = json.loads(two_parts().to_json())
    damage(content)  # type: ignore[operator]
    with pytest.raises(StorageError, match=message):
        AccuracyMatrix.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", two_parts().to_json()[:-20]])
def test_a_truncated_file_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="no whole accuracy matrix"):
        AccuracyMatrix.from_json(text)


def looking_ahead() -> AccuracyMatrix:
    matrix = two_parts()
    matrix.record(0, 1, 2, 5, part="mixture", ahead=True)
    matrix.record(1, 3, 6, 8, part="mixture", name="fox", ahead=True)
    return matrix


def test_groups_of_tasks_to_come_may_be_recorded() -> None:
    matrix = looking_ahead()
    assert matrix.stages == 2, "looking ahead is no stage"
    assert matrix.accuracy(0, 1) == 40.0 and matrix.accuracy(1, 3) == 75.0
    assert matrix.measured(0, 1) and not matrix.measured(0, 1, "slow")
    assert matrix.counts()[0].tolist() == [[9, 0], [8, 4]], "metrics that do not ask do not see it"
    correct, totals = matrix.counts(ahead=True)
    assert correct.tolist() == [[9, 2], [8, 4]] and totals.tolist() == [10, 5]
    assert matrix.counts("slow", ahead=True)[0].tolist() == [[8, -1], [7, 3]], "−1 where nobody measured"


def test_looking_ahead_survives_the_file_and_others_keep_theirs() -> None:
    matrix = looking_ahead()
    content = json.loads(matrix.to_json())
    assert content["format"] == "evertune.accuracy-matrix/2"
    assert content["correct"]["mixture"] == [[9, 2, None, None], [8, 4, None, 6]]
    assert AccuracyMatrix.from_json(matrix.to_json()) == matrix
    assert json.loads(two_parts().to_json())["format"] == "evertune.accuracy-matrix/1"
    content["format"] = "evertune.accuracy-matrix/1"
    with pytest.raises(StorageError, match="groups seen so far"):
        AccuracyMatrix.from_json(json.dumps(content))


@given(matrices(), st.integers(0, 5))
def test_the_matrix_as_it_was(matrix: AccuracyMatrix, stages: int) -> None:
    early = matrix.first(stages)
    stages = min(stages, matrix.stages)
    assert early.stages == stages
    for part in early.parts:
        (correct, totals), (then, then_totals) = matrix.counts(part), early.counts(part)
        assert (then == correct[:stages, :stages]).all() and (then_totals == totals[:stages]).all()
    assert stages < matrix.stages or early == matrix


def test_the_matrix_as_it_was_remembers_what_lay_ahead() -> None:
    early = looking_ahead().first(1)
    assert early.accuracy(0, 1) == 40.0 and early.stages == 1 and early.names == ("cat",)
