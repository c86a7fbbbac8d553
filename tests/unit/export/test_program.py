"""Programs of torch.export, loaded by torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evertune import Learner
from evertune.errors import ExportError, StorageError
from evertune.export import export_program, tracing

Taught = Callable[..., Learner]
PIXELS = np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_it_answers_as_the_learner_and_says_what_it_is(
    taught: Taught, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learner = taught("aper")
    file = export_program(learner, tmp_path / "new" / "model.pt2")
    assert capfd.readouterr() == ("", "")
    found = {"evertune.json": ""}
    module = torch.export.load(file, extra_files=found).module()
    said = json.loads(found["evertune.json"])
    assert tuple(json.loads(said["classes"])) == learner.classes
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    for batch in (1, 5):
        answered = module(images[:batch])
        torch.testing.assert_close(answered["scores"], learner.scores(PIXELS[:batch]), rtol=1e-5, atol=1e-5)
        assert not answered["scores"].requires_grad
    assert [path.name for path in file.parent.iterdir()] == ["model.pt2"]
    assert b"site-packages" not in file.read_bytes()


@pytest.mark.slow
def test_it_needs_no_evertune(taught: Taught, tmp_path: Path) -> None:
    learner = taught("simple_cil")
    export_program(learner, tmp_path / "model.pt2")
    np.save(tmp_path / "images.npy", PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    code = (
        "import sys, numpy, torch; sys.modules['evertune'] = sys.modules['timm'] = None\n"
        "program = torch.export.load(sys.argv[1] + '/model.pt2').module()\n"
        "scores = program(torch.from_numpy(numpy.load(sys.argv[1] + '/images.npy')))['scores']\n"
        "numpy.save(sys.argv[1] + '/scores.npy', scores.numpy())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), learner.scores(PIXELS), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_texts_of_any_length(read: Taught, tmp_path: Path) -> None:
    learner = read("simple_cil")
    module = torch.export.load(export_program(learner, tmp_path / "model.pt2")).module()
    for text in ("w20", "w31 " * 30):
        ids = learner.test_view.collate([learner.test_view(text, np.random.default_rng())])
        torch.testing.assert_close(module(ids)["scores"], learner.scores([text]), rtol=1e-5, atol=1e-5)


def test_what_differs_from_the_library_is_not_kept(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt2"
    file.write_text("before")
    monkeypatch.setattr(tracing, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from the library by .* in a batch of 1"):
        export_program(taught("simple_cil"), file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_another_shape_or_a_lost_infinity_is_a_difference(taught: Taught) -> None:
    learner = taught("simple_cil")
    for wrong in (torch.zeros(1, 5), torch.full((1, 6), torch.nan)):
        with pytest.raises(ExportError, match="other scores than the library"):
            tracing.check(learner, None, lambda inputs, wrong=wrong: {"scores": wrong})


def test_the_disk_is_full(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        export_program(taught("simple_cil"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_told(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = taught("simple_cil")
    scores = type(learner.method).scores

    def decides(self: object, passes: object) -> dict[str, torch.Tensor]:
        found = scores(self, passes)  # type: ignore[arg-type]
        return found if found["prototypes"].sum() > 0 else {"other": -found["prototypes"]}

    monkeypatch.setattr(type(learner.method), "scores", decides)
    with pytest.raises(ExportError, match=r"simple_cil on tiny cannot be traced: .*data-dependent"):
        export_program(learner, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(taught: Taught, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ending \.pt2"):
        export_program(taught("simple_cil"), tmp_path / "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["safe", "ntk_cl", "ranpac", "finetune"])
def test_every_static_method(method: str, taught: Taught, tmp_path: Path) -> None:
    export_program(taught(method), tmp_path / "model.pt2")  # compared with the library on the way


@pytest.mark.slow
def test_one_task_of_hide_pet(taught: Taught, tmp_path: Path) -> None:
    learner = taught("hide_pet")
    module = torch.export.load(export_program(learner, tmp_path / "model.pt2", task=0)).module()
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(module(images)["scores"], learner.scores(PIXELS, 0), rtol=1e-5, atol=1e-5)
