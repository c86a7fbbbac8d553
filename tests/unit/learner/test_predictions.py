"""What a learner says: labels, probabilities, abstaining, tasks, calibration; and how well it says it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from evertune import Learner, Predictions, Stream
from evertune.backbones import TimmViT
from evertune.errors import ConfigError, DataError, StorageError, StreamError
from evertune.learner import Temperature, assess
from evertune.learner.predictions import predictions
from evertune.learner.temperature import fit_temperature, softmax
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


def taught(tiny: TimmViT, blobs: Data, method: str = "simple_cil", **options: Any) -> Learner:
    """Two tasks of three spots each."""
    learner = Learner(method, tiny, device="cpu", progress=False, **options)
    for task in Stream.class_incremental(*blobs, first=3, increment=3, order_seed=None):
        learner.learn(task)
    return learner


@pytest.fixture(scope="module")
def learner(tiny: TimmViT, blobs: Data) -> Learner:
    """Nobody changes it."""
    return taught(tiny, blobs)


@pytest.fixture(scope="module")
def hide(tiny: TimmViT, blobs: Data) -> Learner:
    quick = {
        "epochs": 1,
        "blocks": "0-2",
        "batch_size": 16,
        "warmup": 0,
        "tii_epochs": 30,
        "tap_epochs": 30,
        "shared_epochs": 1,
    }
    return taught(tiny, blobs, "hide_pet", **quick)


# -- labels and probabilities ------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_the_scores(learner: Learner, blobs: Data) -> None:
    said, scores = learner.classify(blobs[1]), learner.scores(blobs[1])
    assert said.probabilities.dtype == np.float32 and said.classes == learner.classes and len(said) == len(blobs[1])
    np.testing.assert_allclose(said.probabilities, torch.softmax(scores.double(), 1), rtol=1e-6)
    np.testing.assert_allclose(said.probabilities.sum(1), 1, rtol=1e-6)
    assert said.labels == learner.predict(blobs[1]) == [learner.classes[i] for i in scores.argmax(1)]
    assert said.tasks is None
    assert np.array_equal(learner.predict_proba(blobs[1]), said.probabilities)


def test_neither_order_nor_company_matters(learner: Learner, blobs: Data) -> None:
    x = np.asarray(blobs[1].x)
    together, turned = learner.classify(x), learner.classify(x[::-1])
    assert turned.labels == together.labels[::-1]
    np.testing.assert_allclose(turned.probabilities[::-1], together.probabilities, rtol=1e-5)
    alone = learner.classify([Image.fromarray(x[7])])
    assert alone.labels == [together.labels[7]]
    np.testing.assert_allclose(alone.probabilities[0], together.probabilities[7], rtol=1e-5)


def test_the_likeliest_classes(learner: Learner, blobs: Data) -> None:
    said = learner.classify(blobs[1])
    for row, best in zip(said.probabilities, said.top(3), strict=True):
        expected = sorted(zip(row.tolist(), learner.classes, strict=True), reverse=True)[:3]
        assert [share for _, share in best] == [share for share, _ in expected]
        assert all(row[learner.classes.index(name)] == np.float32(share) for name, share in best)
    assert [best[0][0] for best in said.top(1)] == said.labels
    assert said.confidence.tolist() == [best[0][1] for best in said.top(1)]
    assert len(said.top(99)[0]) == 6
    with pytest.raises(ConfigError, match="at least 1"):
        said.top(0)


def test_classes_that_rounding_makes_equal_keep_their_order() -> None:
    asked = cast(Learner, SimpleNamespace(classes=("a", "b", "c"), history=[], temperature=None))
    said = predictions(asked, torch.tensor([[1.0, 1.0 + 1e-12, 0.0]], dtype=torch.float64), None)
    assert said.labels == ["b"] and said.top(1)[0][0][0] == "b"


def test_rows_for_programs(learner: Learner, hide: Learner, blobs: Data) -> None:
    rows = json.loads(json.dumps(learner.classify(blobs[1], abstain=0.999).as_rows(top=2)))
    assert len(rows) == len(blobs[1]) and set(rows[0]) == {"label", "confidence", "top"}
    assert rows[0]["label"] is None and rows[0]["confidence"] == rows[0]["top"][0]["probability"]
    assert len(rows[0]["top"]) == 2
    assert hide.classify(blobs[1]).as_rows()[0]["task"] in ("task 1", "task 2")


# -- abstaining --------------------------------------------------------------------------------------------------------


def test_there_is_no_label_below_the_confidence_asked_for(learner: Learner, blobs: Data) -> None:
    sure = learner.classify(blobs[1])
    threshold = float(np.median(sure.confidence))
    said = learner.classify(blobs[1], abstain=threshold)
    expected = [name if p >= threshold else None for name, p in zip(sure.labels, sure.confidence, strict=True)]
    assert said.labels == expected == learner.predict(blobs[1], abstain=threshold)
    assert 0 < said.labels.count(None) < len(said)
    assert np.array_equal(said.probabilities, sure.probabilities)
    assert learner.classify(blobs[1], abstain=0).labels == sure.labels
    assert learner.classify(blobs[1], abstain=np.float64(threshold)).labels == expected


@pytest.mark.parametrize("abstain", [-0.1, 1, 1.5, float("nan"), True, "half"])
def test_a_confidence_is_from_0_to_below_1(learner: Learner, blobs: Data, abstain: Any) -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        learner.classify(blobs[1], abstain=abstain)


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_a_told_task_leaves_its_own_classes(learner: Learner, blobs: Data) -> None:
    said = learner.classify(blobs[1], task="task 2")
    assert (said.probabilities[:, :3] == 0).all()
    np.testing.assert_allclose(said.probabilities[:, 3:].sum(1), 1, rtol=1e-6)
    assert set(said.labels) <= set(learner.classes[3:])
    assert said.tasks == ["task 2"] * len(said)
    assert learner.classify(blobs[1], task=np.int64(1)).labels == said.labels
    with pytest.raises(StreamError, match="No task is called"):
        learner.classify(blobs[1], task="task 3")


def test_an_inferred_task_is_told_and_costs_no_second_pass(hide: Learner, blobs: Data) -> None:
    second = blobs[1].select(blobs[1].rows_of(hide.classes[3:]))
    loaded: list[int] = []

    class Counted(ArraySource):
        def load(self, index: int) -> Image.Image:
            loaded.append(index)
            return super().load(index)

    source = Counted(np.asarray(blobs[1].x)[second.rows], np.zeros(len(second), int))
    said = hide.classify(source)
    assert loaded == list(range(len(second)))
    assert said.tasks is not None and said.labels == hide.predict(second)
    assert said.tasks.count("task 2") == hide.evaluate(second, task=1)["router"][0] > 0
    assert hide.classify(second, task=0).tasks == ["task 1"] * len(second)


def test_a_history_of_too_few_tasks_is_damage(hide: Learner, blobs: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hide, "history", hide.history[:1])
    with pytest.raises(StorageError, match="task 1, and the learner's history has 1"):
        hide.predict(blobs[1])


def test_there_must_be_something_to_ask_and_to_answer(learner: Learner, tiny: TimmViT) -> None:
    with pytest.raises(DataError, match="there are no images"):
        learner.classify([])
    with pytest.raises(StreamError, match="learned nothing yet"):
        Learner("simple_cil", tiny, progress=False).classify(np.zeros((1, 8, 8), np.uint8))


# -- the temperature ---------------------------------------------------------------------------------------------------


def drawn(rows: int, heat: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [rows, 5], and classes drawn from their softmax over ``heat``."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (rows, 5))
    shares = np.exp(scores / heat) / np.exp(scores / heat).sum(1, keepdims=True)
    return scale * scores, np.array([rng.choice(5, p=p) for p in shares])


def nll(scores: np.ndarray, truth: np.ndarray, heat: float) -> float:
    return -float(torch.log_softmax(torch.from_numpy(scores) / heat, 1)[range(len(truth)), truth].mean())


def test_the_temperature_is_the_likeliest() -> None:
    scores, truth = drawn(400, 0.7)
    found = fit_temperature(scores, truth)
    grid = np.geomspace(0.05, 20, 4001)
    best = grid[np.argmin([nll(scores, truth, heat) for heat in grid])]
    assert found == pytest.approx(best, rel=2e-3)
    assert found == pytest.approx(0.7, rel=0.2)


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_the_temperature_goes_with_the_scale_of_the_scores(scale: float) -> None:
    assert fit_temperature(*drawn(300, 1.5, scale)) == pytest.approx(
        scale * fit_temperature(*drawn(300, 1.5)), rel=1e-4
    )


def test_examples_that_are_all_right_do_not_promise_certainty() -> None:
    scores, _ = drawn(30, 1.0)
    heat = fit_temperature(scores, scores.argmax(1))
    assert softmax(scores, heat).max(1).mean() == pytest.approx(31 / 32, rel=1e-4)


def test_a_temperature_needs_examples() -> None:
    with pytest.raises(DataError, match="no examples"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_a_learner_is_calibrated_and_stays_so(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    learner = taught(tiny, blobs)
    before, plain = learner.classify(blobs[1]), learner.calibration(blobs[1])
    heat = learner.calibrate(blobs[1])
    scores = learner.scores(blobs[1]).double().numpy()
    assert nll(scores, blobs[1].labels, heat) <= nll(scores, blobs[1].labels, 1.0)
    assert learner.temperature == Temperature(heat, tasks=2, examples=len(blobs[1]))
    after = learner.classify(blobs[1])
    assert after.labels == before.labels
    np.testing.assert_allclose(after.probabilities, softmax(scores, heat), rtol=1e-5, atol=1e-30)
    assert learner.calibration(blobs[1]).error < plain.error
    assert learner.calibration(blobs[1], temperature=1).error == plain.error

    learner.save(tmp_path)
    again = Learner.load(tmp_path, tiny, progress=False)
    assert again.temperature == learner.temperature
    assert np.array_equal(again.predict_proba(blobs[1]), after.probabilities)
    again.partial_fit(np.full((4, 8, 8), 255, np.uint8), ["white"] * 4)
    assert again.temperature is not None and again.temperature.tasks == 2
    assert again.temperature.tell(3).endswith(f"from {len(blobs[1])} examples after task 2 of 3")


def test_calibration_is_on_classes_that_are_known(tiny: TimmViT, blobs: Data) -> None:
    learner = Learner("simple_cil", tiny, progress=False)
    learner.learn(Stream.class_incremental(*blobs, first=3, increment=3)[0])
    with pytest.raises(StreamError, match="never learned"):
        learner.calibrate(blobs[1])
    with pytest.raises(DataError, match="there are no images"):
        learner.calibrate(blobs[1].select([]))
    assert learner.temperature is None


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_an_assessment_counts(learner: Learner, blobs: Data) -> None:
    test = blobs[1]
    found = assess(learner, test)
    right = np.array(learner.predict(test)) == np.array([test.classes[i] for i in test.labels])
    assert (found.correct, found.total) == next(iter(learner.evaluate(test).values())) == (right.sum(), len(test))
    by_class = [(name, 5, right[test.labels == i].sum()) for i, name in enumerate(test.classes)]
    assert [(s.name, s.total, s.correct) for s in found.classes] == by_class
    halves = [right[test.labels < 3].sum(), right[test.labels >= 3].sum()]
    assert [(s.name, s.total, s.correct) for s in found.tasks] == [("task 1", 15, halves[0]), ("task 2", 15, halves[1])]
    assert found.calibration.error == pytest.approx(learner.calibration(test).error, abs=1e-4)
    assert found.confidence == pytest.approx(100 * learner.classify(test).confidence.mean())
    assert found.accuracy.low is not None and found.accuracy.low < 100 * right.mean() < (found.accuracy.high or 0)
    assert found.identity is None and json.loads(json.dumps(found.as_dict()))["correct"] == right.sum()


def test_an_assessment_of_inferred_tasks(hide: Learner, blobs: Data) -> None:
    found = assess(hide, blobs[1])
    halves = [blobs[1].select(blobs[1].rows_of(hide.classes[part])) for part in (slice(3), slice(3, 6))]
    assert found.identity is not None
    assert found.identity.correct == sum(hide.evaluate(half, task=t)["router"][0] for t, half in enumerate(halves))


def test_an_assessment_within_a_task(learner: Learner, blobs: Data) -> None:
    second = blobs[1].select(blobs[1].rows_of(learner.classes[3:]))
    told = assess(learner, second, "task 2")
    assert (told.correct, told.total) == learner.evaluate(second, task=1)["within task"]
    assert told.tasks == ()
    with pytest.raises(StreamError, match=r"task 'task 2' has not: spot 0, spot 1, spot 2\."):
        assess(learner, blobs[1], "task 2")
    assert assess(learner, blobs[1], "task 2", known_only=True).total == 15


def test_an_assessment_of_classes_never_learned(tiny: TimmViT, blobs: Data) -> None:
    learner = Learner("simple_cil", tiny, progress=False)
    learner.learn(Stream.class_incremental(*blobs, first=3, increment=3, order_seed=None)[0])
    with pytest.raises(StreamError, match="never learned: spot 3, spot 4, spot 5"):
        assess(learner, blobs[1])
    assert assess(learner, blobs[1], known_only=True).total == 15
    with pytest.raises(DataError, match="holds no class that is known here"):
        assess(learner, blobs[1].select(blobs[1].rows_of(["spot 5"])), known_only=True)


def test_predictions_are_public() -> None:
    assert Predictions(("a", "b"), np.array([[0.25, 0.75]], np.float32), ["b"], None).confidence.tolist() == [0.75]
