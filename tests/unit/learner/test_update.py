"""An update in progress: it goes on where it stopped, and what is damaged, another's or overtaken is told apart."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune import Learner, LearnerFolder, Stream
from evertune.backbones import TimmViT
from evertune.engine import Runtime
from evertune.errors import ConfigError, DataError, StorageError, TrainingError
from evertune.learner import update
from evertune.learner.format import seal
from evertune.methods import Batch, TaskInfo
from evertune.methods.ntk_cl import NTKCL
from evertune.streams import ArraySource, Task

Data = tuple[ArraySource, ArraySource]


class Stopped(Exception):
    pass


@pytest.fixture
def tasks(blobs: Data) -> list[Task]:
    return list(Stream.class_incremental(*blobs, first=3, increment=3))


@pytest.fixture
def make(tiny: TimmViT) -> Callable[..., Learner]:
    def made(method: str = "ranpac", **options: Any) -> Learner:
        quick = {"epochs": 2, "batch_size": 12, "features": 64} if method == "ranpac" else {}
        return Learner(method, tiny, device="cpu", progress=False, **quick | options)

    return made


def state(learner: Learner) -> dict[str, Tensor]:
    generators = learner.method.generators
    random = {"init": generators.init.get_state(), "sampling": generators.sampling.get_state()}
    return {k: v.clone() for k, v in learner.method.state_dict().items()} | random


def require_same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]


def stop(*_: Any) -> None:
    raise Stopped


def stopped(learner: Learner, task: Task, folder: Path, phases: int = 2) -> None:
    """``task`` is learned into the folder until so many of its phases are over."""
    over: list[Any] = []

    def count(report: Any) -> None:
        over.append(report)
        if len(over) == phases:
            raise Stopped

    with pytest.raises(Stopped):
        learner.learn(task, count, folder=folder, every=0)


def updates(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "update" in path.name}


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_finished_task_leaves_a_version_and_no_update(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    learner, plain = make(), make()
    for task in tasks:
        reports = learner.learn(task, folder=tmp_path, every=0)
        assert [r.name for r in reports] == [r.name for r in plain.learn(task)]
    require_same(state(learner), state(plain))
    assert [(v.number, v.tasks) for v in LearnerFolder(tmp_path).versions()] == [(1, 1), (2, 2)]
    assert not updates(tmp_path)
    require_same(state(Learner.load(tmp_path, learner.backbone, device="cpu")), state(plain))


def test_phases_that_are_over_are_told_of_and_not_run_again(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    stopped(make(), tasks[0], tmp_path)
    learner, ended = make(), []
    reports = learner.learn(tasks[0], lambda report: ended.append(report.name), folder=tmp_path)
    assert [r.name for r in reports] == ["draw head", "first session", "freeze", "statistics", "ridge"]
    assert ended == ["freeze", "statistics", "ridge"]
    assert reports[1].images == 2 * len(tasks[0].train) and reports[1].losses
    assert learner.history[0]["seconds"] == pytest.approx(sum(r.seconds for r in reports), abs=1e-3)
    assert [p["name"] for p in learner.phases] == [r.name for r in reports]


def test_a_training_phase_goes_on_at_its_step_with_its_bank(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is taken twice, and features that the bank knew are not computed again."""
    forwards: list[int] = []
    loss, limit = NTKCL.loss, 100

    def noted(self: NTKCL, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        if len(forwards) == limit:
            raise Stopped
        terms = loss(self, task, batch)
        forwards.append(batch.passes.forwards)
        return terms

    monkeypatch.setattr(NTKCL, "loss", noted)
    options: dict[str, Any] = {"epochs": 3, "views": 2, "batch_size": 12}
    whole = make("ntk_cl", **options)
    whole.learn(tasks[0])
    expected = list(forwards)
    assert len(expected) == 9 and expected[8] < expected[0], "the third epoch shows the views of the first"
    forwards.clear()
    for steps in (5, 8):  # in the second epoch, and in the third
        limit = steps
        with pytest.raises(Stopped):
            make("ntk_cl", **options).learn(tasks[0], folder=tmp_path, every=0)
    limit = 100
    learner = make("ntk_cl", **options)
    learner.learn(tasks[0], folder=tmp_path, every=0)
    assert forwards == expected
    require_same(state(learner), state(whole))


def test_what_is_as_before_the_task_is_not_written(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    learner = make()
    stopped(learner, tasks[0], tmp_path)
    notes = json.loads((tmp_path / "update.json").read_text())["notes"]
    assert "R" in notes["unchanged"] and "head.weight" not in notes["unchanged"]
    (file,) = tmp_path.glob("update-*.safetensors")
    assert not [name for name in update.read_tensors(file, update_digest(tmp_path)) if name == "shared/method.R"]


def update_digest(folder: Path) -> str:
    digest: str = json.loads((folder / "update.json").read_text())["files"][0]["sha256"]
    return digest


def test_the_folder_is_locked_while_a_task_is_learned(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    refused: list[StorageError] = []

    def other() -> None:
        try:
            make().learn(tasks[0], folder=tmp_path)
        except StorageError as error:
            refused.append(error)

    def begin(_: Any) -> None:
        if not refused:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    make().learn(tasks[0], begin, folder=tmp_path)
    assert "another process" in str(refused[0])


def test_a_stop_leaves_the_learner_in_memory_as_it_was(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    learner = make()
    before = state(learner)
    stopped(learner, tasks[0], tmp_path)
    require_same(state(learner), before)
    assert learner.classes == () and updates(tmp_path)
    learner.learn(tasks[0], folder=tmp_path)
    plain = make()
    plain.learn(tasks[0])
    require_same(state(learner), state(plain))


# -- what cannot be gone on with ---------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("which", ["update.json", "update-*.safetensors"])
def test_damage_is_noticed_and_the_task_learned_anew(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, damage: Callable[[Path], None], which: str
) -> None:
    plain = make()
    plain.learn(tasks[0])
    plain.save(tmp_path)
    stopped(plain, tasks[1], tmp_path)
    damage(next(tmp_path.glob(which)))
    again = Learner.load(tmp_path, plain.backbone, device="cpu", progress=False)
    if which == "update.json" and damage is Path.unlink:  # then none is in progress
        again.learn(tasks[1], folder=tmp_path)
    else:
        with pytest.raises(StorageError, match=r"update in progress is damaged.*version 1, is not.*restart=True"):
            again.learn(tasks[1], folder=tmp_path)
        again.learn(tasks[1], folder=tmp_path, restart=True)
    plain.learn(tasks[1])
    require_same(state(again), state(plain))
    assert not updates(tmp_path)


def test_what_was_made_up_is_refused(make: Callable[..., Learner], tasks: list[Task], tmp_path: Path) -> None:
    """With all digests right, as somebody may make it who wants to be read."""
    stopped(make(), tasks[0], tmp_path)
    file = tmp_path / "update.json"
    good = json.loads(file.read_text())
    for change in (
        {"number": -1},
        {"number": "../../x"},
        {"files": []},
        {"notes": {**good["notes"], "place": {"phase": "2", "epoch": 0, "step": 0}}},
        {"notes": {**good["notes"], "strides": {"head.weight": [0, -9]}}},
        {"notes": {**good["notes"], "unchanged": ["no such tensor"]}},
        {"more": 1},
    ):
        file.write_text(json.dumps(seal(good | change)))
        learner = make()
        before = state(learner)
        with pytest.raises(StorageError, match="restart=True"):
            learner.learn(tasks[0], folder=tmp_path)
        require_same(state(learner), before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 1}, r"options\.epochs: 2 there, 1 here"),
        ({"seeds": 1}, r"learner: .* there"),
        ({"precision": "bf16"}, r"runtime\.precision: fp32 there, bf16 here"),
    ],
)
def test_another_update_is_refused_and_can_take_its_place(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    stopped(make(), tasks[0], tmp_path)
    with pytest.raises(StorageError, match=rf"unfinished update with task 'task 1' of 36 .*{told}.*restart=True"):
        make(**change).learn(tasks[0], folder=tmp_path)
    other = make(**change)
    other.learn(tasks[0], folder=tmp_path, restart=True)
    assert not updates(tmp_path) and other.classes


def test_another_task_is_refused(make: Callable[..., Learner], tasks: list[Task], tmp_path: Path) -> None:
    stopped(make(), tasks[0], tmp_path)
    with pytest.raises(StorageError, match=r"task\.data: .*task\.name: task 1 there, task 2 here"):
        make().learn(tasks[1], folder=tmp_path)
    assert updates(tmp_path)


def test_another_number_of_processes_is_refused(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(make(), tasks[0], tmp_path)
    described = Runtime.describe
    monkeypatch.setattr(Runtime, "describe", lambda self: described(self) | {"processes": 2})
    with pytest.raises(StorageError, match=r"runtime\.processes: 1 there, 2 here"):
        make().learn(tasks[0], folder=tmp_path)


def test_an_update_of_an_earlier_version_is_given_up_and_that_is_said(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    stopped(make(), tasks[0], tmp_path)
    learner = make()
    learner.learn(tasks[1])
    learner.save(tmp_path)
    with pytest.warns(UserWarning, match=r"task 'task 1' was not finished.*given up"):
        learner.learn(tasks[0], folder=tmp_path)
    assert [entry["task"] for entry in learner.history] == ["task 2", "task 1"]


def test_a_learner_that_knows_less_does_not_take_the_place_of_one_that_knows_more(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    first, second = make(), make()
    first.learn(tasks[0], folder=tmp_path)
    late = Learner.load(tmp_path, first.backbone, device="cpu", progress=False)
    first.learn(tasks[1], folder=tmp_path)
    for learner in (late, second):
        with pytest.raises(StorageError, match=r"holds a learner, version 2, that has learned what this one has not"):
            learner.learn(tasks[1], folder=tmp_path, keep=1)
    assert [v.number for v in LearnerFolder(tmp_path).versions()] == [1, 2]
    LearnerFolder(tmp_path).rollback()  # then it knows no more than that one
    late.learn(tasks[1], folder=tmp_path)
    assert LearnerFolder(tmp_path).content()["version"] == 3
    LearnerFolder(tmp_path).rollback(1)
    first.forget(*first.classes[:1])
    again = replace(tasks[0], kind="mixed")
    with pytest.raises(StorageError, match="save this one there first"):
        first.learn(again, folder=tmp_path)
    first.save(tmp_path)
    first.learn(again, folder=tmp_path)


def test_where_the_current_version_is_lost_no_learner_begins_anew(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    make().learn(tasks[0], folder=tmp_path)
    (tmp_path / "learner.json").unlink()
    with pytest.raises(StorageError, match=r"learner\.json is missing.* Version 1 is whole"):
        make().learn(tasks[0], folder=tmp_path)


def test_files_that_no_update_names_go(make: Callable[..., Learner], tasks: list[Task], tmp_path: Path) -> None:
    """What a process leaves that is killed between two of its writes."""
    stopped(make(), tasks[0], tmp_path)
    (kept,) = tmp_path.glob("update-*.safetensors")
    for name in ("update-900.safetensors", ".update-901.safetensors.7-ab.part", ".update.json.7-cd.part"):
        (tmp_path / name).write_bytes(b"left")
    (tmp_path / "update-notes.txt").write_text("not ours")
    with pytest.raises(Stopped):
        make().learn(tasks[0], stop, folder=tmp_path, every=1e9)
    assert updates(tmp_path) == {"update.json", kept.name, "update-notes.txt"}


def test_a_loss_that_is_no_number_leaves_nothing_to_go_on_with(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError):
        make(rate=1e30, preset="paper").learn(tasks[0], folder=tmp_path, every=0)
    assert not updates(tmp_path)


def test_every_and_restart_need_a_folder(make: Callable[..., Learner], tasks: list[Task]) -> None:
    for given in ({"every": 1.0}, {"restart": True}, {"keep": 2}):
        with pytest.raises(ConfigError, match="folder="):
            make().learn(tasks[0], **given)


# -- no room, no right -------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond ``room`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_no_more_than_checkpoints(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path
) -> None:
    """The first checkpoints fit, those with the Gram matrix and the learner itself do not."""
    plain = make(features=400)
    plain.learn(tasks[0])
    plain.save(tmp_path)
    before = (tmp_path / "learner.json").read_bytes()
    learner = Learner.load(tmp_path, plain.backbone, device="cpu", progress=False)
    with (
        full_disk(400_000),
        pytest.warns(UserWarning, match="could not be kept, and learning goes on"),
        pytest.raises(StorageError, match="could not be written"),
    ):
        learner.learn(tasks[1], folder=tmp_path, every=0)
    plain.learn(tasks[1])
    require_same(state(learner), state(plain))
    assert (tmp_path / "learner.json").read_bytes() == before
    again, ended = Learner.load(tmp_path, plain.backbone, device="cpu", progress=False), []
    again.learn(tasks[1], lambda report: ended.append(report.name), folder=tmp_path)
    assert ended == ["ridge"], "the pass over the data was kept"
    require_same(state(again), state(plain))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(type(tasks[0].train), "load", lambda *_: pytest.fail("an example was read"))
    with pytest.raises(StorageError, match="cannot be written"):
        make().learn(tasks[0], folder=tmp_path / "file" / "learner")


def test_data_that_cannot_be_read_twice_is_not_kept(
    make: Callable[..., Learner], tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: Any) -> str:
        raise DataError("row 3 has gone.")

    monkeypatch.setattr(type(tasks[0].train), "_digest", unreadable)
    with pytest.warns(UserWarning, match="row 3 has gone"):
        make().learn(tasks[0], folder=tmp_path, every=0)
