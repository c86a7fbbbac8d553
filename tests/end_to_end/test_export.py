"""``evertune export`` as a user meets it: a learner on weights of a local file, in each format, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

from evertune import ArraySource, Learner, Task, load_backbone
from evertune.cli.app import app


def export(*args: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, args)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def kept(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear fine-tuning of a LoRA: it can leave in every format."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["dark", "light"], 6)
    pixels = rng.integers(0, 100, (12, 16, 16, 3)) + 120 * (labels == "light")[:, None, None, None]
    backbone = load_backbone("test_vit", weights=weights, input_size=32)
    learner = Learner("finetune", backbone, device="cpu", progress=False, epochs=2)
    learner.learn(Task(0, "grey", ArraySource(pixels.astype(np.uint8), labels)))
    folder = tmp_path_factory.mktemp("kept") / "grey"
    learner.save(folder)
    return folder


def test_an_adapter(kept: Path, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    done = export(kept, "--to", "peft", "--out", tmp_path / "adapter", "--task", "grey", "--weights", weights)
    assert done.exit_code == 0 and "an adapter of rank 15" in done.stdout
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md"
    }  # fmt: skip


def test_merged_weights_and_the_line_that_loads_them(kept: Path, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    done = export(kept, "--to", "timm", "--out", file, "--weights", weights)
    assert done.exit_code == 0 and "with a head of 2 classes" in done.stdout
    line = done.stdout.splitlines()[-1]
    model = eval(line, {"timm": timm})
    assert model.head.weight.shape == (2, 64) and line.endswith(f"checkpoint_path={str(file)!r})")


def test_a_card_needs_no_backbone(kept: Path, tmp_path: Path) -> None:
    done = export(kept, "--to", "card", "--out", tmp_path / "README.md", "--license", "apache-2.0")
    assert done.exit_code == 0
    text = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in text and "dark; light" in text and "| 1 | grey | class | 2 | 12 | 20" in text


@pytest.mark.parametrize("to", ["onnx", "program"])
def test_a_graph_is_made_of_the_task_asked_for(
    kept: Path, weights: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def written(learner: Learner, file: Path, *, task: str | None) -> Path:
        asked.extend([learner.classes, file, task])
        return file

    monkeypatch.setattr(f"evertune.export.export_{to}", written)
    done = export(kept, "--to", to, "--out", tmp_path / "grey", "--task", "grey", "--weights", weights)
    assert done.exit_code == 0 and "scores and probabilities of 2 classes" in done.stdout
    assert asked == [("dark", "light"), tmp_path / "grey", "grey"]


@pytest.mark.slow
def test_a_program(kept: Path, weights: Path, tmp_path: Path) -> None:
    done = export(kept, "--to", "program", "--out", tmp_path / "grey.pt2", "--weights", weights)
    assert done.exit_code == 0 and "scores and probabilities of 2 classes" in done.stdout
    module = torch.export.load(tmp_path / "grey.pt2").module()
    assert module(torch.rand(3, 3, 32, 32))["probabilities"].shape == (3, 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--to", "onyx"), "--to onyx does not exist. Did you mean 'onnx'?"),
        (("--to", "timm", "--task", "grey"), "--task means nothing to --to timm"),
        (("--to", "peft", "--license", "mit"), "--license means nothing to --to peft"),
        (("--to", "card", "--license", "a\nb"), "is not what the hub calls a license"),
    ],
)
def test_what_does_not_fit_is_refused(kept: Path, args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = export(kept, *args, "--out", tmp_path / "out")
    assert done.exit_code == 2 and said in done.stderr and not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_learner_that_cannot_leave_so_is_told_why(tmp_path: Path) -> None:
    learner = Learner("simple_cil", device="cpu", progress=False)
    learner.learn(Task(0, "one", ArraySource(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])))
    learner.save(tmp_path / "kept")
    for to in ("peft", "timm"):
        done = export(tmp_path / "kept", "--to", to, "--out", tmp_path / "out")
        assert done.exit_code == 2 and "answers from the plain model" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
