from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from evertune.errors import DataError
from evertune.evaluation import Calibration

ANSWERS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60)


def test_by_hand() -> None:
    # Four bins: (0.2, 0.25) of which one is right; (0.6) right; (0.8, 0.9, 1.0) of which two are right.
    confidence = [0.2, 0.25, 0.6, 0.8, 0.9, 1.0]
    right = [True, False, True, True, False, True]
    measured = Calibration.measure(confidence, right, bins=4)
    assert measured.counts.tolist() == [2, 0, 1, 3], "0.25 is the upper edge of its bin"
    assert measured.correct.tolist() == [1, 0, 1, 2]
    assert measured.confidence == pytest.approx([0.45, 0, 0.6, 2.7])
    # |1 − 0.45| + |1 − 0.6| + |2 − 2.7| = 1.65 of six examples.
    assert measured.error == pytest.approx(100 * 1.65 / 6)
    assert measured.largest_gap == pytest.approx(40)
    assert measured.total == 6
    assert measured.table() == [
        pytest.approx({"from": 0, "to": 0.25, "examples": 2, "accuracy": 50, "confidence": 22.5}),
        pytest.approx({"from": 0.5, "to": 0.75, "examples": 1, "accuracy": 100, "confidence": 60}),
        pytest.approx({"from": 0.75, "to": 1, "examples": 3, "accuracy": 200 / 3, "confidence": 90}),
    ]


@given(ANSWERS, st.integers(1, 20))
def test_against_the_definition(answers: list[tuple[float, bool]], bins: int) -> None:
    confidence, right = (np.array(column) for column in zip(*answers, strict=True))
    expected = 0.0
    edges = np.linspace(0, 1, bins + 1)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high) | ((low == 0) & (confidence == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].astype(float).mean())
    measured = Calibration.measure(confidence, right, bins=bins)
    assert measured.error == pytest.approx(100 * expected, abs=1e-6)
    assert measured.error <= measured.largest_gap + 1e-9
    # One bin sees only the difference between mean confidence and accuracy; more bins can only see more.
    assert measured.error >= Calibration.measure(confidence, right, bins=1).error - 1e-6


@given(ANSWERS, ANSWERS)
def test_measuring_in_pieces_is_measuring_at_once(
    first: list[tuple[float, bool]], second: list[tuple[float, bool]]
) -> None:
    at_once, one, other = (
        Calibration.measure(*zip(*answers, strict=True)) for answers in (first + second, first, second)
    )
    merged = one + other
    assert merged.counts.tolist() == at_once.counts.tolist() and merged.correct.tolist() == at_once.correct.tolist()
    assert merged.error == pytest.approx(at_once.error, abs=1e-9)


def test_adaptive_bins_hold_equally_many_and_keep_ties_together() -> None:
    confidence = np.linspace(0.91, 0.99, 60)
    right = np.arange(60) % 2 == 0
    measured = Calibration.measure(confidence, right, bins=6, adaptive=True)
    assert measured.counts.tolist() == [10] * 6
    assert np.count_nonzero(Calibration.measure(confidence, right, bins=6).counts) == 1
    tied = Calibration.measure([0.5] * 9 + [0.9], [True] * 10, bins=5, adaptive=True)
    assert sorted(tied.counts[tied.counts > 0].tolist()) == [1, 9]
    with pytest.raises(DataError, match="different bins"):
        measured + tied


def test_a_calibrated_classifier_has_no_error_and_an_overconfident_one_has() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    right = rng.uniform(size=confidence.size) < confidence
    assert Calibration.measure(confidence, right).error < 0.4
    assert Calibration.measure(confidence, right, adaptive=True).error < 0.6
    assert Calibration.measure(confidence**0.2, right).error > 20


@given(st.integers(1, 20), st.integers(2, 6), st.floats(0.1, 5))
def test_confidence_of_scores_is_the_largest_softmax_probability(rows: int, classes: int, temperature: float) -> None:
    rng = np.random.default_rng(rows * classes)
    scores, truth = rng.normal(scale=30, size=(rows, classes)), rng.integers(0, classes, rows)
    scores[:, 0] = -np.inf  # a class that is no candidate
    probabilities = softmax(scores / temperature, axis=1)
    expected = Calibration.measure(probabilities.max(1), probabilities.argmax(1) == truth)
    measured = Calibration.of_scores(scores.astype(np.float64), truth, temperature=temperature)
    assert measured.counts.tolist() == expected.counts.tolist()
    assert measured.confidence == pytest.approx(expected.confidence, abs=1e-9)
    assert measured.correct.sum() == (scores.argmax(1) == truth).sum()


def test_it_survives_a_file_and_a_damaged_one_is_refused() -> None:
    measured = Calibration.measure([0.3, 0.7, 0.75], [False, True, True], adaptive=True)
    again = Calibration.from_dict(json.loads(json.dumps(measured.as_dict())))
    assert again.as_dict() == measured.as_dict() and again.error == measured.error
    for damage in ({"counts": [1]}, {"correct": [9] * len(measured.counts)}, {"edges": "x"}, {"confidence": None}):
        with pytest.raises(DataError, match="no calibration"):
            Calibration.from_dict(measured.as_dict() | damage)
    with pytest.raises(DataError, match="no calibration"):
        Calibration.from_dict({})


def test_no_example_no_error() -> None:
    nothing = Calibration.measure([], [])
    assert np.isnan(nothing.error) and np.isnan(nothing.largest_gap) and nothing.total == 0 and nothing.table() == []


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        ([0.5, 1.1], [True, True], "row 1: confidence 1.1 is no probability"),
        ([np.nan], [True], "row 0: confidence nan"),
        ([-0.1], [True], "confidence -0.1"),
        ([0.5], [True, False], "one of each per example"),
    ],
)
def test_impossible_confidences_are_refused(confidence: list[float], right: list[bool], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Calibration.measure(confidence, right)


@pytest.mark.parametrize(
    ("scores", "truth", "temperature", "message"),
    [
        ([[1.0, 2.0]], [0, 1], 1.0, r"\[N, K\]"),
        ([[1.0, 2.0]], [0], 0.0, "positive temperature"),
        ([[1.0, 2.0], [-np.inf, -np.inf]], [0, 0], 1.0, "row 1: its best score is -inf"),
        ([[1.0, np.nan]], [0], 1.0, "row 0: its best score is nan"),
    ],
)
def test_impossible_scores_are_refused(
    scores: list[list[float]], truth: list[int], temperature: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Calibration.of_scores(scores, truth, temperature=temperature)
