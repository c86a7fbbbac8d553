"""Probes against scikit-learn, task by task and all at once, over a real, tiny transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods.probes import LinearProbeConfig, RidgeProbeConfig
from evertune.statistics import Gram
from evertune.streams import Source, Stream

ALL_AT_ONCE = {"batch_size": 48, "epochs": 4000, "relative_rate": 2.0, "weight_decay": 0.1}


def taught(name: str, backbone: TimmViT, stream: Stream, **options: Any) -> Learner:
    me = Learner(name, backbone, progress=False, device="cpu", **options)
    for task in stream:
        me.learn(task)
    return me


def plain(me: Learner, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Frozen features, and indices in the order of ``me.classes``."""
    labels = np.array([me.classes.index(source.classes[i]) for i in source.labels])
    return me.engine.features(source).double().numpy(), labels


# -- ridge -------------------------------------------------------------------------------------------------------------


def test_the_ridge_probe_is_the_ridge_on_all_data(
    backbone: TimmViT, stream: Stream, train: Source, test: Source
) -> None:
    me = taught("ridge_probe", backbone, stream)
    x, y = plain(me, train)
    strength = me.method.describe()["ridge strength"]
    wanted = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(x, np.eye(6)[y])
    np.testing.assert_allclose(me.scores(test), wanted.predict(plain(me, test)[0]), rtol=1e-3, atol=1e-4)
    assert not list(me.method.parameters())


def test_the_record_says_what_the_linear_probe_trains(backbone: TimmViT, stream: Stream) -> None:
    me = taught("linear_probe", backbone, stream[:1])
    (report,) = [r for r in me.learn(stream[1]) if r.name == "descent"]
    assert report.parameters == 4 * (backbone.shape.width + 1)


@pytest.mark.parametrize("other", ["joint", "order", "domains"])
def test_it_makes_no_difference_how_the_data_came(
    backbone: TimmViT, stream: Stream, domains: Stream, train: Source, test: Source, other: str
) -> None:
    """The strength included, which is found on the sums as well."""
    streams = {
        "joint": stream.joint(),
        "order": Stream.class_incremental(train, test, first=3, increment=1, order_seed=5),
        "domains": domains,
    }
    one, two = taught("ridge_probe", backbone, stream), taught("ridge_probe", backbone, streams[other])
    assert two.method.describe()["ridge strength"] == pytest.approx(one.method.describe()["ridge strength"])
    columns = [two.classes.index(name) for name in one.classes]
    torch.testing.assert_close(two.scores(test)[:, columns], one.scores(test), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [8, 30, 200])
def test_generalised_cross_validation_is_that_of_the_book(rows: int) -> None:
    """From the hat matrix H(HᵀH + λI)⁻¹Hᵀ of examples, of which the sums know nothing; with fewer rows than features,
    too."""
    rng = np.random.default_rng(rows)
    h, labels = rng.normal(size=(rows, 12)) @ rng.normal(size=(12, 12)), np.arange(rows) % 4
    gram, y = Gram(), np.eye(4)[labels]
    gram.update(torch.from_numpy(h), torch.from_numpy(labels))
    grid = [10.0**p for p in range(-6, 3)]
    mean = np.square(h).sum(1).mean()
    errors = []
    for value in grid:
        hat = h @ np.linalg.solve(h.T @ h + value * mean * np.eye(12), h.T)
        errors.append(np.square(y - hat @ y).sum() / np.trace(np.eye(rows) - hat) ** 2)
    assert gram.cross_validated(grid) == pytest.approx(mean * grid[int(np.argmin(errors))])
    assert gram.cross_validated(grid[2:3]) == pytest.approx(mean * grid[2])


def test_a_given_strength_is_taken(backbone: TimmViT, stream: Stream) -> None:
    assert taught("ridge_probe", backbone, stream, strength=3.0).method.describe() == {"ridge strength": 3.0}


# -- linear ------------------------------------------------------------------------------------------------------------


def test_of_all_classes_at_once_it_ends_at_the_optimum(
    backbone: TimmViT, stream: Stream, train: Source, test: Source
) -> None:
    """Full batches, to convergence: ½ γ (‖W‖² + ‖b‖²) beside the mean loss, so the bias is a feature that is 1."""
    me = taught("linear_probe", backbone, stream.joint(), **ALL_AT_ONCE)
    x, y = plain(me, train)
    ones = lambda rows: np.concatenate([rows, np.ones((len(rows), 1))], 1)  # noqa: E731
    strength = 1 / (ALL_AT_ONCE["weight_decay"] * len(y))
    wanted = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=5000).fit(ones(x), y)
    logits = wanted.decision_function(ones(plain(me, test)[0]))
    found = me.scores(test)
    np.testing.assert_allclose(found - found.mean(1, keepdim=True), logits - logits.mean(1, keepdims=True), atol=1e-3)


def test_task_by_task_it_forgets(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """Full cross-entropy pushes the rows of what came before below those of the last task: nothing else is answered."""
    last = set(stream[-1].classes)
    assert set(taught("linear_probe", backbone, stream).predict(test)) <= last
    assert not set(taught("linear_probe", backbone, stream, local=True).predict(test)) <= last
    assert len(set(taught("linear_probe", backbone, stream.joint()).predict(test))) == 6


@pytest.mark.parametrize("method", ["linear_probe", "finetune"])
def test_local_cross_entropy_leaves_the_other_rows_alone(backbone: TimmViT, stream: Stream, method: str) -> None:
    quick = {"epochs": 2, "batch_size": 8, "local": True}
    before = taught(method, backbone, Stream(stream[:2]), **quick).method.head.weight
    after = taught(method, backbone, stream, **quick).method.head.weight
    assert torch.equal(after[:4], before) and len(after) == 6
    moved = taught(method, backbone, stream, **quick | {"local": False}).method.head.weight
    assert not torch.allclose(moved[:4], before)


def test_one_pass_serves_all_epochs(backbone: TimmViT, stream: Stream) -> None:
    me = Learner("linear_probe", backbone, progress=False, device="cpu")
    reports = me.learn(stream[0])
    assert [(r.kind, r.images) for r in reports] == [("solve", 0), ("collect", 16), ("solve", 0)]
    assert not me.method.task.features.numel()
    x, y = plain(me, stream[0].train)
    loss = F.cross_entropy(me.method.head(torch.from_numpy(x).float()), torch.from_numpy(y))
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (RidgeProbeConfig, {"ridge_low": 2}, "ridge_low=2 is above ridge_high=1"),
        (RidgeProbeConfig, {"strength": -1.0}, "strength=-1.0 must not be negative"),
        (LinearProbeConfig, {"epochs": 0}, "epochs=0 must be at least 1"),
        (LinearProbeConfig, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (LinearProbeConfig, {"relative_rate": 0.0}, "relative_rate=0.0 must be positive"),
        (LinearProbeConfig, {"momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1"),
        (LinearProbeConfig, {"weight_decay": -1.0}, "weight_decay=-1.0 must not be negative"),
    ],
)
def test_impossible_options(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.make(**options)
