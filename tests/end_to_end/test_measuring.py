"""What a run measures beside its answers: tasks to come, and how far its confidence can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evertune import Learner, Stream, run
from evertune.backbones import TimmViT
from evertune.errors import StreamError
from evertune.evaluation import Calibration, what_would_print
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


def make_learner(tiny: TimmViT) -> Learner:
    return Learner("simple_cil", tiny, progress=False)


def domains(blobs: Data) -> Stream:
    """The same classes three times over, as three domains."""
    train, test = (
        ArraySource(source.x, source.labels, source.classes, name=source.name, domains=np.arange(len(source)) % 3)
        for source in blobs
    )
    return Stream.domain_incremental(train, test)


def test_a_domain_to_come_is_asked_about(tiny: TimmViT, blobs: Data) -> None:
    stream = domains(blobs)
    plain = run(stream, make_learner(tiny), references=False)
    ahead = run(stream, make_learner(tiny), references=False, ahead=True)
    assert (plain.matrix.counts()[0] == ahead.matrix.counts()[0]).all(), "looking ahead changes nothing else"
    assert not plain.matrix.measured(0, 1)
    correct, _ = ahead.matrix.counts(ahead=True)
    assert (correct >= 0).all()
    learner = make_learner(tiny)
    learner.learn(stream[0])
    (right, total), *_ = learner.evaluate(stream[2].test).values()
    assert ahead.matrix.accuracy(0, 2) == pytest.approx(100 * right / total)
    forward = {
        matrix is ahead.matrix: what_would_print(matrix, baseline=0)["lopez-paz"]["numbers"]["forward_transfer"][
            "value"
        ]
        for matrix in (plain.matrix, ahead.matrix)
    }
    before = [ahead.matrix.accuracy(0, 1), ahead.matrix.accuracy(1, 2)]
    assert forward == {False: None, True: pytest.approx(np.mean(before))}


def test_classes_to_come_are_not_asked_about(tiny: TimmViT, blobs: Data) -> None:
    stream = Stream.class_incremental(*blobs, first=2, increment=2)
    matrix = run(stream, make_learner(tiny), references=False, ahead=True).matrix
    assert (matrix.counts(ahead=True)[0][np.triu_indices(3, 1)] == -1).all()


def test_calibration_of_a_learner_is_that_of_its_scores(tiny: TimmViT, blobs: Data) -> None:
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    learner = make_learner(tiny)
    learner.learn(stream[0])
    test = stream[0].test
    assert test is not None
    found = learner.calibration(test, temperature=0.1)
    scores = learner.scores(test)
    confidence = torch.softmax(scores.double() / 0.1, 1).amax(1).numpy()
    names = np.array(test.classes)[test.labels]
    right = np.array(learner.classes)[scores.argmax(1).numpy()] == names
    expected = Calibration.measure(confidence, right)
    assert found.counts.tolist() == expected.counts.tolist() and found.correct.tolist() == expected.correct.tolist()
    assert found.error == pytest.approx(expected.error, abs=1e-6)
    (correct, total), *_ = learner.evaluate(test).values()
    assert (found.correct.sum(), found.total) == (correct, total)
    with pytest.raises(StreamError, match="never learned"):
        learner.calibration(blobs[1])


def test_a_run_keeps_its_calibration_and_goes_on_with_it(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = Stream.class_incremental(*blobs, first=2, increment=2)

    class Stop(Exception):
        pass

    def stop(stage: int, matrix: object) -> None:
        if stage == 1:
            raise Stop

    with pytest.raises(Stop):
        run(stream, make_learner(tiny), tmp_path / "run", references=False, calibration=True, on_stage=stop)
    result = run(stream, make_learner(tiny), tmp_path / "run", references=False, calibration=True)
    whole = run(stream, make_learner(tiny), references=False, calibration=True)
    assert list(result.calibration) == [2] and list(whole.calibration) == [0, 1, 2]
    assert whole.calibration[2].total == whole.matrix.counts()[1].sum()
    kept = json.loads((tmp_path / "run/summary.json").read_text())["calibration"]
    assert [stage["after"] for stage in kept] == ["task 1", "task 2", "task 3"]
    for stage, told in enumerate(kept):
        assert told["expected_calibration_error"] == pytest.approx(whole.calibration[stage].error, abs=1e-4)


def test_a_run_that_was_not_asked_keeps_none(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    assert run(stream, make_learner(tiny), tmp_path / "run", references=False).calibration == {}
    assert "calibration" not in json.loads((tmp_path / "run/summary.json").read_text())
