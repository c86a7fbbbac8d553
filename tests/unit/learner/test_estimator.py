"""A learner where scikit-learn expects an estimator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from evertune import Learner, Stream
from evertune.backbones import TimmViT
from evertune.errors import ConfigError, DataError, StreamError
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


@pytest.fixture
def learner(tiny: TimmViT) -> Learner:
    return Learner("simple_cil", tiny, device="cpu", progress=False)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Noise in three colours, the numbers 0 to 2, in turn."""
    colours = np.array([[220, 40, 30], [40, 200, 60], [30, 60, 220]])
    labels = np.arange(36) % 3
    noise = np.random.default_rng(0).integers(-30, 31, (36, 16, 16, 3))
    return (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


# -- learning ----------------------------------------------------------------------------------------------------------


def test_tasks_arrive_as_arrays(learner: Learner, tiny: TimmViT, blobs: Data) -> None:
    train, test = blobs
    names = np.array(train.classes)[train.labels]
    for part in (train.labels < 3, train.labels >= 3):
        assert learner.partial_fit(np.asarray(train.x)[part], names[part]) is learner
    other = Learner("simple_cil", tiny, device="cpu", progress=False)
    for task in Stream.class_incremental(*blobs, first=3, increment=3, order_seed=None):
        other.learn(task)
    assert np.array_equal(learner.scores(test), other.scores(test))
    assert learner.classes == other.classes == tuple(learner.classes_)
    told = [(entry["task"], entry["kind"], entry["examples"]) for entry in learner.history]
    assert told == [("task 1", "class", 36), ("task 2", "class", 36)]
    right, total = next(iter(other.evaluate(test).values()))
    assert learner.score(np.asarray(test.x), np.array(test.classes)[test.labels]) == right / total


def test_known_classes_may_come_again(learner: Learner, arrays: Any) -> None:
    x, y = arrays
    learner.partial_fit(x[:12], y[:12]).partial_fit(x[12:], np.where(y[12:] == 0, 7, y[12:]), name="more")
    assert [(entry["task"], entry["kind"]) for entry in learner.history] == [("task 1", "class"), ("more", "mixed")]
    assert learner.classes == ("0", "1", "2", "7")
    with pytest.raises(StreamError, match="no new class"):
        learner.partial_fit(x, y, kind="class")


def test_files_and_pictures_are_learned_from(learner: Learner, arrays: Any, tmp_path: Path) -> None:
    x, y = arrays
    pictures = [Image.fromarray(pixels) for pixels in x]
    paths = [tmp_path / f"{i}.png" for i in range(len(x))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    expected = clone(learner).fit(x, y).scores(x)
    for given in (pictures, paths, np.array(list(map(str, paths)))):
        assert np.array_equal(clone(learner).fit(given, y).scores(given), expected)


def test_texts_are_learned_from(encoder: Any) -> None:
    texts = ["w10 w11", "w40 w41", "w10 w12", "w40 w42 w43"]
    me = Learner("simple_cil", encoder(), device="cpu", progress=False).fit(np.array(texts), ["a", "b", "a", "b"])
    assert me.score(texts, ["a", "b", "a", "b"]) == 1.0


def test_fit_starts_anew(learner: Learner, arrays: Any) -> None:
    x, y = arrays
    learner.partial_fit(x, y).partial_fit(x, y + 3)
    learner.calibrate(ArraySource(x, y))
    before = learner.scores(x)
    with pytest.raises(StreamError, match="nothing to tell apart"):
        learner.fit(x[:2], ["one", "one"])
    assert np.array_equal(learner.scores(x), before)  # what fails changes nothing
    learner.fit(x, y)
    assert learner.classes == ("0", "1", "2") and len(learner.history) == 1 and learner.temperature is None
    assert np.array_equal(learner.scores(x), clone(learner).partial_fit(x, y).scores(x))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "36 images and 2 labels"),
        ("zero", "36 images and 1 labels"),
        (["a"] * 35 + [None], "row 35 is missing"),
        ([0.0] * 35 + [float("nan")], "row 35 is missing"),
        (["a", "", *["b"] * 34], "row 1 is missing"),
        (np.linspace(0, 1, 36), "one whole number per row"),
        ([-1, *range(35)], "negative"),
        (["a", 1, *["b"] * 34], "mix names and numbers"),
        (np.zeros((36, 2), int), "must be one name"),
    ],
)
def test_labels_that_are_none(learner: Learner, arrays: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learner.partial_fit(arrays[0], labels)
    assert not learner.history


def test_a_source_has_labels_of_its_own(learner: Learner, blobs: Data) -> None:
    with pytest.raises(DataError, match="labels of its own"):
        learner.partial_fit(blobs[0], blobs[0].labels)


def test_a_class_never_learned_is_answered_wrongly(learner: Learner, arrays: Any) -> None:
    x, y = arrays
    learner.fit(x, y)
    assert learner.score(x[:4], [9, 9, 9, 9]) == 0
    assert learner.score(x, y) > 0.8


# -- what scikit-learn asks --------------------------------------------------------------------------------------------


def test_it_stands_in_a_pipeline(learner: Learner, arrays: Any) -> None:
    x, y = arrays
    pipe = make_pipeline(FunctionTransformer(lambda images: 255 - images), learner)
    assert isinstance(pipe, Pipeline) and "Learner simple_cil" in repr(pipe)
    with pytest.raises(NotFittedError):
        check_is_fitted(pipe)
    pipe.fit(x, y)
    check_is_fitted(pipe)
    assert pipe.predict(x) == learner.predict(255 - x) and pipe.classes_.tolist() == ["0", "1", "2"]
    assert pipe.score(x, y) == learner.score(255 - x, y) > 0.8
    assert pipe.predict_proba(x).shape == (len(x), 3)
    assert clone(pipe).set_params(learner__eval_batch=4)[-1].engine.feed.eval_batch == 4


def test_it_is_cross_validated(learner: Learner, arrays: Any) -> None:
    x, y = arrays
    folds = cross_val_score(learner, x, y, cv=3, error_score="raise")
    assert len(folds) == 3 and folds.mean() > 0.8 and not learner.history
    shares = cross_val_predict(learner, x, y, cv=3, method="predict_proba")
    assert (shares.argmax(1) == y).mean() == pytest.approx(folds.mean())
    found = GridSearchCV(learner, {"method": ["simple_cil", "finetune"], "seeds": [1]}, cv=2, error_score="raise")
    assert found.fit(x, y).best_estimator_.seeds.init == 1


def test_a_clone_is_untrained_and_shares_the_backbone(learner: Learner, tiny: TimmViT, arrays: Any) -> None:
    me = Learner("safe", tiny, preset="released", progress=False, device="cpu", epochs=1, **{"tuning.bottleneck": 2})
    for one in (me, learner.fit(*arrays)):
        other = clone(one)
        assert other is not one and other.backbone is tiny and not other.classes
        assert other.get_params() == one.get_params() and other.method.config == one.method.config


def test_it_is_a_classifier(learner: Learner, arrays: Any) -> None:
    assert is_classifier(learner)
    assert not hasattr(learner, "classes_")
    assert learner.fit(*arrays).classes_.tolist() == ["0", "1", "2"]


def test_settings_change_before_anything_is_learned(tiny: TimmViT, arrays: Any) -> None:
    me = Learner("ranpac", tiny, progress=False, device="cpu", features=40)
    assert me.get_params()["features"] == 40 and me.get_params(deep=False)["method"] == "ranpac"
    assert me.set_params(features=50, seeds=3) is me
    assert me.method.config.as_dict()["features"] == 50 and me.seeds.init == 3 and me.backbone is tiny
    me.set_params(method="simple_cil")  # which has no features
    assert me.method.name == "simple_cil" and "features" not in me.get_params()
    with pytest.raises(ConfigError, match="'featurs'"):
        me.set_params(method="ranpac", featurs=3)
    assert me.method.name == "simple_cil"
    me.fit(*arrays)
    with pytest.raises(ConfigError, match=r"has learned 1 tasks and stays .* sklearn.base.clone"):
        me.set_params(seeds=4)
    assert me.set_params() is me


@pytest.mark.slow  # a process of its own, which loads torch
def test_scikit_learn_is_not_needed_for_a_learner() -> None:
    code = "import sys, evertune.learner; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
