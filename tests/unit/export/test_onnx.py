"""ONNX models, opened by onnxruntime and given what their documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evertune
from evertune import ArraySource, Learner, Stream, TestView
from evertune.backbones import TimmViT
from evertune.errors import ExportError, StorageError
from evertune.export import export_onnx, onnx
from evertune.methods import METHODS

runtime = pytest.importorskip("onnxruntime")
Taught = Callable[..., Learner]
STATIC = sorted(name for name, method in METHODS.items() if not method.dynamic)
TUNINGS = ("adapter", "lora", "prefix", "prompt", "sequential_adapter", "ssf", "token_mixing", "vpt")
PHOTOS = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (20 + 9 * i, 41 - i, 3), dtype=np.uint8))
    for i in range(7)
]


def prepared(image: Image.Image, size: int) -> np.ndarray:
    """As :func:`export_onnx` tells its readers, [1, 3, S, S]."""
    pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255


def answers(file: Path, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    scores, probabilities = session.run(["scores", "probabilities"], {session.get_inputs()[0].name: inputs})
    return scores, probabilities


@pytest.fixture(scope="module")
def certain(taught: Taught) -> Learner:
    """So sure of itself that softmax gives zeros, which the logarithm in its entropy must not meet."""
    return taught("safe", scale=3000.0)


@pytest.fixture(scope="module")
def model(certain: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(certain, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_it_answers_photos_as_the_learner(certain: Learner, model: Path) -> None:
    for some in (PHOTOS[:1], PHOTOS):
        scores, probabilities = answers(model, np.concatenate([prepared(image, 32) for image in some]))
        ours = certain.scores(some).numpy()
        np.testing.assert_allclose(scores, ours, atol=1e-4 * abs(ours).max())
        assert (scores.argmax(1) == ours.argmax(1)).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (certain.predict_proba(PHOTOS) == 0).any()


def test_its_metadata_say_all_that_is_needed(certain: Learner, model: Path) -> None:
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert said["evertune"] == evertune.__version__ and said["method"] == "safe"
    assert tuple(json.loads(said["classes"])) == certain.classes
    assert json.loads(said["backbone"])["weights"] == certain.backbone.identity.weights
    steps = json.loads(said["preprocessing"])
    assert (steps["size"], steps["resize"], steps["interpolation"]) == (32, None, "bicubic")
    assert json.loads(said["temperature"]) == 1.0 and "task" not in said
    given = [(one.name, one.shape) for one in (*session.get_inputs(), *session.get_outputs())]
    expected = [("images", ["batch", 3, 32, 32]), ("scores", ["batch", 6]), ("probabilities", ["batch", 6])]
    assert given == expected


def test_weights_lie_in_it_once_and_nothing_of_this_machine(certain: Learner, model: Path) -> None:
    content = model.read_bytes()
    backbone = sum(weight.nbytes for weight in certain.backbone.parameters())
    own = sum(p.nbytes for p in certain.method.parameters())
    assert backbone < len(content) < backbone + own + 130_000  # nodes of two passes; a copy would be 380,000
    assert b"site-packages" not in content and str(Path(onnx.__file__).parent).encode() not in content
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_without_the_extra_it_says_what_to_install(
    certain: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("onnx", "no_such_module"))
    with pytest.raises(ExportError, match=r"needs no_such_module: pip install 'evertune\[export\]'"):
        export_onnx(certain, tmp_path / "model.onnx")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_traced(
    certain: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "trace", lambda graph: pytest.fail("traced"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "model.onnx", tmp_path / "folder"):
        with pytest.raises(StorageError, match="could not be written"):
            export_onnx(certain, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_torchs_reason_is_told_and_nothing_is_left(
    certain: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.onnx, "export", refuses)
    monkeypatch.setattr(onnx, "trace", lambda graph: graph)
    with pytest.raises(ExportError, match=r"safe cannot be translated to ONNX: RuntimeError: no such operator$"):
        export_onnx(certain, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", STATIC)
def test_every_static_method(method: str, taught: Taught, tmp_path: Path) -> None:
    require_equal(taught(method), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("tuning", TUNINGS)
def test_every_tuning(tuning: str, taught: Taught, tmp_path: Path) -> None:
    require_equal(taught("aper", tuning=tuning), tmp_path / "model.onnx")


@pytest.mark.slow
def test_ntk_cl_with_all_its_branches(taught: Taught, tmp_path: Path) -> None:
    require_equal(taught("ntk_cl", preset="released"), tmp_path / "model.onnx")


@pytest.mark.slow
def test_one_task_of_hide_pet(taught: Taught, tmp_path: Path) -> None:
    learner = taught("hide_pet")
    scores = require_equal(learner, tmp_path / "model.onnx", "task 2")
    assert np.isneginf(scores[:, :3]).all() and np.isfinite(scores[:, 3:]).all()
    said = runtime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert said["task"] == "task 2"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts(family: str, pooling: str, read: Taught, tmp_path: Path) -> None:
    learner = read("safe", family, pooling)
    file = export_onnx(learner, tmp_path / "model.onnx")
    for texts in (["w20"], ["w20 w31", "w44 " * 30, "w50 w61 w72 w33 w44"]):
        ids = learner.test_view.collate([learner.test_view(text, np.random.default_rng()) for text in texts])
        ours = learner.scores(texts).numpy()
        np.testing.assert_allclose(answers(file, ids.numpy())[0], ours, atol=1e-4 * abs(ours).max())
    said = runtime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(said["preprocessing"])["padding"] == learner.backbone.tokenizer.pad_token_id  # type: ignore[union-attr]


@pytest.mark.slow
def test_operator_sets(taught: Taught, tmp_path: Path) -> None:
    learner = taught("simple_cil")
    for opset in (18, 21):
        file = export_onnx(learner, tmp_path / "model.onnx", opset=opset)
        assert opset in [one.version for one in pytest.importorskip("onnx").load(file).opset_import]
    with pytest.raises(ExportError, match="operator set 5 cannot be served"):
        export_onnx(learner, tmp_path / "other.onnx", opset=5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_centre_crop_is_told(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path: Path) -> None:
    learner = Learner("simple_cil", tiny, device="cpu", progress=False, test_view=TestView(32, 40, "bilinear"))
    for task in Stream.class_incremental(*blobs, first=3, increment=3):
        learner.learn(task)
    file = export_onnx(learner, tmp_path / "model.onnx")
    steps = json.loads(runtime.InferenceSession(file).get_modelmeta().custom_metadata_map["preprocessing"])
    assert (steps["size"], steps["resize"], steps["interpolation"]) == (32, 40, "bilinear")


def require_equal(learner: Learner, file: Path, task: str | None = None) -> np.ndarray:
    scores, _ = answers(export_onnx(learner, file, task=task), np.concatenate([prepared(i, 32) for i in PHOTOS]))
    ours = learner.scores(PHOTOS, task).numpy()
    np.testing.assert_allclose(scores, ours, atol=1e-4 * abs(ours[np.isfinite(ours)]).max())
    assert (scores.argmax(1) == ours.argmax(1)).all()
    return scores
