from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evertune.bench import Cell, Flag, log_of, run_cells, running, state_of

Write = Callable[..., Path]

ASKED = {
    "method": "safe", "preset": "evertune", "data": "digits", "first": 2, "increment": 2, "backbone": "embedded",
    "input_size": 32, "preprocessing": "native", "options": {}, "order_seed": 1993, "seed": 0, "references": False,
}  # fmt: skip


def cell(folder: Path, **settings: Any) -> Cell:
    return Cell("safe", folder, ASKED | settings)


def test_how_far_a_cell_has_come(write_run: Write, tmp_path: Path) -> None:
    folder = tmp_path / "safe/1993"
    assert state_of(cell(folder)).progress == "missing"
    folder.mkdir(parents=True)
    assert state_of(cell(folder)).progress == "missing"
    write_run(tmp_path / "b", [[9]], tasks=3, finished=False)
    begun = state_of(cell(tmp_path / "b"))
    assert (begun.progress, begun.reason) == ("begun", "1 of 3 tasks")
    write_run(tmp_path / "f", [[9], [7, 7]])
    finished = state_of(cell(tmp_path / "f"))
    assert finished.progress == "finished" and finished.run is not None and finished.run.order == 1993


def test_references_that_are_asked_for_have_to_be_there(write_run: Write, tmp_path: Path) -> None:
    without = cell(write_run(tmp_path / "a", [[9]]), references=True)
    assert (state_of(without).progress, state_of(without).reason) == ("begun", "the references are missing")
    with_them = cell(write_run(tmp_path / "b", [[9]], references={"nearest mean": 40.0}), references=True)
    assert state_of(with_them).progress == "finished"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "ranpac"}, "method: safe there, ranpac here"),
        ({"preset": "paper"}, "preset: evertune there, paper here"),
        ({"options": {"epochs": 3}}, "epochs: 10 there, 3 here"),
        ({"options": {"tuning.rank": 3}}, "tuning_options: "),
        ({"batch": 7}, "batch_size: 48 there, 7 here"),
        ({"seed": 1}, "seed of init: 0 there, 1 here"),
        ({"order_seed": 1994}, "order: 1993 there, 1994 here"),
        ({"order_seed": "none"}, "order: 1993 there, None here"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 here"),
        ({"crop_scale": [0.6, 1.0]}, "crop scale: [0.05, 1.0] there, [0.6, 1.0] here"),
        ({"flip": False}, "flip: 0.5 there, 0.0 here"),
        ({"test_resize": 40}, "test resize: None there, 40 here"),
        ({"backbone": "vit_tiny_patch16_224"}, "backbone: embedded there, vit_tiny_patch16_224 here"),
        ({"preprocessing": "unit"}, "preprocessing: native there, unit here"),
        ({"input_size": 64}, "input_size: 32 there, 64 here"),
        ({"kind": "domain"}, "kind: class there, domain here"),
        ({"first": 4}, "first: 2 there, 4 here"),
        ({"train_per_class": 5}, "train_per_class: None there, 5 here"),
        ({"imbalance": 10}, "imbalance: None there, 10 here"),
        ({"shot_seed": 3}, "shot_seed: 0 there, 3 here"),
    ],
)
def test_another_run_in_the_folder_is_told(
    write_run: Write, tmp_path: Path, asked: dict[str, Any], reason: str
) -> None:
    found = state_of(cell(write_run(tmp_path / "a", [[9], [7, 7]]), **asked))
    assert found.progress == "different" and reason in found.reason


@pytest.mark.parametrize(
    "there",
    [{"train_per_class": 5}, {"imbalance": 10, "imbalance_seed": 0}, {"group_by": "prefix"}, {"online": 16}],
)
def test_what_a_run_has_and_nobody_asked_for_is_told(write_run: Write, tmp_path: Path, there: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "a", [[9], [7, 7]], stream=there)
    found = state_of(cell(folder))
    assert found.progress == "different" and f"{next(iter(there))}: " in found.reason
    assert state_of(cell(folder, **there)).progress == "finished"


def test_one_of_first_and_increment_stands_for_both(write_run: Write, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [[9], [7, 7]])
    asked = {name: value for name, value in ASKED.items() if name != "first"}
    assert state_of(Cell("safe", folder, asked)).progress == "finished"
    assert state_of(Cell("safe", folder, asked | {"increment": 3})).progress == "different"


def test_the_habits_of_a_protocol(write_run: Write, tmp_path: Path) -> None:
    """HiDe-PET's crops are of 8 to 100 % of the area."""
    train = {"view": "train", "size": 32, "scale": [0.08, 1.0], "flip": 0.5}
    folder = write_run(tmp_path / "a", [[9], [7, 7]], config={"train_view": train})
    asked = {"protocol": "hide-pet"}
    assert state_of(cell(folder)).reason == "crop scale: [0.08, 1.0] there, [0.05, 1.0] here"
    assert "crop scale" not in state_of(cell(folder, **asked)).reason


