"""The command line as a user meets it: real commands, small real data, and every message for bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
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

import evertune
from evertune.cli.app import app
from evertune.methods import METHODS
from evertune.tuning import TUNINGS, tuning_options

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30), "yellow": (230, 210, 40)}


def evertune_(*args: object) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def works(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    """The message of a command that is refused: one note on stderr, nothing on stdout, exit code 2."""
    result = evertune_(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("evertune: ") and "Traceback" not in result.stderr
    return result.stderr.split("evertune: ")[-1]  # before it there may be notes of what was left out


def images(colour: tuple[int, int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(-30, 31, (count, 16, 16, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def write_folder(root: Path, names: list[str], count: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(images(COLOURS[name], count, rng)):
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def arrays(train: int = 8, test: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    stack = lambda n: np.concatenate([images(c, n, rng) for c in COLOURS.values()])  # noqa: E731
    return {
        "x_train": stack(train),
        "y_train": np.repeat(np.arange(4), train),
        "x_test": stack(test),
        "y_test": np.repeat(np.arange(4), test),
        "classes": np.array(list(COLOURS)),
    }


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer with drawn weights, as a local file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colours, 8 training and 4 test images of each."""
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture
def tiny(weights: Path) -> list[object]:
    return ["--backbone", "test_vit", "--weights", weights, "--input-size", 32, "--device", "cpu"]


@pytest.fixture
def quick(data: Path, tiny: list[object]) -> list[object]:
    """The arguments of a run of two tasks that takes a moment."""
    return ["run", "--data", data, "--first", 2, "--increment", 2, *tiny, "--set", "epochs=1", "--set", "features=50"]


# -- what it is --------------------------------------------------------------------------------------------------------


