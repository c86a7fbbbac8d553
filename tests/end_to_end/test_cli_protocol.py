"""``evertune run --protocol`` and ``evertune protocol``, as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from evertune.cli.app import app
from evertune.evaluation import PRESETS, AccuracyMatrix, final_accuracy


def evertune_(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def works(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2 and result.stdout == "", result.output
    return result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes that are not told apart without mistakes, of unequal numbers of test images."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "six.npz"
    held = {part: np.repeat(np.arange(6), counts) for part, counts in (("train", 6), ("test", [2, 4, 6, 8, 10, 12]))}
    centres = rng.integers(60, 200, (6, 4, 4, 3))
    pixels = {
        part: (centres[labels] + rng.normal(0, 60, (len(labels), 4, 4, 3))).clip(0, 255).astype(np.uint8)
        for part, labels in held.items()
    }
    np.savez(file, x_train=pixels["train"], y_train=held["train"], x_test=pixels["test"], y_test=held["test"])
    return file


def learned(data: Path, folder: Path, *options: object) -> Result:
    fixed = ("--method", "simple_cil", "--no-references", "--quiet", "--increment", 2)
    return evertune_("run", "--data", data, "--out", folder, *fixed, *options)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Result]]:
    home = tmp_path_factory.mktemp("runs")
    wanted = {
        "plain": (),
        "native": ("--protocol", "native"),
        "pilot": ("--protocol", "pilot-1993"),
        "hide": ("--protocol", "hide-pet", "--order-seed", 7, "--crop-scale", 0.6, 1, "--no-flip"),
    }
    made = {name: (home / name, learned(data, home / name, *options)) for name, options in wanted.items()}
    for _, result in made.values():
        assert result.exit_code == 0, result.output
    return made


def kept(runs: dict[str, tuple[Path, Result]], name: str, file: str) -> dict[str, object]:
    return json.loads((runs[name][0] / file).read_text())


def test_native_is_what_a_run_does_anyway(runs: dict[str, tuple[Path, Result]]) -> None:
    for file in ("protocol.json", "config.json"):
        assert kept(runs, "native", file) == kept(runs, "plain", file)
    assert "protocol    as" not in runs["plain"][1].stdout


def test_a_preset_sets_order_pixels_and_preprocessing(runs: dict[str, tuple[Path, Result]]) -> None:
    fields, train = kept(runs, "pilot", "protocol.json")["fields"], kept(runs, "pilot", "config.json")["train_view"]
    assert fields["seeds"] == {"order": 1993} and fields["preprocessing"]["preprocessing"] == "unit"
    assert fields["views"]["test"] == {"view": "test", "size": 32, "resize": 36, "interpolation": "bicubic"}
    assert train["scale"] == [0.05, 1.0] and "jitter" not in train
    assert runs["pilot"][1].stderr == ""
    hide, train = kept(runs, "hide", "protocol.json")["fields"], kept(runs, "hide", "config.json")["train_view"]
    assert hide["preprocessing"]["mean"] == [0.5071, 0.4867, 0.4408] and train["interpolation"] == "bicubic"
    assert train["jitter"] == [63 / 255, 0.0, 0.0, 0.0]


def test_options_win_and_are_told(runs: dict[str, tuple[Path, Result]]) -> None:
    fields, train = kept(runs, "hide", "protocol.json")["fields"], kept(runs, "hide", "config.json")["train_view"]
    assert fields["seeds"] == {"order": 7} and train["scale"] == [0.6, 1.0] and train["flip"] == 0.0
    assert runs["hide"][1].stderr.splitlines() == [
        "evertune: class order is seed 7 here; protocol hide-pet says the data's own",
        "evertune: tasks is 3 here; protocol hide-pet says 10",
        "evertune: train.flip is 0 here; protocol hide-pet says 0.5",
        "evertune: train.scale is [0.6, 1] here; protocol hide-pet says [0.08, 1]",
    ]


@pytest.mark.parametrize(("name", "prints", "weight"), [("pilot", "pilot", "sample"), ("hide", "hide-pet", "task")])
def test_the_report_ends_with_the_number_of_the_preset(
    runs: dict[str, tuple[Path, Result]], name: str, prints: str, weight: str
) -> None:
    matrix = AccuracyMatrix.from_json((runs[name][0] / "matrix.json").read_text())
    numbers = {kind: final_accuracy(*matrix.counts(), weight=kind) for kind in ("sample", "task")}
    assert abs(numbers["sample"] - numbers["task"]) > 0.05, "both averages agree here, so this test could not fail"
    last = runs[name][1].stdout.splitlines()[-1]
    assert last.startswith(f"protocol    as {prints} prints it: final accuracy {numbers[weight]:.2f}")


def test_the_same_command_resumes(runs: dict[str, tuple[Path, Result]], data: Path) -> None:
    jittered = ("--protocol", "hide_pet", "--order-seed", 7, "--crop-scale", 0.6, 1, "--no-flip")
    for name, options in (("pilot", ("--protocol", "pilot")), ("hide", jittered)):
        again = learned(data, runs[name][0], *options)
        assert again.exit_code == 0 and "this run was finished before" in again.stdout
    other = learned(data, runs["pilot"][0], "--protocol", "ranpac")
    assert other.exit_code == 2 and "holds a different run" in other.stderr


def test_show_of_a_run(runs: dict[str, tuple[Path, Result]]) -> None:
    folder = runs["pilot"][0]
    shown = works("protocol", "show", folder)
    assert shown.startswith(f"protocol {kept(runs, 'pilot', 'protocol.json')['hash']}\n")
    equals = next(line for line in shown.splitlines() if line.startswith("  equals "))
    assert equals == "  equals pilot, ranpac-photos, safe-photos, libcontinual"
    assert "  differs from ranpac, which says test.resize null (here 36)" in shown
    from_file = works("protocol", "show", folder / "protocol.json")
    assert from_file == shown


def test_show_of_a_protocol_alone_leaves_training_pixels_open(
    runs: dict[str, tuple[Path, Result]], tmp_path: Path
) -> None:
    shutil.copy(runs["pilot"][0] / "protocol.json", tmp_path / "copied.json")
    shown = works("protocol", "show", tmp_path / "copied.json")
    assert "train." not in shown and "equals pilot" in shown


def test_show_of_a_preset(runs: dict[str, tuple[Path, Result]]) -> None:
    shown = works("protocol", "show", "hide-pet")
    assert (
        shown.startswith("hide-pet: ") and "test.resize          256" in shown and PRESETS["hide-pet"].sources in shown
    )


def test_diff_of_two_runs(runs: dict[str, tuple[Path, Result]]) -> None:
    assert works("protocol", "diff", runs["plain"][0], runs["native"][0]) == "nothing differs\n"
    shown = works("protocol", "diff", runs["pilot"][0], runs["hide"][0])
    fields = [line.split()[0] for line in shown.splitlines()]
    assert fields[0] == "field" and fields[1:] == sorted(fields[1:])
    assert {"preprocessing.mean", "preprocessing.preprocessing", "seeds.order", "stream.classes"} <= set(fields)
    assert "views.test.resize" not in fields and "the same 6 in another order" in shown


def test_diff_with_a_preset_keeps_its_sides(runs: dict[str, tuple[Path, Result]]) -> None:
    lines = [line.split() for line in works("protocol", "diff", runs["pilot"][0], "ranpac").splitlines()]
    assert lines[1:] == [["test.resize", "36", "null"]]
    lines = [line.split() for line in works("protocol", "diff", "ranpac", runs["pilot"][0]).splitlines()]
    assert lines[1:] == [["test.resize", "null", "36"]]
    lines = [line.split() for line in works("protocol", "diff", "ranpac", "safe").splitlines()]
    assert lines[1:] == [["convention", "ranpac", "safe"], ["weight", "task", "sample"]]


def test_list_names_all() -> None:
    assert [line.split()[0] for line in works("protocol", "list").splitlines()] == ["name", *PRESETS]


def test_what_is_refused(runs: dict[str, tuple[Path, Result]], data: Path, tmp_path: Path) -> None:
    message = refused("run", "--data", data, "--protocol", "hidepet", "--out", tmp_path / "run")
    assert "No protocol is called 'hidepet'. Did you mean 'hide-pet'?" in message and not (tmp_path / "run").exists()
    assert "holds no protocol.json" in refused("protocol", "show", tmp_path)
    message = refused("protocol", "diff", "rnpac", "safe")
    assert "There is no run folder or file 'rnpac', and no protocol of that name. Did you mean 'ranpac'?" in message
    edited = tmp_path / "protocol.json"
    text = (runs["pilot"][0] / "protocol.json").read_text()
    edited.write_text(text.replace('"unit"', '"native"'))
    assert "it was edited or damaged" in refused("protocol", "show", edited)
    edited.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused("protocol", "show", edited)
    edited.write_text(text)
    (tmp_path / "config.json").write_text("[")
    assert "cannot be read" in refused("protocol", "show", edited)