def test_options_of_an_earlier_version(write_run: Write, tmp_path: Path) -> None:
    """One that the run does not know has its default; one that is no more is not looked at."""
    folder = write_run(tmp_path / "a", [[9], [7, 7]])
    config = json.loads((folder / "config.json").read_text())
    assert config["options"].pop("follow_optimizer") == "same"
    config["options"]["forgotten"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert state_of(cell(folder)).progress == "finished"
    other = state_of(cell(folder, options={"follow_optimizer": "adam"}))
    assert other.reason == "follow_optimizer: same there, adam here"


def test_folders_that_hold_something_else(write_run: Write, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    assert state_of(cell(tmp_path / "thesis")).reason == "it holds other files and no run"
    damaged = write_run(tmp_path / "a", [[9]])
    (damaged / "config.json").write_text("{")
    found = state_of(cell(damaged))
    assert found.progress == "different" and "is damaged" in found.reason


def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
    """``program`` takes the place of evertune."""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(running, "EVERTUNE", (sys.executable, str(tmp_path / "program.py")))


FLAGS = {name: Flag(f"--{name.replace('_', '-')}") for name in (*ASKED, "precision")}


def test_a_cell_that_fails_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work(
        monkeypatch,
        tmp_path,
        "import os, sys\nprint('told', *sys.argv[1:3])\nname = os.path.basename(sys.argv[-1])\n"
        "if name == '1': sys.exit('evertune: the disk is full')\n"
        "if name == '2': os.kill(os.getpid(), 9)\n",
    )
    cells = [cell(tmp_path / f"safe/{seed}", seed=seed) for seed in range(4)]
    heard: list[str] = []
    outcomes = run_cells(cells, FLAGS, jobs=2, on_end=lambda outcome: heard.append(outcome.cell.folder.name))
    errors = {outcome.cell.folder.name: outcome.error for outcome in outcomes}
    assert errors["0"] == errors["3"] == ""
    assert errors["1"] == "exit code 1: evertune: the disk is full"
    assert errors["2"] == "stopped by signal 9" or errors["2"].startswith("stopped by signal 9: told")
    assert sorted(heard) == ["0", "1", "2", "3"]
    assert log_of(cells[0]).read_text() == "told run --method\n"
    assert not cells[0].folder.exists()  # the folder is the run's own


def test_a_cell_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "safe").write_text("a file where the folder should be")
    found = run_cells([cell(tmp_path / "safe/1993")], FLAGS, jobs=1, on_end=lambda outcome: None)
    assert found[0].error.startswith("could not be started: ")


def test_a_cell_that_another_bench_makes_is_left_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It writes the log until it ends; another one then begins it anew."""
    work(monkeypatch, tmp_path, "print('told')\n")
    asked = cell(tmp_path / "safe/1993")
    log_of(asked).parent.mkdir()
    holds = "import fcntl, sys\nfcntl.flock(1, fcntl.LOCK_EX)\nprint('first', flush=True)\nsys.stdin.read()\n"
    with log_of(asked).open("ab") as file:
        other = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=file)
    while "first" not in log_of(asked).read_text():
        time.sleep(0.01)
    errors = [outcome.error for outcome in run_cells([asked], FLAGS, jobs=1, on_end=lambda outcome: None)]
    assert errors == ["another bench makes it now"]
    assert log_of(asked).read_text() == "first\n"
    other.communicate()
    assert [outcome.error for outcome in run_cells([asked], FLAGS, jobs=1, on_end=lambda outcome: None)] == [""]
    assert log_of(asked).read_text() == "told\n"


def test_ctrl_c_stops_what_runs_and_starts_nothing_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work(
        monkeypatch,
        tmp_path,
        "import signal, sys, time, pathlib\nfolder = pathlib.Path(sys.argv[-1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored\n"
        "if folder.name == 'quick': sys.exit()\n"
        "try:\n    (folder.parent / 'started').touch(); time.sleep(10)\n"
        "except KeyboardInterrupt:\n    (folder.parent / 'stopped').touch()\n",
    )

    def stop(outcome: object) -> None:
        while not (tmp_path / "safe/started").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    cells = [cell(tmp_path / name) for name in ("safe/quick", "safe/long", "safe/longer", "never/later")]
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, FLAGS, jobs=2, on_end=stop)
    assert (tmp_path / "safe/stopped").exists()
    assert not (tmp_path / "never").exists()