def test_the_command_starts_without_a_framework() -> None:
    code = (
        "import sys\n"
        "from evertune.cli import app\n"
        "heavy = {'torch', 'timm', 'numpy', 'sklearn', 'matplotlib', 'accelerate', 'PIL'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_installed_command_says_its_version() -> None:
    command = Path(sys.executable).with_name("evertune")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"evertune {evertune.__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "evertune.cli", "-h"], capture_output=True, text=True, check=True)
    assert "Usage: evertune" in done.stdout


@pytest.mark.parametrize("command", ["demo", "run", "methods", "learn", "predict", "rollback", "prune", "diagnose"])
def test_every_help_ends_with_an_example_and_explains_every_option(command: str) -> None:
    text = works(command, "--help")
    assert f"\n    evertune {command}" in text.split("Example")[1]
    import typer.main

    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert all(getattr(parameter, "help", None) for parameter in parameters), command
    assert "(as --increment)" not in text


def test_without_a_command_the_help_is_shown() -> None:
    result = evertune_()
    assert "evertune demo" in result.output


# -- methods -----------------------------------------------------------------------------------------------------------


def test_methods_lists_all_with_their_presets() -> None:
    text = works("methods")
    for name, method in METHODS.items():
        assert f"\n{name}\n" in f"\n{text}"
        assert ", ".join(method.config_type.presets) in text


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_explains_every_option_preset_and_tuning(name: str) -> None:
    text = works("methods", name)
    flat = " ".join(text.split())
    config = METHODS[name].config_type
    rows = [row for row in config.explain() if row[0] != "tuning_options"]
    for option, _, explanation in rows:
        assert f"\n  {option} " in text
        assert explanation and explanation in flat
    for preset in config.presets:
        assert f"\n  {preset}" in text
    if any(option == "tuning" for option, _, _ in rows):
        for kind in TUNINGS:
            assert f"\n  {kind}: " in text
            assert all(f"tuning.{option}=" in text for option in tuning_options(kind))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_methods_shows_of_a_preset_can_be_set(name: str) -> None:
    config = METHODS[name].config_type
    from evertune.cli.explain import as_setting, flat_options

    for preset in config.presets:
        wanted = config.make(preset)
        assert config.make(None, **{key: as_setting(value) for key, value in flat_options(wanted).items()}) == wanted


# -- run ---------------------------------------------------------------------------------------------------------------


def test_a_run_prints_and_keeps_its_results(quick: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    text = works(*quick, "--out", folder)
    assert "safe (evertune) on test_vit at 32 px" in text
    assert "2 tasks, 4 classes, 32 training and 16 test images" in text
    order = [list(COLOURS)[i] for i in np.random.RandomState(1993).permutation(4)]
    for task, names in enumerate((order[:2], order[2:]), start=1):
        assert f"task {task} of 2 ({', '.join(names)}): accuracy so far" in text
    assert "(slow " in text and ", fast " in text
    assert "nearest mean on the frozen backbone" in text and "joint ridge on the frozen backbone" in text
    assert f"picture     {folder / 'accuracy.png'}" in text
    kept = {"config.json", "protocol.json", "matrix.json", "log.jsonl", "learner", "summary.json", "accuracy.png"}
    assert kept <= {path.name for path in folder.iterdir()}
    assert "protocol " + json.loads((folder / "protocol.json").read_text())["hash"] in text


def test_every_choice_reaches_the_run(quick: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    works(
        *quick, "--method", "ranpac", "--preset", "paper", "--set", "tuning=lora", "--set", "tuning.rank=3",
        "--batch", 7, "--seed", 5, "--order-seed", 4, "--train-per-class", 6, "--preprocessing", "unit",
        "--crop-scale", 0.5, 0.9, "--no-flip", "--test-resize", 40, "--precision", "bf16", "--eval-batch", 5,
        "--no-references", "--quiet", "--out", folder,
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    fields = json.loads((folder / "protocol.json").read_text())["fields"]
    assert (config["method"], config["preset"], config["precision"]) == ("ranpac", "paper", "bf16")
    assert config["options"]["tuning"] == "lora" and config["options"]["tuning_options"]["rank"] == 3
    assert config["options"]["batch_size"] == 7 and config["options"]["epochs"] == 1
    assert config["seeds"] == {"init": 5, "augmentation": 5, "sampling": 5}
    assert config["train_view"]["scale"] == [0.5, 0.9] and config["train_view"]["flip"] == 0
    assert fields["views"]["test"]["resize"] == 40
    assert fields["preprocessing"]["preprocessing"] == "unit" and fields["preprocessing"]["input_size"] == 32
    assert fields["stream"]["order_seed"] == 4 and fields["stream"]["train_per_class"] == 6
    assert json.loads((folder / "summary.json").read_text())["references"] == {}


def test_quiet_prints_the_results_alone(quick: list[object], tmp_path: Path) -> None:
    text = works(*quick, "--quiet", "--out", tmp_path / "run")
    assert "task 1 of 2" not in text and "final accuracy" in text


def test_the_default_folder_is_named_after_method_and_data(
    data: Path, tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    works("run", "--data", data, "--method", "simple_cil", *tiny, "--quiet", "--no-references")
    assert (tmp_path / "runs/simple_cil-colours/config.json").exists()


def test_domains_arrive_in_the_order_of_the_data(tiny: list[object], tmp_path: Path) -> None:
    root = tmp_path / "rooms"
    for seed, domain in enumerate(("day", "night")):
        write_folder(root / "train" / domain, ["blue", "red"], 4, seed)
        write_folder(root / "test" / domain, ["blue", "red"], 2, seed + 5)
    text = works(
        "run", "-m", "simple_cil", "--data", root, "--kind", "domain", "--domain-level", *tiny, "-o", tmp_path / "run"
    )
    assert "task 1 of 2 (day: 2 classes)" in text and "task 2 of 2 (night: 2 classes)" in text


def test_a_bad_image_is_named_and_skip_bad_drops_and_lists_it(tiny: list[object], tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos", ["blue", "red"], 6)
    (root / "red" / "broken.png").write_bytes(b"no image at all")
    command = ["run", "-m", "simple_cil", "--data", root, *tiny, "--out", tmp_path / "run"]
    assert "broken.png" in refused(*command)
    result = evertune_(*command, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "left out" in result.stderr and "broken.png" in result.stderr


def test_a_class_with_one_image_is_a_note_not_a_python_warning(tiny: list[object], tmp_path: Path) -> None:
    few = arrays()
    keep = np.r_[0:8, 8:16, 16:24, 24]
    few["x_train"], few["y_train"] = few["x_train"][keep], few["y_train"][keep]
    np.savez(tmp_path / "few.npz", **few)
    result = evertune_("run", "-m", "simple_cil", "--data", tmp_path / "few.npz", *tiny, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "a single training image (yellow)" in result.stderr and "UserWarning" not in result.stderr


# -- stopping and going on ---------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(quick: list[object], tmp_path: Path) -> None:
    """A real interrupt of a real process, while it learns the second task."""
    args = [*quick, "--set", "follow_epochs=600", "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "evertune.cli", *map(str, args)]
    process = subprocess.Popen(  # a suite started in the background hands on that interrupts are ignored
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("task 1 of 2"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == (
        f"evertune: stopped. The same command goes on after the last finished task, as kept in {tmp_path / 'run'}."
    )
    assert "Traceback" not in errors
    text = works(*args)
    assert "going on after task 1 of 2" in text and "task 2 of 2" in text


def test_a_stopped_run_goes_on_to_the_same_numbers(
    quick: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(*quick, "--out", tmp_path / "whole")
    learn = evertune.Learner.learn

    def stops(self: evertune.Learner, *args: Any, **options: Any) -> Any:
        if self.history:
            raise KeyboardInterrupt
        return learn(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evertune.Learner, "learn", stops)
        result = evertune_(*quick, "--out", tmp_path / "stopped")
    assert result.exit_code == 130 and "task 1 of 2" in result.stdout
    text = works(*quick, "--out", tmp_path / "stopped")
    assert "going on after task 1 of 2" in text and "task 2 of 2" in text and "task 1 of 2 (" not in text
    matrices = [json.loads((tmp_path / name / "matrix.json").read_text()) for name in ("whole", "stopped")]
    assert matrices[0] == matrices[1]
    assert "nothing was learned again" in works(*quick, "--out", tmp_path / "stopped")


def test_a_run_folder_with_a_different_run_is_refused(quick: list[object], tmp_path: Path) -> None:
    works(*quick, "--out", tmp_path / "run", "--quiet", "--no-references")
    message = refused(*quick, "--out", tmp_path / "run", "--seed", 1, "--quiet")
    assert "different run" in message and "seeds.init: 0 there, 1 here" in message


def test_a_folder_of_other_files_is_no_run_folder(quick: list[object], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files" in refused(*quick, "--out", tmp_path, "--quiet")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--method", "ranpack"], ["ranpack", "Did you mean 'ranpac'?"]),
        (["--preset", "papper"], ["papper", "Did you mean 'paper'?"]),
        (["--set", "ratte=1"], ["safe has no option 'ratte'", "Did you mean 'rate'?", "evertune methods safe"]),
        (["--set", "preset=paper"], ["no option 'preset'"]),
        (["--set", "rate"], ["--set rate sets nothing", "KEY=VALUE"]),
        (["--set", "rate=fast"], ["rate='fast' is not a float"]),
        (["--set", "rate=1", "--set", "rate=2"], ["rate is set twice"]),
        (["--set", "tuning=lorra"], ["lorra", "Did you mean 'lora'?"]),
        (["--set", "tuning.rnk=2"], ["rnk", "Did you mean 'rank'?"]),
        (["--set", "optimizer=adm"], ["adm", "Did you mean 'adam'?"]),
        (["--backbone", "vit_tinny_patch16_224"], ["vit_tinny_patch16_224", "Did you mean 'vit_tiny_patch16_224'?"]),
        (["--backbone", "embedded"], ["brings its own weights"]),
        (["--backbone", "resnet18"], ["resnet18"]),
        (["--preprocessing", "mnist"], ["mnist", "native"]),
        (["--weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--device", "abacus"], ["abacus"]),
        (["--precision", "fp8"], ["fp8", "bf16"]),
        (["--data", "nowhere/photos"], ["photos does not exist"]),
        (["--data", "digitss"], ["Did you mean 'digits'?"]),
        (["--first", 99], ["first is 99", "1 to 4"]),
        (["--increment", 0], ["increment is 0"]),
        (["--order-seed", "x"], ["--order-seed x"]),
        (["--kind", "task"], ["--kind task does not exist", "class, data, domain"]),
        (["--kind", "domain"], ["--first, --increment means nothing"]),
        (["--crop-scale", 0, 1], ["scale is (0.0, 1.0)"]),
        (["--test-resize", 8], ["resize is 8"]),
        (["--input-size", 33], ["33"]),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    quick: list[object], tmp_path: Path, args: list[object], parts: list[str]
) -> None:
    message = refused(*quick, *args, "--quiet", "--out", tmp_path / "run")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo ran > ran.txt",)


def test_weights_that_are_damaged_or_unsafe_are_refused(
    quick: list[object], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    assert "cut.safetensors" in refused(*quick, "--weights", "cut.safetensors")
    Path("evil.pth").write_bytes(pickle.dumps({"w": Evil()}))
    refused(*quick, "--weights", "evil.pth")
    assert not Path("ran.txt").exists()
    save_file({"w": torch.zeros(3)}, "other.safetensors")
    assert "does not hold the weights of test_vit" in refused(*quick, "--weights", "other.safetensors")


def change_nan(a: dict[str, np.ndarray]) -> None:
    a["x_train"] = a["x_train"].astype(np.float32)
    a["x_train"][3, 0, 0, 0] = np.nan


def change_unseen(a: dict[str, np.ndarray]) -> None:
    keep = a["y_train"] != 2
    a["x_train"], a["y_train"] = a["x_train"][keep], a["y_train"][keep]


def change_one_class(a: dict[str, np.ndarray]) -> None:
    for part in ("train", "test"):
        keep = a[f"y_{part}"] == 0
        a[f"x_{part}"], a[f"y_{part}"] = a[f"x_{part}"][keep], a[f"y_{part}"][keep]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (change_nan, ["row 3", "NaN"]),
        (change_unseen, ["training never saw", "red"]),
        (change_one_class, ["one class, 'blue'"]),
        (lambda a: a.pop("y_test"), ["y_test"]),
    ],
)
def test_impossible_arrays_are_refused(
    tiny: list[object], tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], parts: list[str]
) -> None:
    content = arrays()
    change(content)
    np.savez(tmp_path / "bad.npz", **content)
    message = refused("run", "--data", tmp_path / "bad.npz", *tiny, "--out", tmp_path / "run")
    assert all(part in message for part in parts), message


def test_an_empty_folder_holds_no_data(tiny: list[object], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("run", "--data", tmp_path / "empty", *tiny, "--out", tmp_path / "run")


def test_a_missing_option_is_a_usage_error() -> None:
    result = evertune_("run")
    assert result.exit_code == 2 and "--data" in result.stderr


def test_our_own_mistakes_keep_their_traceback(quick: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("evertune.cli.options.new_learner", broken)
    assert isinstance(evertune_(*quick).exception, ZeroDivisionError)


# -- learn and predict -------------------------------------------------------------------------------------------------


def test_a_learner_is_taught_task_after_task_and_predicts(weights: Path, tiny: list[object], tmp_path: Path) -> None:
    monday = write_folder(tmp_path / "monday", ["blue", "red"], 6)
    tuesday = tmp_path / "tuesday"
    write_folder(tuesday / "train", ["green"], 6)
    write_folder(tuesday / "test", ["green"], 3, seed=1)
    kept = tmp_path / "kept"

    text = works("learn", kept, "--data", monday, "--method", "simple_cil", *tiny)
    assert "learned task 1 from 12 images (new: blue, red)" in text
    text = works("learn", kept, "--data", tuesday, "--weights", weights)
    assert "learned task 2 from 6 images (new: green)" in text
    assert "on its test images, among all classes known: 100.00 % (3 of 3)" in text
    assert "knows 3 classes: blue, red, green" in text

    pictures = [monday / "blue/0.png", tuesday / "test/green/1.png", monday / "red/2.png"]
    header, *lines = works("predict", kept, *pictures, "--weights", weights).splitlines()
    assert header.split() == ["input", "label", "confidence"]
    assert [line.split()[:2] for line in lines] == [
        [str(path), name] for path, name in zip(pictures, ("blue", "green", "red"), strict=True)
    ]
    told = works("predict", kept, pictures[0], "-w", weights, "--task", "tuesday").splitlines()[1].split()
    assert told[1:] == ["green", "1.0000", "tuesday"]  # the only class of that task
    assert "No task is called" in refused("predict", kept, pictures[0], "-w", weights, "--task", "may")

    night = write_folder(tmp_path / "night", ["blue", "red"], 3, seed=9)
    assert "no new class" in refused("learn", kept, "--data", night, "-w", weights, "--kind", "class")
    assert "no new class" in works("learn", kept, "--data", night, "-w", weights, "--kind", "domain")


def test_a_learner_learns_from_arrays(tiny: list[object], data: Path, tmp_path: Path) -> None:
    text = works("learn", tmp_path / "kept", "--data", data, "-m", "simple_cil", *tiny)
    assert "new: blue, green, red, yellow" in text and "16)" in text


def test_a_run_folder_predicts_but_is_not_taught(quick: list[object], weights: Path, tmp_path: Path) -> None:
    works(*quick, "--out", tmp_path / "run", "--quiet", "--no-references")
    photo = write_folder(tmp_path / "photos", ["blue"], 1) / "blue" / "0.png"
    assert works("predict", tmp_path / "run", photo, "-w", weights).splitlines()[1].startswith(f"{photo}  ")
    message = refused("learn", tmp_path / "run", "--data", photo.parent.parent, "-w", weights)
    assert "is a run folder" in message


def test_what_a_learner_is_cannot_be_changed_later(tiny: list[object], weights: Path, tmp_path: Path) -> None:
    monday = write_folder(tmp_path / "monday", ["blue", "red"], 3)
    works("learn", tmp_path / "kept", "--data", monday, "-m", "simple_cil", *tiny)
    message = refused("learn", tmp_path / "kept", "--data", monday, "-m", "safe", "--seed", 2, "-w", weights)
    assert "--method is simple_cil there, not safe; --seed is 0 there, not 2" in message


def test_a_failed_lesson_leaves_the_learner_as_it_was(tiny: list[object], weights: Path, tmp_path: Path) -> None:
    works("learn", tmp_path / "kept", "--data", write_folder(tmp_path / "a", ["blue", "red"], 3), "-m", "ranpac",
          "--set", "epochs=1", "--set", "features=50", *tiny)  # fmt: skip
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    bad = write_folder(tmp_path / "b", ["green"], 3)
    (bad / "green/9.png").write_bytes(b"")
    assert "9.png" in refused("learn", tmp_path / "kept", "--data", bad, "-w", weights)
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before


@pytest.mark.parametrize(("command", "extra"), [("learn", ["--data", "."]), ("predict", ["a.png"])])
def test_a_folder_without_a_learner_is_refused(
    command: str, extra: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert "mine" in refused(command, "mine", *extra)


def test_an_unreadable_image_is_named(tiny: list[object], weights: Path, tmp_path: Path) -> None:
    works(
        "learn",
        tmp_path / "kept",
        "--data",
        write_folder(tmp_path / "a", ["blue", "red"], 3),
        "-m",
        "simple_cil",
        *tiny,
    )
    assert "gone.png" in refused("predict", tmp_path / "kept", tmp_path / "gone.png", "-w", weights)


# -- diagnose ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def learned(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks, with the data beside it."""
    home = tmp_path_factory.mktemp("learned")
    shutil.copy(data, home / "colours.npz")
    tiny = ["--backbone", "test_vit", "--weights", weights, "--input-size", 32, "--device", "cpu"]
    works(
        "run", "--data", home / "colours.npz", "--first", 2, "--increment", 2, "--train-per-class", 6, *tiny,
        "--method", "ranpac", "--set", "epochs=1", "--set", "features=50", "--quiet", "--no-references",
        "--out", home / "run",
    )  # fmt: skip
    return home / "run"


def test_a_run_is_diagnosed(learned: Path, weights: Path, tmp_path: Path) -> None:
    asked = ["diagnose", learned, "--weights", weights, "--device", "cpu", "--per-task", 8, "--outputs", 3]
    text = works(*asked)
    home = learned / "diagnosis"
    assert "ranpac (evertune) on test_vit" in text
    assert "tangent kernel of 16 train images × 3 outputs under" in text and ", exact" in text
    assert [line.split()[:3] for line in text.splitlines() if line.startswith("task ")][1:] == [
        ["task", "1", "8"],
        ["task", "2", "8"],
    ]
    assert f"picture     {home / 'kernel.png'}" in text and (home / "kernel.png").stat().st_size > 10_000
    numbers = json.loads((home / "diagnosis.json").read_text())
    assert len(numbers["gaps"]["tasks"]) == 2 and numbers["overlap"][0][0] == 1
    found = evertune.Diagnosis.load(home)
    assert found.kernel.matrix.shape == (48, 48) and found.kernel.names == ("task 1", "task 2")

    again = works(*asked, "--split", "test", "--sketch", 64, "--seed", 3, "--out", tmp_path / "sketch")
    assert "16 test images" in again and "sketched in 64 dimensions, error " in again
    assert evertune.Diagnosis.load(tmp_path / "sketch").kernel.error is not None


def test_two_runs_are_drawn_side_by_side(learned: Path, weights: Path, tmp_path: Path) -> None:
    text = works("diagnose", learned, "--against", learned, "--weights", weights, "--per-task", 4, "--out", tmp_path)
    assert text.count("tangent kernel of 8 train images × 4 outputs") == 2
    assert "task by task: centred alignment 1.00, 1.00; kernel drift 0.00, 0.00" in text
    assert (tmp_path / "kernel.png").exists() and (tmp_path / "against/kernel.safetensors").exists()


def test_fewer_images_than_asked_for_are_told(learned: Path, weights: Path, tmp_path: Path) -> None:
    result = evertune_("diagnose", learned, "--weights", weights, "--per-task", 100, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "evertune: task 1 has 12 train images, fewer than 100: all are used" in result.stderr


def test_what_cannot_be_diagnosed_is_refused(
    learned: Path, weights: Path, data: Path, quick: list[object], tmp_path: Path
) -> None:
    asked = ["diagnose", learned, "--weights", weights, "--out", tmp_path / "out"]
    assert "holds no run that has learned a task" in refused("diagnose", tmp_path)
    assert "holds no run that has learned a task" in refused("diagnose", learned / "learner")
    assert f"{tmp_path} holds no run" in refused(*asked, "--against", tmp_path)
    assert "takes at least 4" in refused(*asked, "--sketch", 0)
    assert "more than the limit of 1.0 MiB: " in refused(*asked, "--memory", 1 / 1024)
    assert "split 'validation' does not exist" in refused(*asked, "--split", "validation")
    assert "per_task=0 must be at least 1" in refused(*asked, "--per-task", 0)
    assert "outputs=0 must be at least 1" in refused(*asked, "--outputs", 0)

    other = arrays(train=7)
    np.savez(tmp_path / "other.npz", **other)
    assert "is not the data that the run" in refused(*asked, "--data", tmp_path / "other.npz")
    np.savez(tmp_path / "renamed.npz", **{**other, "classes": np.array(["a", "b", "c", "d"])})
    assert "is not the data that the run" in refused(*asked, "--data", tmp_path / "renamed.npz")
    moved = tmp_path / "moved"
    shutil.copytree(learned, moved)
    (moved / "data.json").unlink()
    assert "does not say where its data is" in refused("diagnose", moved, "--weights", weights)
    works("diagnose", moved, "--data", data, "--weights", weights, "--per-task", 2)

    plain = tmp_path / "plain"
    works("run", "--data", data, "--method", "simple_cil", *quick[7:-4], "--quiet", "--no-references", "--out", plain)
    assert "simple_cil has no trained tuning parameters" in refused("diagnose", plain, "--weights", weights)


def test_a_run_of_domains_is_diagnosed_from_anywhere(
    tiny: list[object], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, domain in enumerate(("day", "night")):
        write_folder(tmp_path / "rooms/train" / domain, ["blue", "red"], 4, seed)
        write_folder(tmp_path / "rooms/test" / domain, ["blue", "red"], 2, seed)
    monkeypatch.chdir(tmp_path)
    works(
        "run", "--data", "rooms", "--kind", "domain", "--domain-level", "--method", "aper", "--set", "epochs=1", *tiny,
        "--order-seed", 1, "--quiet", "--no-references", "--out", "run",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "rooms")
    text = works("diagnose", tmp_path / "run", "--weights", weights, "--per-task", 4)
    order = [["day", "night"][i] for i in np.random.RandomState(1).permutation(2)]
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("day", "night"))] == order


# -- demo --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with four training and two test images per digit."""

    def few(name: str) -> tuple[Any, Any]:
        return tuple(
            part.select(np.sort(np.concatenate([part.rows_of([c])[:n] for c in part.classes])))
            for part, n in zip(evertune.open_data(name), (4, 2), strict=True)
        )  # type: ignore[return-value]

    monkeypatch.setattr("evertune.cli.demo.open_data", few)


@pytest.mark.slow
def test_the_demo_works_twice_in_a_row(few_digits: None, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = works("demo", "--out", folder, "--device", "cpu")
    for t in range(5):
        assert f"task {t + 1} of 5 ({2 * t}, {2 * t + 1}): accuracy so far" in first
    assert "nearest mean on the frozen backbone" in first and "joint ridge" in first and "time " in first
    assert f"picture     {folder / 'accuracy.png'}" in first and (folder / "accuracy.png").stat().st_size > 10_000
    second = works("demo", "--out", folder, "--device", "cpu")
    assert f"replacing the earlier demo in {folder}" in second and "task 1 of 5" in second


def test_the_demo_starts_afresh_after_a_stop(few_digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("evertune.learner.Learner.evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        result = evertune_("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 130 and "the next demo starts afresh" in result.stderr
    assert "replacing" in works("demo", "--out", tmp_path / "demo")


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.json"], ["demo.txt", "config.json", "thesis.tex"]])
def test_the_demo_replaces_nothing_but_a_demo(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    assert "left alone" in refused("demo", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_the_demo_takes_no_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused("demo", "--out", tmp_path / "file")


@pytest.mark.slow
def test_the_whole_demo_forgets_nothing(tmp_path: Path) -> None:
    works("demo", "--out", tmp_path / "demo", "--quiet")
    numbers = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert numbers["summary"]["mixture"]["final_accuracy_sample"] >= 95
    assert numbers["references"]["nearest mean"] >= 85 and numbers["references"]["joint ridge"] >= 95
