"""The folder of a learner: versions, going back, one process at a time, and what is left when something stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import TimmViT
from evertune.errors import ConfigError, StorageError, StreamError
from evertune.learner import Learner, LearnerFolder
from evertune.learner.format import UPGRADES, read, seal
from evertune.learner.keeping import described, tensors_of
from evertune.streams import ArraySource, Stream, Task


@pytest.fixture(scope="module")
def stages(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What is kept of a learner before its first task, and after each of three."""
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    found = []
    for task in (None, *Stream.class_incremental(*blobs, first=2, increment=2)):
        if task is not None:
            learner.learn(task)
        found.append((described(learner), {k: v.clone() for k, v in tensors_of(learner).items()}))
    return found


@pytest.fixture
def folder(tmp_path: Path, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]) -> LearnerFolder:
    """Versions 1 to 3, one for each task."""
    home = LearnerFolder(tmp_path / "kept")
    for content, tensors in stages[1:]:
        home.write(content, tensors)
    return home


def numbers(home: LearnerFolder) -> list[int]:
    return [version.number for version in home.versions()]


def current(home: LearnerFolder) -> int:
    (number,) = [version.number for version in home.versions() if version.current]
    return number


def files(home: LearnerFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.path.iterdir() if path.name != ".lock"}


# -- versions -------------------------------------------------------------------------------------------------------


def test_every_version_is_read_as_it_was_written(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    assert [(v.number, v.tasks, v.classes, v.current, v.task) for v in folder.versions()] == [
        (1, 1, 2, False, "task 1"), (2, 2, 4, False, "task 2"), (3, 3, 6, True, "task 3")
    ]  # fmt: skip
    for number, (content, tensors) in enumerate(stages[1:], 1):
        said, read = folder.read(number)
        assert {k: v for k, v in said.items() if k in content} == json.loads(json.dumps(content))
        assert list(map(str, sorted(read))) == sorted(tensors)
        assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())
    assert folder.read()[0]["version"] == 3
    assert folder.versions()[2].bytes == sum(
        len(files(folder)[name]) for name in ("learner-3.json", "state-3.safetensors")
    )
    assert files(folder)["learner.json"] == files(folder)["learner-3.json"]


