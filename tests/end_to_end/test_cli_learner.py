"""Teaching a learner from the command line, day after day: updates, versions, and what stops in the middle."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from evertune import Learner, LearnerFolder
from evertune.cli.app import app
from evertune.learner.update import Update

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30), "yellow": (230, 210, 40)}
QUICK = ["--method", "simple_cil", "--device", "cpu", "--quiet"]


def evertune_(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def works(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


def write(root: Path, *names: str, count: int = 3, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(COLOURS[name]) + rng.integers(-30, 31, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def taught(tmp_path: Path) -> Path:
    """A learner of blue and red (version 1), and then of green (version 2)."""
    kept = tmp_path / "kept"
    works("learn", kept, write(tmp_path / "monday", "blue", "red"), *QUICK)
    works("learn", kept, write(tmp_path / "tuesday", "green"), *QUICK)
    return kept


# -- learn -------------------------------------------------------------------------------------------------------------


def test_updates_make_versions_and_say_how_to_go_back(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    text = works("learn", kept, write(tmp_path / "monday", "blue", "red"), *QUICK)
    assert "learned task 1 from 6 images (new: blue, red)" in text
    assert "this is version 1; no other is kept" in text
    text = works("learn", kept, write(tmp_path / "tuesday", "green", count=1), *QUICK)
    assert "learned task 2 from 1 image (new: green)" in text
    assert f"this is version 2; back to version 1: evertune rollback {kept}\n" in text
    text = works("learn", kept, "--data", write(tmp_path / "more", "blue", "yellow"), "-q")
    assert "(new: yellow; more of: blue)" in text and "knows 4 classes: blue, red, green, yellow" in text
    assert "(no new class; more of: red)" in works("learn", kept, write(tmp_path / "red", "red"), "-q", "--keep", 2)
    assert [version.number for version in LearnerFolder(kept).versions()] == [3, 4]
    assert [entry["kind"] for entry in Learner.load(kept, progress=False).history] == [
        "class",
        "class",
        "mixed",
        "mixed",
    ]


def test_tests_of_known_classes_are_measured_and_of_others_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    works("learn", kept, write(tmp_path / "monday", "blue", "red"), *QUICK)
    write(tmp_path / "tuesday/train", "green")
    write(tmp_path / "tuesday/test", "green", "blue", count=2, seed=1)
    before = files(kept)
    unknown = write(tmp_path / "unknown", "yellow", count=2)
    message = refused("learn", kept, tmp_path / "tuesday/train", "--test", unknown)
    assert "2 test images belong to classes" in message
    assert files(kept) == before
    assert "100.00 % (4 of 4)" in works("learn", kept, tmp_path / "tuesday", "-q")


def test_where_the_current_version_is_lost_no_new_learner_begins(tmp_path: Path) -> None:
    kept = tmp_path / "kept it"
    works("learn", kept, write(tmp_path / "monday", "blue", "red"), *QUICK)
    (kept / "learner.json").unlink()
    for args in ([], ["--dry-run"]):
        message = refused("learn", kept, write(tmp_path / f"tuesday{len(args)}", "green"), *QUICK, *args)
        assert f"Version 1 is whole: 'evertune rollback '{kept}' --to 1'" in message
    works("rollback", kept, "--to", 1)
    assert "knows 3 classes" in works("learn", kept, tmp_path / "tuesday0", *QUICK)


def test_a_level_of_domains(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    write(tmp_path / "rooms/day", "blue", "red")
    write(tmp_path / "rooms/night", "blue", "red", seed=1)
    assert "from 12 images (new: blue, red)" in works("learn", kept, tmp_path / "rooms", "--domain-level", *QUICK)


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    kept, monday = tmp_path / "kept", write(tmp_path / "monday", "blue", "red")
    text = works("learn", kept, monday, *QUICK, "--dry-run")
    assert "would learn task 'monday' (class) from 6 images" in text and "new: blue (3), red (3)" in text
    assert not kept.exists()
    works("learn", kept, monday, *QUICK)
    before = files(kept)
    text = works("learn", kept, write(tmp_path / "more", "blue", "green", count=2), "--dry-run")
    assert "(mixed) from 4 images\nnew: green (2)\nknown: blue (2)\n" in text
    assert f"{kept} knows 2 classes: blue, red" in text and files(kept) == before


def test_what_was_settled_may_be_said_again_but_not_otherwise(tmp_path: Path) -> None:
    kept, monday = tmp_path / "kept", write(tmp_path / "monday", "blue", "red")
    chosen = ["-m", "ranpac", "--set", "features=20", "--set", "epochs=1", "--no-flip", "--seed", 3, "-b", "embedded"]
    works("learn", kept, monday, *chosen, "--set", "tuning.rank=4", "--set", "tuning=lora", "-q")
    before = files(kept)
    for asked, told in (
        (["-m", "safe", "--set", "lambda_cos=3"], "--method is ranpac there, not safe"),
        (["--flip"], "--flip is off there, not on"),
        (["--seed", 4], "--seed is 3 there, not 4"),
        (["--crop-scale", 0.5, 1], "--crop-scale is 0.05 1.0 there, not 0.5 1.0"),
        (["--input-size", 64], "--input-size is 32 there, not 64"),
        (["--set", "features=21"], "--set features is 20 there, not 21"),
        (["--set", "tuning.rank=5"], "--set tuning.rank is 4 there, not 5"),
        (["--max-length", 12], "--max-length is unset there, not 12"),
    ):
        assert told in refused("learn", kept, monday, *asked), asked
    assert files(kept) == before
    tuesday = write(tmp_path / "tuesday", "green")
    assert "learned task 2" in works("learn", kept, tuesday, *chosen, "--set", "tuning.rank=4", "-q")


def test_a_learner_stays_in_its_precision(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    works("learn", kept, write(tmp_path / "monday", "blue", "red"), *QUICK, "--precision", "bf16")
    works("learn", kept, write(tmp_path / "tuesday", "green"), *QUICK)
    assert json.loads((kept / "learner.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("args", [[], ["a/", "--data", "b/"]])
def test_data_is_said_once(args: list[str], tmp_path: Path) -> None:
    assert "Say once what to learn" in refused("learn", tmp_path / "kept", *args)
    assert not (tmp_path / "kept").exists()


# -- going back --------------------------------------------------------------------------------------------------------


def test_back_and_forth_and_on(tmp_path: Path) -> None:
    kept = taught(tmp_path)
    images = [tmp_path / "monday/blue/0.png", tmp_path / "tuesday/green/0.png"]
    second = Learner.load(kept, progress=False).scores(images)
    text = works("rollback", kept)
    assert f"{kept} is version 1 now" in text and "1 task learned" in text and "it knows 2 classes: blue, red" in text
    assert f"version 2 stays until it is pruned; to go there again: evertune rollback {kept} --to 2" in text
    assert Learner.load(kept, progress=False).classes == ("blue", "red")
    works("rollback", kept, "--to", 2)
    assert Learner.load(kept, progress=False).scores(images).equal(second)
    works("rollback", kept)
    works("learn", kept, write(tmp_path / "friday", "yellow"), "-q")  # goes on from version 1, under a new number
    assert Learner.load(kept, progress=False).classes == ("blue", "red", "yellow")
    lines = works("rollback", kept, "--list").splitlines()
    assert [line[:12].split() for line in lines[1:]] == [["1"], ["2"], ["*", "3"]]
    assert works("rollback", kept).startswith(f"{kept} is version 1 now"), "the one it was made from"


def test_pruning_frees_bytes_and_never_the_current_version(tmp_path: Path) -> None:
    kept = taught(tmp_path)
    works("rollback", kept)
    before = sum(map(len, files(kept).values()))
    assert f"there is nothing to remove\n{kept} keeps versions 1, 2" in works("prune", kept, "--keep", 1)
    works("learn", kept, write(tmp_path / "friday", "yellow"), "-q")
    gone = [version for version in LearnerFolder(kept).versions() if version.number < 3]
    text = works("prune", kept, "--keep", 1)
    freed = sum(version.bytes for version in gone)
    assert f"removed versions 1, 2: {freed / 1e3:.1f} kB freed\n{kept} keeps version 3" in text
    assert sum(map(len, files(kept).values())) < before
    assert "no version to go back to" in refused("rollback", kept)


def test_a_damaged_learner_tells_the_way_back(tmp_path: Path) -> None:
    kept = taught(tmp_path)
    state = kept / json.loads((kept / "learner.json").read_text())["state"]["file"]
    state.write_bytes(state.read_bytes()[:-1])
    message = refused("learn", kept, write(tmp_path / "friday", "yellow"), "-q")
    assert f"'evertune rollback {kept} --to 1'" in message
    works("rollback", kept, "--to", 1)
    assert "knows 3 classes: blue, red, yellow" in works("learn", kept, tmp_path / "friday", "-q")
    (kept / "learner.json").unlink()
    assert "knows 3 classes" in works("rollback", kept)


@pytest.mark.parametrize("command", [["rollback"], ["rollback", "--list"], ["prune", "--keep", "1"]])
def test_where_there_is_no_learner_of_ones_own(command: list[str], tmp_path: Path) -> None:
    name, *options = command
    assert "holds no learner" in refused(name, tmp_path / "nowhere", *options)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "holds other files and no learner" in refused(name, tmp_path / "mine", *options)
    (tmp_path / "run/learner").mkdir(parents=True)
    for file in ("run/config.json", "run/learner/learner.json"):
        (tmp_path / file).write_text("{}")
    assert "is a run folder" in refused(name, tmp_path / "run", *options)
    assert "is part of a run" in refused(name, tmp_path / "run/learner", *options)


def test_versions_that_do_not_exist(tmp_path: Path) -> None:
    kept = taught(tmp_path)
    assert "has no version 7; there are 1, 2" in refused("rollback", kept, "--to", 7)
    result = evertune_("prune", kept, "--keep", 0)
    assert result.exit_code == 2 and "--keep" in result.stderr


# -- stopped in the middle ---------------------------------------------------------------------------------------------

TRAINED = ["--method", "finetune", "--set", "epochs=20", "--batch", 1, "--device", "cpu", "--quiet"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C as soon as a second checkpoint is written."""
    write = Update.write

    def stops(self: Update, checkpoint: Any) -> bool:
        done = write(self, checkpoint)
        if self.number == 2:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Update, "write", stops)
        yield


