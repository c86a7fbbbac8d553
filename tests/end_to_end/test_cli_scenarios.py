"""``evertune run`` on streams of every scenario, and on tasks that come one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from evertune.cli.app import app
from evertune.evaluation import AccuracyMatrix

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30), "yellow": (230, 210, 40)}
METHOD: list[object] = ["--method", "simple_cil", "--device", "cpu", "--quiet", "--no-references"]


def evertune_(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def works(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2, result.output
    return result.stderr.split("evertune: ")[-1]


def images(name: str, count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-30, 31, (count, 16, 16, 3))
    return (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)


def write_task(root: Path, names: list[str], tests: int = 2) -> Path:
    """Folders of classes below train/ and test/, or, without tests, below the root."""
    for part, count in (("train", 4), ("test", tests)) if tests else (("", 4),):
        for seed, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i, pixels in enumerate(images(name, count, seed + len(root.name) + len(part))):
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path, names = tmp_path / "colours.npz", list(COLOURS)
    train, test = (np.concatenate([images(name, n, n) for name in names]) for n in (8, 2))
    np.savez(
        path, x_train=train, y_train=np.repeat(range(4), 8), x_test=test, y_test=np.repeat(range(4), 2), classes=names
    )
    return path


def matrix(folder: Path) -> AccuracyMatrix:
    return AccuracyMatrix.from_json((folder / "matrix.json").read_text())


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        (["--stream", "sizes=1,3", "--order-seed", "none"], None),
        (["--stream", "sizes=3,1", "--stream", "shots=2"], [24, 2]),
        (["--increment", 2, "--stream", "imbalance=4", "--stream", "imbalance_order=descending"], [8 + 5, 3 + 2]),
        (["--kind", "blurry", "--stream", "tasks=2", "--stream", "blur=0.25"], [16, 16]),
        (["--kind", "data", "--stream", "fractions=0.5,0.25,0.25"], [16, 8, 8]),
        (["--increment", 2, "--stream", "online=12"], [12, 12, 8]),
    ],
)
def test_scenarios_by_option(data: Path, tmp_path: Path, asked: list[object], sizes: list[int] | None) -> None:
    if sizes is None:
        assert "The first task has one class" in refused("run", "--data", data, *METHOD, *asked)
        return
    works("run", "--data", data, *METHOD, *asked, "--out", tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["examples"] for entry in log] == sizes
    assert matrix(tmp_path / "run").counts()[1].sum() == 8


def test_task_incremental_by_option(data: Path, tmp_path: Path) -> None:
    told = works("run", "--data", data, *METHOD, "--increment", 2, "--task-incremental", "--out", tmp_path / "run")
    assert "within task: the task is told" in told
    assert matrix(tmp_path / "run").parts == ("prototypes", "within task")


def test_tasks_come_one_by_one(tmp_path: Path) -> None:
    monday = write_task(tmp_path / "monday", ["blue", "green"])
    tuesday = write_task(tmp_path / "tuesday", ["green", "red"])
    wednesday = write_task(tmp_path / "wednesday", ["blue"], tests=0)
    folder = tmp_path / "week"
    method: list[Any] = ["--method", "aper", "--set", "epochs=1", "--device", "cpu", "--no-references"]
    run: list[Any] = ["run", *method, "--out", folder]
    assert "task 1 of 1 (monday: blue, green): accuracy so far" in works(*run, "--task", monday)
    said = works(*run, "--task", monday, "--task", tuesday, "--task", wednesday)
    assert "going on after task 1 of 3" in said
    assert matrix(folder).names == ("monday", "tuesday", "wednesday")
    assert matrix(folder).counts()[1].tolist() == [4, 4, 0]
    assert len(json.loads((folder / "config.json").read_text())["former_protocols"]) == 1
    assert "here are the first 2 of them" in refused(*run, "--task", monday, "--task", tuesday)
    diagnosed = works("diagnose", folder, "--per-task", 2, "--device", "cpu")
    assert "wednesday" in diagnosed
    (tuesday / "train/red/0.png").unlink()
    assert "have changed since the run learned" in refused("diagnose", folder, "--per-task", 2)


def test_tasks_are_read_as_told_and_found_again(tmp_path: Path) -> None:
    monday, tuesday = write_task(tmp_path / "monday", ["blue", "green"]), write_task(tmp_path / "tuesday", ["red"])
    photo = tuesday / "train/red/0.png"
    photo.rename(tmp_path / "elsewhere.png")
    photo.symlink_to(tmp_path / "elsewhere.png")
    folder = tmp_path / "week"
    method: list[Any] = ["--method", "aper", "--set", "epochs=1", "--device", "cpu", "--no-references"]
    run: list[Any] = ["run", *method, "--out", folder, "--task", monday, "--task", tuesday]
    assert "a link that leads outside" in refused(*run) and "--follow-links" in refused(*run)
    works(*run, "--follow-links")
    kept = json.loads((folder / "data.json").read_text())
    assert kept["tasks"] == [str(monday), str(tuesday)] and kept["follow_links"] and "download" not in kept
    assert "tuesday" in works("diagnose", folder, "--per-task", 2, "--device", "cpu")


def test_tasks_without_tests_cannot_be_measured(tmp_path: Path) -> None:
    monday = write_task(tmp_path / "monday", ["blue", "green"], tests=0)
    assert "No task has test examples" in refused("run", *METHOD, "--task", monday, "--out", tmp_path / "run")


def test_tasks_or_data(data: Path, tmp_path: Path) -> None:
    monday = write_task(tmp_path / "monday", ["blue", "green"])
    assert "Say what to learn" in refused("run", *METHOD)
    assert "Say what to learn" in refused("run", *METHOD, "--data", data, "--task", monday)
    assert "--first, --stream means nothing with --task" in refused(
        "run", *METHOD, "--task", monday, "--first", 2, "--stream", "online=3"
    )
    assert "--test means nothing with --task" in refused("run", *METHOD, "--task", monday, "--test", monday)
    assert "--kind blurry does not exist for a task" in refused("run", *METHOD, "--task", monday, "--kind", "blurry")
    assert "Two tasks are called monday" in refused("run", *METHOD, "--task", monday, "--task", monday)
    assert "shots means nothing for a stream of kind 'blurry'" in refused(
        "run", *METHOD, "--data", data, "--kind", "blurry", "--stream", "shots=3"
    )