def test_a_learner_that_knows_nothing_is_version_0(
    tmp_path: Path, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    home = LearnerFolder(tmp_path)
    assert home.versions() == []
    assert [home.write(*stage).number for stage in stages] == [0, 1, 2, 3]
    assert home.versions()[0].task is None


def test_rollback_and_on_from_there(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    assert folder.rollback().number == 2 and folder.rollback().number == 1
    assert numbers(folder) == [1, 2, 3] and current(folder) == 1
    with pytest.raises(StorageError, match=r"no version to go back to; there are 1, 2, 3\."):
        folder.rollback()
    made = folder.write(*stages[2])  # a number of its own, above all there ever were
    assert made.number == 4 and made.current and numbers(folder) == [1, 2, 3, 4]
    assert folder.rollback().number == 1  # what 4 was made from, not the number before it
    assert folder.rollback(3).number == 3 and folder.content()["classes"] == stages[3][0]["classes"]


@pytest.mark.parametrize("to", [0, 7, -1, 10**12])
def test_rollback_to_what_is_not_there(folder: LearnerFolder, to: int) -> None:
    before = files(folder)
    with pytest.raises(StorageError, match=rf"no version {to}; there are 1, 2, 3\."):
        folder.rollback(to)
    with pytest.raises(StorageError, match=rf"no version {to}; there are 1, 2, 3\."):
        folder.read(to)
    assert files(folder) == before


def test_rollback_drops_an_update_in_progress(folder: LearnerFolder) -> None:
    for name in ("update.json", "update-3.safetensors", "update-3-1.safetensors", "update.txt"):
        (folder.path / name).write_text("x")
    folder.rollback(3)
    assert [name for name in files(folder) if name.startswith("update")] == ["update.txt"]


def test_prune(folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]) -> None:
    (folder.path / "notes.txt").write_text("mine")
    folder.rollback(1)
    assert [version.number for version in folder.prune(1)] == [2]
    assert numbers(folder) == [1, 3] and current(folder) == 1
    assert folder.write(*stages[2], keep=1).number == 4
    assert set(files(folder)) == {"learner.json", "learner-4.json", "state-4.safetensors", "notes.txt"}
    assert folder.prune(5) == []
    with pytest.raises(ConfigError, match="keep=0"):
        folder.prune(0)
    with pytest.raises(ConfigError, match="keep=-1"):
        folder.write(*stages[2], keep=-1)
    assert numbers(folder) == [4]


def test_what_is_no_learner_is_not_written(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    before = files(folder)
    content, tensors = stages[1]
    for wrong, told in (
        ({"classes": ["a", "a"]}, "classes: .*twice"), ({"extra": 1}, "extra: .*not permitted"),
        ({"history": [{"task": object()}]}, "more than JSON holds"), ({"classes": ["spot 0"]}, "the learner has not"),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=told):
            folder.write(content | wrong, tensors)
    assert files(folder) == before


def test_what_json_has_not_becomes_null(tmp_path: Path, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]) -> None:
    content, tensors = stages[1]
    home = LearnerFolder(tmp_path)
    home.write(content | {"history": [content["history"][0] | {"strength": float("nan"), "at": (1, 2.5)}]}, tensors)
    entry = home.content()["history"][0]
    assert entry["strength"] is None and entry["at"] == [1, 2.5]


# -- damage ---------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_noticed(folder: LearnerFolder) -> None:
    """Anywhere in the JSON; where none is refused, nothing is different (e and E in a number)."""
    path = folder.path / "learner.json"
    whole, said = path.read_bytes(), folder.content()
    places, missed = range(0, len(whole) * 8, 31), 0
    for place in places:
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert read(path) == said
            missed += 1
        except StorageError:
            pass
    assert len(places) > 500 and missed < 5


@pytest.mark.parametrize("file", ["learner.json", "state-3.safetensors", "both"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_version_names_the_newest_whole_one(folder: LearnerFolder, file: str, damage: str) -> None:
    for name in ("learner.json", "state-3.safetensors") if file == "both" else (file,):
        path = folder.path / name
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            flipped = content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]
            path.write_bytes({"flip": flipped, "cut": content[:-7], "empty": b""}[damage])
    newest = 3 if file == "learner.json" else 2
    with pytest.raises(StorageError, match=rf"Version {newest} is whole: 'evertune rollback .* --to {newest}'"):
        folder.read()
    assert folder.rollback(newest).number == newest
    assert folder.read()[0]["version"] == newest


def test_rollback_alone_finds_the_newest_whole_version(folder: LearnerFolder) -> None:
    (folder.path / "learner.json").write_text("{")
    (folder.path / "state-3.safetensors").write_bytes(b"")
    assert folder.rollback().number == 2


def test_rollback_to_a_damaged_version(folder: LearnerFolder) -> None:
    (folder.path / "state-1.safetensors").write_bytes(b"")
    before = files(folder)
    with pytest.raises(StorageError, match=r"state-1\.safetensors.*sha256 differs.*Version 3 is whole"):
        folder.rollback(1)
    assert files(folder) == before


def test_nothing_is_whole(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"learner\.json is missing: is .* the right folder\?$"):
        LearnerFolder(tmp_path / "none").read()
    for change in (LearnerFolder(tmp_path / "none").rollback, lambda: LearnerFolder(tmp_path).prune(1)):
        with pytest.raises(StorageError, match="holds no learner: is it the right folder"):
            change()
    assert not list(tmp_path.iterdir())


def test_the_files_of_another_version(folder: LearnerFolder) -> None:
    os.replace(folder.path / "state-2.safetensors", folder.path / "state-3.safetensors")
    with pytest.raises(StorageError, match=r"state-3\.safetensors is not what was saved"):
        folder.read()
    os.replace(folder.path / "learner-2.json", folder.path / "learner-1.json")
    with pytest.raises(StorageError, match=r"learner-1\.json is of version 2"):
        folder.read(1)


# -- interruptions --------------------------------------------------------------------------------------------------


def test_a_version_that_cannot_be_written_whole_leaves_all_as_it_was(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replacement of a file fails in turn, as on a full disk."""
    replace = os.replace
    for failing in range(3):
        before, made = files(folder), numbers(folder)
        calls = iter(range(9))

        def full(source: Any, target: Any, failing: int = failing, calls: Any = calls) -> None:
            if next(calls) == failing:
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            with pytest.raises(StorageError, match="No space left"):
                folder.write(*stages[3])
        assert folder.content()["version"] == 3
        left = set(files(folder)) - set(before)
        if failing < 2:
            assert files(folder) == before
        else:  # whole, and only not the current one
            assert left == {"learner-4.json", "state-4.safetensors"} and numbers(folder) == [*made, 4]
    assert folder.write(*stages[3]).number == 5


def test_what_a_killed_process_left_is_removed(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    for name in (".state-4.safetensors.77-ab.part", ".learner.json.77-ab.part", "state-9.safetensors"):
        (folder.path / name).write_text("half")
    for name in (".other.part", "state-x.safetensors", "state-09.safetensors"):
        (folder.path / name).write_text("not ours")
    assert folder.write(*stages[3]).number == 10  # that of a file that was there is not given again
    others = [name for name in files(folder) if not name.startswith(("learner", "state-1", "state-2", "state-3"))]
    assert sorted(others) == [".other.part", "state-09.safetensors", "state-x.safetensors"]


def test_a_reader_survives_a_writer_that_prunes(
    folder: LearnerFolder, stages: list[tuple[dict[str, Any], dict[str, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter([lambda: folder.write(*stages[3], keep=1), lambda: None])
    tensors = folder._tensors

    def late(content: dict[str, Any]) -> dict[str, Tensor]:
        next(reads)()
        return tensors(content)

    monkeypatch.setattr(folder, "_tensors", late)
    assert folder.read()[0]["version"] == 4


# -- one process at a time ------------------------------------------------------------------------------------------

HOLDER = """
import sys
from evertune.learner.folder import LearnerFolder
with LearnerFolder(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(folder: LearnerFolder) -> Callable[[], subprocess.Popen[str]]:
    def hold() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    return hold


def test_one_process_works_and_the_other_is_told(
    folder: LearnerFolder, holder: Callable[[], subprocess.Popen[str]], stages: list[Any]
) -> None:
    process, before = holder(), files(folder)
    try:
        told = rf"is being changed by another process \(process {process.pid}, since 20\d\d-.* UTC\): wait"
        for change in (lambda: folder.write(*stages[3]), folder.rollback, lambda: folder.prune(1)):
            with pytest.raises(StorageError, match=told):
                change()
        assert files(folder) == before
        assert folder.read()[0]["version"] == 3  # reading needs no lock
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert folder.rollback().number == 2  # free again


def test_the_lock_nests_and_holds_off_other_threads(folder: LearnerFolder, stages: list[Any]) -> None:
    told = []

    def other() -> None:
        try:
            folder.prune(1)
        except StorageError as error:
            told.append(str(error))

    with folder.lock(), LearnerFolder(folder.path / ".." / folder.path.name).lock():
        assert folder.write(*stages[3]).number == 4
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(told) == 1 and f"(process {os.getpid()}" in told[0]
    other()
    assert len(told) == 1 and numbers(folder) == [4]


def test_the_lock_is_let_go_after_an_error(folder: LearnerFolder) -> None:
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock():
        pass


@pytest.mark.parametrize("where", ["file", "file/below", "link"])
def test_where_no_lock_can_be(tmp_path: Path, where: str, stages: list[Any]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be written"):
        LearnerFolder(tmp_path / where).write(*stages[1])
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_that_may_only_be_read(folder: LearnerFolder, stages: list[Any]) -> None:
    folder.path.chmod(0o500)
    try:
        if os.access(folder.path, os.W_OK):
            pytest.skip("rights do not bind this user (root)")
        assert folder.read()[0]["version"] == 3
        with pytest.raises(StorageError, match="cannot be written"):
            folder.write(*stages[3])
    finally:
        folder.path.chmod(0o700)


# -- learners -------------------------------------------------------------------------------------------------------


def test_a_learner_goes_on_from_any_version(
    tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path: Path
) -> None:
    tasks = Stream.class_incremental(*blobs, first=2, increment=2)
    options = {"epochs": 1, "follow_epochs": 1, "batch_size": 8, "features": 40}
    learner = Learner("safe", tiny, progress=False, device="cpu", **options)
    answers = []
    for task in tasks:
        learner.learn(task)
        learner.save(tmp_path)
        answers.append(learner.scores(blobs[1]))
    for version in (1, 2, 3):
        loaded = Learner.load(tmp_path, tiny, version=version, device="cpu", progress=False)
        assert torch.equal(loaded.scores(blobs[1]), answers[version - 1])
    LearnerFolder(tmp_path).rollback(1)
    loaded = Learner.load(tmp_path, tiny, device="cpu", progress=False)
    assert loaded.phases == json.loads(json.dumps(loaded.phases)) and len(loaded.phases) == 5
    for task, expected in zip(tasks[1:], answers[1:], strict=True):
        loaded.learn(task)
        assert torch.equal(loaded.scores(blobs[1]), expected)
    loaded.save(tmp_path, keep=2)
    assert numbers(LearnerFolder(tmp_path)) == [3, 4]


def test_names_that_cannot_be_printed_are_not_learned(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> None:
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    train = blobs[0]
    renamed = ArraySource([train.load(i) for i in range(24)], train.labels[:24], ["a", "b\x1b[2J", "c", "d", "e", "f"])
    with pytest.raises(StreamError, match=r"the name 'b\\x1b\[2J' holds control characters"):
        learner.learn(Task(0, "one", renamed))
    with pytest.raises(StreamError, match=r"the name 'o\\ne' holds control characters"):
        learner.learn(Task(0, "o\ne", train))


def test_what_was_fixed_is_not_given_again(folder: LearnerFolder, tiny: TimmViT) -> None:
    with pytest.raises(ConfigError, match="seeds: fixed when the learner was made"):
        Learner.load(folder.path, tiny, seeds=3)
    with pytest.raises(ConfigError, match="Device 'abacus' cannot be used"):
        Learner.load(folder.path, tiny, device="abacus")
    with pytest.raises(ConfigError, match="truncate is for texts"):
        Learner.load(folder.path, tiny, truncate=True)


def test_of_several_processes_one_writes(tiny: TimmViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    monkeypatch.setattr(type(learner.engine.runtime), "main", property(lambda runtime: False))
    learner.save(tmp_path)
    assert not list(tmp_path.iterdir())


def as_format_1(folder: Path, learner: Learner, number: int) -> None:
    """What evertune 0.1 wrote, before there were versions."""
    import hashlib

    from safetensors.torch import save

    content = save({name: tensor.clone() for name, tensor in tensors_of(learner).items()})
    folder.mkdir(exist_ok=True)
    (folder / f"state-{number}.safetensors").write_bytes(content)
    said = {
        "format": 1,
        "evertune": "0.1.0",
        "method": learner.method.name,
        "preset": learner.preset,
        "options": learner.method.config.as_dict(),
        "backbone": learner.backbone.identity.as_dict(),
        "classes": list(learner.classes),
        "seeds": learner.seeds.as_dict(),
        "views": {"train": learner.train_view.describe(), "test": learner.test_view.describe()},
        "history": learner.history,
        "precision": learner.engine.runtime.precision,
        "state": {"file": f"state-{number}.safetensors", "sha256": hashlib.sha256(content).hexdigest()},
    }
    (folder / "learner.json").write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def test_a_folder_of_format_1(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path: Path) -> None:
    tasks = Stream.class_incremental(*blobs, first=2, increment=2)
    learner = Learner("safe", tiny, progress=False, device="cpu", epochs=1, follow_epochs=1, features=40)
    for task in tasks[:2]:
        learner.learn(task)
    as_format_1(tmp_path, learner, 1)  # it kept the one before beside
    as_format_1(tmp_path, learner, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    home = LearnerFolder(tmp_path)
    assert [(v.number, v.tasks, v.current) for v in home.versions()] == [(2, 2, True)]
    loaded = Learner.load(tmp_path, tiny, device="cpu", progress=False)
    assert torch.equal(loaded.scores(blobs[1]), learner.scores(blobs[1]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    loaded.learn(tasks[2])
    loaded.save(tmp_path)
    assert [(v.number, v.tasks, v.current) for v in home.versions()] == [(2, 2, False), (3, 3, True)]
    assert sorted(files(home)) == [
        "learner-2.json", "learner-3.json", "learner.json", "state-2.safetensors", "state-3.safetensors"
    ]  # fmt: skip
    learner.learn(tasks[2])
    again = Learner.load(tmp_path, tiny, device="cpu", progress=False)
    assert torch.equal(again.scores(blobs[1]), learner.scores(blobs[1]))
    assert home.rollback().number == 2
    assert Learner.load(tmp_path, tiny, device="cpu").classes == learner.classes[:4]


def test_a_learner_of_format_1_goes_back_to_itself(
    tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path: Path
) -> None:
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    learner.learn(Stream.class_incremental(*blobs, first=2, increment=2)[0])
    as_format_1(tmp_path, learner, 1)
    home = LearnerFolder(tmp_path)
    assert home.prune(1) == [] and home.rollback(1).number == 1 and home.content()["format"] == 2
    assert set(UPGRADES) == {1}


def test_a_later_format_is_left_alone(folder: LearnerFolder, tiny: TimmViT, stages: list[Any]) -> None:
    (folder.path / "learner.json").write_text(json.dumps({"format": 3, "all": "new"}))
    before = files(folder)
    with pytest.raises(StorageError, match=r"of format 3, this evertune reads up to 2: update evertune\.$"):
        Learner.load(folder.path, tiny)
    for change in (lambda: folder.write(*stages[1]), lambda: folder.rollback(1), lambda: folder.prune(1)):
        with pytest.raises(StorageError, match="update evertune"):
            change()
    assert files(folder) == before


def test_a_learner_without_a_description_of_its_own(folder: LearnerFolder, stages: list[Any]) -> None:
    (folder.path / "learner-3.json").unlink()
    assert numbers(folder) == [1, 2, 3] and folder.read(3)[0]["version"] == 3
    folder.write(*stages[3])
    assert numbers(folder) == [1, 2, 3, 4] and folder.rollback(3).number == 3


def test_another_backbone_is_refused(folder: LearnerFolder, tiny: TimmViT) -> None:
    content, tensors = folder.read()
    content["backbone"]["weights"] = "0" * 64
    folder.write(seal(content), tensors)
    with pytest.raises(ConfigError, match="was trained on another backbone"):
        Learner.load(folder.path, tiny)