def stopped(*args: object) -> str:
    """The last line of a command that Ctrl-C stops."""
    result = evertune_(*args, "--checkpoint-every", 0)
    assert result.exit_code == 130 and result.stdout == "", result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_ctrl_c_tells_how_the_learner_is_and_how_to_go_on(interrupted: None, tmp_path: Path) -> None:
    kept, monday = tmp_path / "kept", write(tmp_path / "monday", "blue", "red", count=1)
    first = stopped("learn", kept, monday, *TRAINED)
    assert first == f"evertune: stopped. {kept} has no learner yet; the same command goes on in phase 2."
    result = evertune_("learn", kept, monday, *TRAINED)  # the whole command again, options and all
    assert "the update with task 'monday' was stopped in phase 2: the same task goes on there" in result.stderr
    assert "knows 2 classes: blue, red" in result.stdout
    tuesday = write(tmp_path / "tuesday", "green", count=1)
    second = stopped("learn", kept, tuesday, *TRAINED)
    assert second.startswith(
        f"evertune: stopped. The learner in {kept} is what it was before; the same command goes on"
    )


def test_an_update_may_be_given_up(interrupted: None, tmp_path: Path) -> None:
    kept, monday = tmp_path / "kept", write(tmp_path / "monday", "blue", "red", count=1)
    stopped("learn", kept, monday, *TRAINED)
    friday = write(tmp_path / "friday", "green", "yellow", count=1)
    assert "unfinished update with task 'monday'" in refused("learn", kept, friday, *TRAINED)
    assert "knows 2 classes: green, yellow" in works("learn", kept, friday, *TRAINED, "--restart")
    stopped("learn", kept, monday, *TRAINED)
    works("learn", kept, friday, *TRAINED, "--restart")
    stopped("learn", kept, monday, *TRAINED)
    works("rollback", kept)
    assert not (kept / "update.json").exists(), "going back gives it up too"


