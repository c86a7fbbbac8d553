"""A learner diagnosed as a whole: the right images, numbers that agree with the kernel, messages for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evertune import Diagnosis, Learner, Stream, Task, diagnose
from evertune.backbones import TimmViT
from evertune.diagnostics import Tangent, exact, gap_terms, kernel_drift
from evertune.diagnostics.diagnosis import balanced
from evertune.errors import ConfigError, DataError, StorageError, StreamError
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


def test_a_learner_is_diagnosed_on_images_of_each_task(learner: Learner, stream: Stream) -> None:
    found = diagnose(learner, stream, per_task=6, outputs=4)
    assert found.kernel.names == ("task 1", "task 2", "task 3") and found.kernel.images == (6, 6, 6)
    assert found.kernel.matrix.shape == (72, 72) and found.notes == ()
    rho = np.array(found.numbers["overlap"])
    np.testing.assert_allclose(rho, found.kernel.overlap())
    for t, task in enumerate(found.numbers["tasks"]):
        values = np.linalg.eigvalsh(found.kernel.block(t).numpy())[::-1].clip(0)
        assert task["trace"] == pytest.approx(values.sum())
        np.testing.assert_allclose(task["eigenvalues"], values[:20], atol=1e-9 * values[0])
        assert found.numbers["gaps"]["tasks"][t]["trace"] == pytest.approx(task["trace"])
    text = found.report()
    assert f"{learner.method.name} (" in text and "18 train images × 4 outputs" in text and "exact" in text
    assert [line.split()[:3] for line in text.splitlines()[-3:]] == [["task", str(t), "6"] for t in (1, 2, 3)]


def test_the_gap_terms_are_those_of_class_targets_learned_from_nothing(
    learners: dict[str, Learner], stream: Stream
) -> None:
    found = diagnose(learners["ranpac"], stream, per_task=24, outputs=6, ridge=0.01)
    assert found.kernel.images == (24, 24, 24)
    names = [task.train.classes[label] for task in stream for label in task.train.labels]
    wanted = torch.tensor([learners["ranpac"].classes.index(name) for name in names])
    targets = torch.eye(6, dtype=torch.float64)[wanted]
    strength = 0.01 * float(found.kernel.matrix.trace()) / 3
    expected = gap_terms(found.kernel.matrix, found.kernel.tasks, targets, torch.zeros(72, 6), strength)
    for mine, theirs in zip(found.numbers["gaps"]["tasks"], expected["tasks"], strict=True):
        assert mine.pop("intrinsic") == pytest.approx(theirs.pop("intrinsic"))
        assert mine.pop("moved_by") == pytest.approx(theirs.pop("moved_by"))
        assert mine == pytest.approx(theirs)


def test_fewer_images_than_asked_for_are_all_used_and_told(learners: dict[str, Learner], stream: Stream) -> None:
    found = diagnose(learners["ranpac"], stream, per_task=11, split="test", outputs=1)
    assert found.kernel.images == (10, 10, 10)
    assert found.notes[0] == "task 1 has 10 test images, fewer than 11: all are used"


def test_images_are_drawn_by_class_as_evenly_as_possible(blobs: Data) -> None:
    source = blobs[0].select(np.r_[0:12, 12:15, 24:36])  # of three classes 12, 3 and 12
    for count, expected in ((6, [2, 2, 2]), (15, [6, 3, 6]), (100, [12, 3, 12])):
        rows = balanced(source, count, np.random.default_rng(0))
        assert np.bincount(source.labels[rows])[:3].tolist() == expected
        assert (np.diff(rows) > 0).all()
    draws = {tuple(balanced(source, 6, np.random.default_rng(seed))) for seed in range(5)}
    assert len(draws) == 5


def test_a_sketch_is_told_with_its_error(learners: dict[str, Learner], stream: Stream) -> None:
    whole = diagnose(learners["safe"], stream, per_task=4, outputs=2)
    found = diagnose(learners["safe"], stream, per_task=4, outputs=2, sketch=512)
    assert found.numbers["sketch"] == {"dimensions": 512, "error": found.kernel.error}
    true = float((found.kernel.matrix - whole.kernel.matrix).norm() / whole.kernel.matrix.norm())
    assert found.kernel.error == pytest.approx(true, rel=0.8)
    assert f"sketched in 512 dimensions, error {found.kernel.error:.1%}" in found.report()


def test_a_domain_stream_shares_its_classes(tiny: TimmViT, blobs: Data) -> None:
    parts = [Task(0, f"domain {d}", blobs[0].select(np.arange(d, 72, 2)), blobs[1], kind="domain") for d in (0, 1)]
    learner = Learner("ranpac", tiny, progress=False, device="cpu", features=20, epochs=1)
    for task in parts:
        learner.learn(task)
    found = diagnose(learner, parts, per_task=12, outputs=3)
    assert found.kernel.names == ("domain 0", "domain 1") and len(learner.classes) == 6


def test_drift_between_two_learners_needs_the_same_images(learners: dict[str, Learner], stream: Stream) -> None:
    safe, ranpac = (diagnose(learners[name], stream, per_task=4, outputs=2) for name in ("safe", "ranpac"))
    assert all(task == {"drift": 0, "alignment": pytest.approx(1)} for task in kernel_drift(safe, safe) or [{}])
    between = kernel_drift(safe, ranpac)
    assert between is not None and len(between) == 3 and all(task["drift"] > 0 for task in between)
    other = diagnose(learners["safe"], stream, per_task=4, outputs=2, seed=1)
    assert kernel_drift(safe, other) is None


def test_a_diagnosis_is_kept_and_read_again(learners: dict[str, Learner], stream: Stream, tmp_path: Path) -> None:
    found = diagnose(learners["hide_pet"], stream, per_task=30, outputs=1)
    found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kernel.safetensors", "kernel.json", "diagnosis.json"}
    json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    again = Diagnosis.load(tmp_path)
    assert again.numbers == found.numbers and again.notes == found.notes and len(again.notes) == 3
    assert torch.equal(again.kernel.matrix, found.kernel.matrix)
    (tmp_path / "kernel.safetensors").unlink()
    with pytest.raises(StorageError):
        Diagnosis.load(tmp_path)


def test_the_kernel_is_that_of_the_learners_own_view(learners: dict[str, Learner], stream: Stream) -> None:
    learner = learners["ranpac"]
    found = diagnose(learner, stream, per_task=24, outputs=2, seed=5)
    loaded = np.stack([np.asarray(task.train.load(row)) for task in stream for row in range(24)])
    images = torch.from_numpy(loaded).permute(0, 3, 1, 2)
    expected = exact(Tangent(learner.method, learner.backbone, outputs=2, seed=5), images)
    torch.testing.assert_close(found.kernel.matrix, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_a_learner_of_lower_precision_is_diagnosed_in_full(
    learners: dict[str, Learner], stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learners["ntk_cl"]
    full = diagnose(learner, stream, per_task=2, outputs=2)
    monkeypatch.setattr(learner.engine.runtime, "precision", "bf16")
    assert torch.equal(diagnose(learner, stream, per_task=2, outputs=2).kernel.matrix, full.kernel.matrix)


def test_what_cannot_be_diagnosed_is_said(learners: dict[str, Learner], stream: Stream, tiny: TimmViT) -> None:
    learner = learners["ranpac"]
    for options, error, message in (
        ({"split": "validation"}, ConfigError, "split 'validation' does not exist"),
        ({"per_task": 0}, ConfigError, "per_task=0"),
        ({"ridge": 0.0}, ConfigError, "ridge=0.0"),
        ({"outputs": 0}, ConfigError, "outputs=0"),
        ({"sketch": 0}, ConfigError, "sketch of 0 dimensions"),
        ({"memory": 1000}, ConfigError, "more than the limit"),
    ):
        with pytest.raises(error, match=message):
            diagnose(learner, stream, **options)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="nothing to diagnose"):
        diagnose(learner, [])
    untested = [Task(0, "untested", stream[0].train)]
    with pytest.raises(StreamError, match="'untested' has no test images"):
        diagnose(learner, untested, split="test")
    young = Learner("ranpac", tiny, progress=False, device="cpu", features=20, epochs=1)
    young.learn(stream[0])
    with pytest.raises(StreamError, match="'task 2' has classes that were never learned"):
        diagnose(young, stream)


def test_a_kernel_of_zeros_is_no_diagnosis(tiny: TimmViT, stream: Stream) -> None:
    learner = Learner("ranpac", tiny, progress=False, device="cpu", features=20, epochs=1)
    learner.learn(stream[0])
    learner.method.ridge.A.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="kernel is zero"):
        diagnose(learner, stream[:1])
