"""Asking a kept learner on the command line: predict, evaluate, calibrate."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from evertune import Learner, load_backbone
from evertune.cli.app import app
from evertune.evaluation import binomial_interval

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30), "yellow": (230, 210, 40)}


def evertune_(*args: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", input=given)


def works(*args: object, given: bytes | None = None) -> str:
    result = evertune_(*args, given=given)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object, given: bytes | None = None) -> str:
    result = evertune_(*args, given=given)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.startswith("evertune: ") and "Traceback" not in result.stderr
    return result.stderr


def pictures(root: Path, names: Any, count: int, seed: int, noise: int = 60) -> Path:
    """``count`` images of each colour as ``<name>/<i>.png``."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            drawn = np.array(COLOURS[name]) + rng.integers(-noise, noise + 1, (16, 16, 3))
            Image.fromarray(drawn.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny transformer, a learner of four colours in two tasks (``home``) and images to test it on."""
    place = tmp_path_factory.mktemp("asking")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), place / "tiny.safetensors")
    backbone = load_backbone("test_vit", weights=place / "tiny.safetensors", input_size=32)
    learner = Learner("simple_cil", backbone, device="cpu", progress=False)
    rng = np.random.default_rng(0)
    for names in (["blue", "green"], ["red", "yellow"]):
        colours = np.repeat(np.array([COLOURS[name] for name in names]), 6, axis=0)[:, None, None]
        x = (colours + rng.integers(-60, 61, (12, 16, 16, 3))).clip(0, 255).astype(np.uint8)
        learner.partial_fit(x, np.repeat(names, 6))
    learner.save(place / "home")
    pictures(place / "test", COLOURS, 4, seed=1, noise=150)
    shutil.copy(place / "test/red/0.png", place / "test/blue/3.png")  # not all answers are to be right
    return place


@pytest.fixture(scope="module")
def ask(place: Path) -> tuple[object, ...]:
    return ("predict", place / "home", "-w", place / "tiny.safetensors", "--device", "cpu")


@pytest.fixture(scope="module")
def learner(place: Path) -> Learner:
    backbone = load_backbone("test_vit", weights=place / "tiny.safetensors", input_size=32)
    return Learner.load(place / "home", backbone, device="cpu", progress=False)


# -- predict -----------------------------------------------------------------------------------------------------------


def test_every_form_says_the_same(ask: tuple[object, ...], place: Path, learner: Learner, tmp_path: Path) -> None:
    files = sorted(map(str, (place / "test").rglob("*.png")))
    said = learner.classify(files)
    wanted = [{"input": file, **row} for file, row in zip(files, said.as_rows(top=2), strict=True)]
    common = (*ask, *files, "--top", 2, "--eval-batch", 5)
    assert json.loads(works(*common, "--format", "json")) == wanted
    assert [json.loads(line) for line in works(*common, "--format", "jsonl").splitlines()] == wanted
    rows = list(csv.DictReader(io.StringIO(works(*common, "--format", "csv"))))
    assert list(rows[0]) == [
        "input", "label", "confidence", "label_1", "probability_1", "label_2", "probability_2",
    ]  # fmt: skip
    assert [(row["input"], row["label_2"], float(row["confidence"])) for row in rows] == [
        (one["input"], one["top"][1]["label"], one["confidence"]) for one in wanted
    ]
    lines = works(*common[:-2]).splitlines()  # in one batch
    assert [line.split()[:2] for line in lines[1:]] == [[one["input"], one["label"]] for one in wanted]
    assert len({line.index(f"  {one['label']} ") for line, one in zip(lines[1:], wanted, strict=True)}) == 1  # aligned
    (tmp_path / "old.json").write_text("old")
    assert works(*common, "--format", "json", "--out", tmp_path / "old.json") == ""
    assert json.loads((tmp_path / "old.json").read_text()) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_folders_are_searched(ask: tuple[object, ...], place: Path, tmp_path: Path) -> None:
    photo = place / "test/blue/0.png"
    deep = tmp_path / "a/b/c"
    deep.mkdir(parents=True)
    for target in (tmp_path / "one.png", deep / "two.PNG", tmp_path / ".hidden.png"):
        shutil.copy(photo, target)
    (tmp_path / "notes.txt").write_text("no image")
    told = works(*ask, tmp_path, "--format", "jsonl").splitlines()
    assert {json.loads(line)["input"] for line in told} == {str(deep / "two.PNG"), str(tmp_path / "one.png")}
    (tmp_path / "link.png").symlink_to(photo)
    assert "link that leads outside" in refused(*ask, tmp_path)
    assert "link.png" in works(*ask, tmp_path, "--follow-links")
    below = deep / "d/e/f"
    below.mkdir(parents=True)
    assert "too deep" in refused(*ask, tmp_path, "--follow-links")


def test_paths_come_on_the_standard_input(ask: tuple[object, ...], place: Path, tmp_path: Path) -> None:
    files = sorted(map(str, (place / "test").rglob("*.png")))
    wanted = works(*ask, *files, "--format", "jsonl")
    form = ("--format", "jsonl", "--eval-batch", 3)
    assert works(*ask, "-", *form, given="\r\n".join([*files, ""]).encode()) == wanted
    assert works(*ask, "-", "-0", *form, given="\0".join(files).encode()) == wanted
    assert "nothing to classify" in refused(*ask, "-", given=b"\n")


def test_odd_names_are_written_so_that_they_are_read_again(
    ask: tuple[object, ...], place: Path, tmp_path: Path
) -> None:
    odd = [tmp_path / "a\nb\x1b[31m.png", tmp_path / os.fsdecode(b"caf\xe9,.png"), tmp_path / "café.png"]
    for path in odd:
        shutil.copy(place / "test/red/0.png", path)
    given = b"\0".join(map(os.fsencode, odd))
    lines = works(*ask, "-", "--null", "--format", "jsonl", given=given).splitlines()
    assert [json.loads(line)["input"] for line in lines] == list(map(str, odd)) and "café.png" in lines[2]
    rows = evertune_(*ask, "-", "-0", "--format", "csv", given=given).stdout_bytes.decode("utf-8", "surrogateescape")
    assert [row["input"] for row in csv.DictReader(io.StringIO(rows, newline=""))] == list(map(str, odd))
    assert "\x1b" not in works(*ask, odd[0])


def test_a_stream_is_answered_as_it_comes(ask: tuple[object, ...], place: Path) -> None:
    """Of what precedes a file that cannot be read, whole batches are answered."""
    files = sorted(map(str, (place / "test").rglob("*.png")))[:5]
    result = evertune_(*ask, *files, "gone.png", "--eval-batch", 2, "--format", "jsonl")
    assert result.exit_code == 2 and len(result.stdout.splitlines()) == 4 and "gone.png" in result.stderr


def test_what_cannot_be_read_is_left_out_on_request(ask: tuple[object, ...], place: Path, tmp_path: Path) -> None:
    good = sorted(map(str, (place / "test/red").iterdir()))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    files = [*good[:2], bad, *good[2:], tmp_path / "gone.png"]
    message = refused(*ask, *files)
    assert message.count("evertune:") == 1 and "bad.png" in message
    for batch in (1, 128):
        result = evertune_(*ask, *files, "--skip-unreadable", "--format", "csv", "--eval-batch", batch)
        assert result.exit_code == 1
        assert [row["input"] for row in csv.DictReader(io.StringIO(result.stdout))] == good
        assert result.stderr.count("left out: ") == 2 and "bad.png" in result.stderr and "gone.png" in result.stderr
    assert "No task is called" in refused(*ask, *files, "--skip-unreadable", "--task", "may")
    out = tmp_path / "out.csv"
    assert "bad.png" in refused(*ask, *files, "--out", out, "--eval-batch", 1)
    assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["bad.png"]


def test_nothing_is_said_below_a_confidence(ask: tuple[object, ...], place: Path) -> None:
    photo = place / "test/red/0.png"
    for form, label in (("jsonl", '"label": null'), ("csv", f"{photo},,0."), ("table", f"{photo}  -      0.")):
        assert label in works(*ask, photo, "--abstain", 0.99, "--format", form)
    assert "from 0 to below 1" in refused(*ask, photo, "--abstain", 1)


def test_the_task_is_told_beside(ask: tuple[object, ...], place: Path) -> None:
    told = works(*ask, place / "test/blue/0.png", "--task", "task 2", "--format", "csv").splitlines()
    assert told[0] == "input,label,confidence,task"
    assert told[1].split(",")[1] in ("red", "yellow") and told[1].endswith(",task 2")


def test_what_predict_refuses(ask: tuple[object, ...], place: Path, tmp_path: Path) -> None:
    photo = place / "test/red/0.png"
    assert "Did you mean 'json'? Known: csv, json, jsonl, table." in refused(*ask, photo, "--format", "json1")
    assert "is a folder" in refused(*ask, photo, "--out", tmp_path)
    assert "nothing to classify" in refused(*ask)
    assert "--top" in evertune_(*ask, photo, "--top", 0).stderr


# -- evaluate and calibrate --------------------------------------------------------------------------------------------


def test_evaluate_counts(place: Path, learner: Learner) -> None:
    tiny = ("-w", place / "tiny.safetensors", "--device", "cpu")
    told = json.loads(works("evaluate", place / "home", place / "test", *tiny, "--format", "json"))
    right = {name: learner.predict(sorted((place / "test" / name).iterdir())).count(name) for name in learner.classes}
    assert {one["name"]: one["correct"] for one in told["classes"]} == right
    assert told["correct"] == sum(right.values()) and told["total"] == 16 and 0 < told["correct"] < 16
    assert [(one["name"], one["correct"]) for one in told["tasks"]] == [
        ("task 1", right["blue"] + right["green"]), ("task 2", right["red"] + right["yellow"]),
    ]  # fmt: skip
    interval = binomial_interval(told["correct"], 16)
    assert told["interval"] == [interval.low, interval.high] and told["temperature"] is None
    text = works("evaluate", place / "home", place / "test", *tiny)
    assert f"accuracy           {interval.mean:.2f} % ({told['correct']} of 16)" in text
    assert f"{told['calibration_error']:.2f} (ECE" in text and "not calibrated" in text and "yellow" in text


def test_evaluate_asks_about_what_is_known(place: Path, tmp_path: Path) -> None:
    tiny = ("-w", place / "tiny.safetensors", "--device", "cpu")
    for name in ("blue", "mauve"):
        shutil.copytree(place / "test/blue", tmp_path / "data" / name)
    common = ("evaluate", place / "home", tmp_path / "data", *tiny)
    assert "never learned: mauve" in refused(*common)
    assert json.loads(works(*common, "--known-only", "--format", "json"))["total"] == 4
    assert "holds no class that is known" in refused(*common, "--known-only", "--task", "task 2")
    assert "Known: json, table" in refused(*common, "--format", "csv")
    assert "No task is called" in refused(*common, "--task", "may")


def test_calibrate_keeps_a_temperature(place: Path, tmp_path: Path) -> None:
    tiny = ("-w", place / "tiny.safetensors", "--device", "cpu")
    home = shutil.copytree(place / "home", tmp_path / "home")
    text = works("calibrate", home, place / "test", *tiny)
    before, after = (float(part.split()[0]) for part in text.splitlines()[1].split(": ")[1].split(", "))
    assert text.startswith("temperature ") and "from 16 examples" in text
    kept = json.loads((home / "learner.json").read_text())
    assert kept["temperature"]["examples"] == 16 and kept["version"] == 2
    told = json.loads(works("evaluate", home, place / "test", *tiny, "--format", "json"))
    assert told["temperature"] == kept["temperature"]
    assert told["calibration_error"] == pytest.approx(after, abs=0.01) and after < before
    assert "calibrated: temperature" in works("evaluate", home, place / "test", *tiny)
    works("rollback", home)
    assert json.loads((home / "learner.json").read_text())["temperature"] is None


def test_what_calibrate_refuses(place: Path, tmp_path: Path) -> None:
    tiny = ("-w", place / "tiny.safetensors", "--device", "cpu")
    shutil.copytree(place / "test/blue", tmp_path / "data/mauve")
    before = (place / "home/learner.json").read_bytes()
    assert "never learned: mauve" in refused("calibrate", place / "home", tmp_path / "data", *tiny)
    assert (place / "home/learner.json").read_bytes() == before
    assert "no learner" in refused("calibrate", tmp_path / "data/mauve", place / "test", *tiny)