def test_a_kill_and_a_second_process(tmp_path: Path) -> None:
    """A real process is killed while it learns; in the end it is as if nothing had happened."""
    kept, other = tmp_path / "kept", tmp_path / "other"
    monday, tuesday = write(tmp_path / "monday", "blue", "red", count=1), write(tmp_path / "tuesday", "green", count=2)
    works("learn", kept, monday, *TRAINED)
    shutil.copytree(kept, other)
    command = [sys.executable, "-m", "evertune.cli", "learn", kept, tuesday, "--device", "cpu", "--checkpoint-every", 0]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (kept / "update.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that it is in the middle of it for as long as we look
    assert f"is being changed by another process (process {process.pid}" in refused("learn", kept, tuesday, "-q")
    for args in (["rollback", kept], ["prune", kept, "--keep", 1]):
        assert "is being changed by another process" in refused(*args)
    process.kill()
    process.communicate(timeout=60)
    result = evertune_("learn", kept, tuesday, "--device", "cpu", "-q")
    assert result.exit_code == 0 and "the update with task 'tuesday' was stopped " in result.stderr
    works("learn", other, tuesday, "--device", "cpu", "-q")
    digests = [json.loads((folder / "learner.json").read_text())["state"]["sha256"] for folder in (kept, other)]
    assert digests[0] == digests[1]


# -- in a run ----------------------------------------------------------------------------------------------------------


def run_of(tmp_path: Path, *options: object) -> list[object]:
    """The arguments of a run of two tasks of two colours."""
    data = tmp_path / "data"
    if not data.exists():
        write(data / "train", *COLOURS, count=1)
        write(data / "test", *COLOURS, count=1, seed=1)
    return ["run", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--no-references", "-q", *options]


@pytest.mark.parametrize(
    ("asked", "kept"), [([], [2, 3]), (["--versions", "all"], [1, 2, 3]), (["--versions", 1], [3])]
)
def test_a_run_keeps_versions_of_its_learner(asked: list[object], kept: list[int], tmp_path: Path) -> None:
    works(*run_of(tmp_path, "-m", "simple_cil", "--first", 2, "--increment", 1, *asked))
    assert [version.number for version in LearnerFolder(tmp_path / "run/learner").versions()] == kept


@pytest.mark.parametrize("versions", ["0", "-1", "some"])
def test_versions_are_a_number_or_all(versions: str, tmp_path: Path) -> None:
    message = refused(*run_of(tmp_path, "-m", "simple_cil", f"--versions={versions}"))
    assert f"--versions {versions} is neither a whole number from 1 nor 'all'" in message


def test_a_run_goes_on_inside_a_task(interrupted: None, tmp_path: Path) -> None:
    run = run_of(tmp_path, *TRAINED)
    message = f"evertune: stopped. The same command goes on in phase 2 of task 'task 1', as kept in {tmp_path / 'run'}."
    assert stopped(*run) == message
    result = evertune_(*run)
    assert result.exit_code == 0 and "the update with task 'task 1' was stopped in phase 2" in result.stderr
    assert "final accuracy" in result.stdout
