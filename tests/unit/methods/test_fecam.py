"""FeCAM against numpy and scipy, over a real, tiny transformer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.heads import mahalanobis, tukey
from evertune.heads.mahalanobis import shrunk
from evertune.learner import Learner
from evertune.methods.fecam import FeCAMConfig
from evertune.statistics import ClassScatters
from evertune.streams import Source, Stream

ROWS = np.random.default_rng(0)


def examples(classes: int = 3, width: int = 6, per_class: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Features with a covariance of their own for each class, and labels."""
    mixing = ROWS.normal(size=(classes, width, width))
    means = ROWS.normal(size=(classes, width))
    labels = np.arange(classes * per_class) % classes
    noise = ROWS.normal(size=(len(labels), width))
    return means[labels] + np.einsum("nl,nlm->nm", noise, mixing[labels]), labels


def fitted(x: np.ndarray, y: np.ndarray, spread: Any = "class") -> ClassScatters:
    classes = ClassScatters(spread)
    classes.fit(torch.from_numpy(x), torch.from_numpy(y))
    return classes


def treated(covariance: np.ndarray, gamma1: float, gamma2: float, normalised: bool = True) -> np.ndarray:
    """Shrunk and normalised, by the book."""
    off = ~np.eye(len(covariance), dtype=bool)
    result = covariance + gamma1 * np.diag(covariance).mean() * ~off + gamma2 * covariance[off].mean() * off
    deviations = np.sqrt(np.diag(result))
    return result / np.outer(deviations, deviations) if normalised else result


@pytest.mark.parametrize(("gamma1", "gamma2"), [(1.0, 0.0), (1.0, 1.0), (100.0, 50.0)])
def test_distances_are_those_of_scipy(gamma1: float, gamma2: float) -> None:
    x, y = examples()
    got = mahalanobis(torch.from_numpy(x), fitted(x, y), gamma1, gamma2)
    for c in range(3):
        inverse = np.linalg.inv(treated(np.cov(x[y == c].T), gamma1, gamma2))
        wanted = [scipy_mahalanobis(row, x[y == c].mean(0), inverse) ** 2 for row in x]
        np.testing.assert_allclose(got[:, c], wanted, rtol=1e-4)


def test_a_common_covariance_is_that_within_classes() -> None:
    x, y = examples()
    deviations = np.concatenate([x[y == c] - x[y == c].mean(0) for c in range(3)])
    covariance = deviations.T @ deviations / (len(x) - 3)
    for normalised, scale in ((True, np.diag(covariance).mean()), (False, 1.0)):
        inverse = np.linalg.inv(treated(covariance / scale, 1.0, 0.5, normalised=False))
        wanted = [[scipy_mahalanobis(row, x[y == c].mean(0), inverse) ** 2 for c in range(3)] for row in x]
        got = mahalanobis(torch.from_numpy(x), fitted(x, y, "common"), 1.0, 0.5, normalised=normalised)
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_diagonals_divide_by_relative_variances() -> None:
    x, y = examples()
    got = mahalanobis(torch.from_numpy(x), fitted(x, y, "diagonal"), 1.0, 0.0)
    for c in range(3):
        variances = x[y == c].var(0, ddof=1)
        relative = (variances + variances.mean()) / (2 * variances.mean())
        np.testing.assert_allclose(got[:, c], ((x - x[y == c].mean(0)) ** 2 / relative).sum(1), rtol=1e-4)


@pytest.mark.parametrize("spread", ["class", "common", "diagonal"])
def test_a_class_in_parts_is_the_class_at_once(spread: str) -> None:
    x, y = examples()
    parts = fitted(x[:25], y[:25], spread)
    parts.fit(torch.from_numpy(x[25:]), torch.from_numpy(y[25:]))
    whole = fitted(x, y, spread)
    torch.testing.assert_close(parts.means, whole.means)
    torch.testing.assert_close(parts.scatter, whole.scatter, rtol=1e-5, atol=1e-5)
    assert parts.counts.equal(whole.counts)


@pytest.mark.parametrize("spread", ["class", "diagonal"])
def test_a_class_of_one_example_takes_the_covariance_of_all(spread: str) -> None:
    x, y = examples()
    alone = np.concatenate([x, x[:1] + 1]), np.append(y, 3)
    classes = fitted(*alone, spread)
    pooled = sum(classes.scatter[:3].double()) / (len(x) - 3)
    torch.testing.assert_close(classes.covariances(3, 4)[0], pooled)
    lonely = fitted(x[:1], y[:1], spread)
    got = mahalanobis(torch.from_numpy(x), lonely, 1.0, 0.0)
    wanted = ((x - x[0]) ** 2).sum(1)  # nothing is known of any spread: the unit matrix
    np.testing.assert_allclose(got[:, 0], wanted, rtol=1e-4)


def test_classes_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples(classes=7)
    whole = mahalanobis(torch.from_numpy(x), fitted(x, y), 1.0, 0.0)
    monkeypatch.setattr(sys.modules[mahalanobis.__module__], "AT_ONCE", 3 * 6 * (len(x) + 6))
    torch.testing.assert_close(mahalanobis(torch.from_numpy(x), fitted(x, y), 1.0, 0.0), whole)


def test_shrinking_as_much_between_as_within_keeps_a_covariance() -> None:
    """Features that sum to zero have the most negative mean covariance there is."""
    x = ROWS.normal(size=(4, 30))
    x -= x.mean(1, keepdims=True)
    values = torch.linalg.eigvalsh(shrunk(torch.from_numpy(np.cov(x.T))[None], 1.0, 1.0))
    assert values.min() > -1e-12


def test_tukey_is_odd_and_the_square_root_of_positive_features() -> None:
    x = torch.tensor([4.0, -9.0, 0.0])
    assert tukey(x, 0.5).tolist() == [2.0, -3.0, 0.0]
    assert tukey(x, 1.0) is x


@pytest.mark.parametrize(
    ("options", "said"), [({"gamma2": 2.0}, "γ₂ must lie"), ({"gamma2": -1.0}, "γ₂ must lie"), ({"tukey": 0}, "tukey")]
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FeCAMConfig.make(**options)


def test_the_method_is_the_distance_in_unit_features(
    backbone: TimmViT, stream: Stream, train: Source, test: Source
) -> None:
    me = Learner("fecam", backbone, progress=False, device="cpu")
    for task in stream:
        me.learn(task)
    x, probe = (torch.nn.functional.normalize(me.engine.features(s), dim=1).double().numpy() for s in (train, test))
    y = np.array([me.classes.index(train.classes[i]) for i in train.labels])
    inverses = [np.linalg.inv(treated(np.cov(x[y == c].T), 1.0, 0.0)) for c in range(6)]
    wanted = [[-(scipy_mahalanobis(row, x[y == c].mean(0), inverses[c]) ** 2) for c in range(6)] for row in probe]
    np.testing.assert_allclose(me.scores(test), wanted, rtol=1e-3, atol=1e-5)
    assert not any("sigma" not in name and p.requires_grad for name, p in me.method.named_parameters())
    assert me.method.classes.scatter.nbytes == 6 * 48 * 48 * 4


def test_a_tuning_of_the_first_session_stays(backbone: TimmViT, stream: Stream) -> None:
    me = Learner("fecam", backbone, preset="tuned", epochs=2, batch_size=8, progress=False, device="cpu")
    kinds = [[report.name for report in me.learn(task) if report.kind == "optimise"] for task in stream]
    assert kinds == [["first session"], [], []]
    assert me.method.branches == (me.method.tuning,) and me.method.tuning.frozen
