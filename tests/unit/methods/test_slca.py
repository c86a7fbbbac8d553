"""SLCA over a real, tiny transformer, against the released algorithm written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods import SLCA, TaskInfo
from evertune.methods.losses import reverse_cross_entropy
from evertune.methods.slca import SLCAConfig
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {"preset": "paper", "batch_size": 8, "epochs": 2, "blocks": "1-2", "draws": 16}


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("slca", backbone, progress=False, device="cpu", **QUICK | options)


@pytest.fixture(scope="module")
def taught(backbone: TimmViT, stream: Stream) -> Learner:
    me = learner(backbone)
    for task in stream:
        me.learn(task)
    return me


def method(backbone: TimmViT, **options: Any) -> SLCA:
    """Two classes, then three, as if two tasks were learned and their features collected, those of the second not yet
    made Gaussians."""
    made = learner(backbone, **options).method
    assert isinstance(made, SLCA)
    generator = torch.Generator().manual_seed(1)
    made.head.grow(5, generator)
    features = torch.randn(60, 48, generator=generator) + torch.arange(60)[:, None] % 5
    labels = torch.arange(60) % 5
    made.gaussians.fit(features[labels < 2], labels[labels < 2], 0, generator)
    made.features.add(features[labels >= 2], labels[labels >= 2])
    return made


SECOND = TaskInfo(index=1, present=(2, 3, 4), new=(2, 3, 4), known=2, size=36)


def align_as_released(me: SLCA, rate: float, decay: float, tau: float | None) -> tuple[Tensor, Tensor]:
    """Stage two of the release over ``me``'s draws: five epochs, a step for each class, tasks of 2 and 3 classes."""
    weight = me.head.weight.detach().clone().requires_grad_()
    bias = me.head.bias.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=rate, momentum=0.9, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for _ in range(5):
        x, y = me._draw(5 * 16)
        assert y.bincount().tolist() == [16] * 5
        for i in range(5):
            logits = x[16 * i : 16 * i + 16] @ weight.T + bias
            if tau:
                norms = [logits[:, part].norm(dim=1, keepdim=True) + 1e-7 for part in (slice(0, 2), slice(2, 5))]
                logits = logits / torch.cat(norms, 1).mean(1, keepdim=True) / tau
            optimizer.zero_grad()
            F.cross_entropy(logits, y[16 * i : 16 * i + 16]).backward()
            optimizer.step()
        scheduler.step()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("tau", [0.1, None])
@pytest.mark.parametrize("shrink", [0.0, 0.02])
def test_alignment_is_the_released_one(backbone: TimmViT, tau: float | None, shrink: float) -> None:
    me = method(backbone, temperature=tau, shrink=shrink, weight_decay=0.01)
    other = copy.deepcopy(me)
    other.features.close()
    other.gaussians.fit(other.features.features, other.features.labels, 1, other.generators.sampling)
    before = me.head.weight.detach().clone()
    me._align(SECOND)
    weight, bias = align_as_released(other, 0.01, 0.01, tau)
    weight[:2] *= 1 + shrink  # the first task's classifier reads features that much longer
    torch.testing.assert_close(me.aligned.weight, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(me.aligned.bias, bias, rtol=1e-4, atol=1e-6)
    assert me.head.weight.equal(before) and not me.aligned.weight.equal(before)
    assert len(me.features.labels) == 0


@pytest.mark.parametrize(
    ("options", "first"), [({"mean_decay": 0.1}, 0.95), ({"mean_decay": 0.0, "shrink": 0.5}, 1 / 1.5)]
)
def test_draws_of_older_classes_are_shorter(backbone: TimmViT, options: dict[str, float], first: float) -> None:
    """The released 0.9 + 0.1 (t + 1) / T for the mean of a class of task t, or 1 / (1 + μ) for the draw."""
    me = method(backbone, **options)
    me._align(SECOND)
    x, y = me._draw(20_000)
    for c in range(5):
        factor = first if c < 2 else 1.0
        mean = me.gaussians.means[c] * factor
        torch.testing.assert_close(x[y == c].mean(0), mean, rtol=0, atol=0.1)
        spread = x[y == c].var(0).mean() / me.gaussians.covariances[c].diagonal().mean()
        assert float(spread) == pytest.approx(factor**2 if "shrink" in options else 1.0, rel=0.02)


def test_the_first_task_needs_no_alignment(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    names = [report.name for report in me.learn(stream[0])]
    assert names == ["open", "slow learner", "close", "features", "alignment"]
    assert me.method.aligned.weight.equal(me.method.head.weight)
    assert me.method.own.classes == 0


def test_rows_of_other_classes_stay_whatever_decays(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone, weight_decay=0.1, rate=0.05)
    me.learn(stream[0])
    rows, tuning = me.method.head.weight.detach().clone(), me.method.tuning.fingerprint()
    me.learn(stream[1])
    assert me.method.head.weight[:2].equal(rows)
    assert me.method.tuning.fingerprint() != tuning


def test_the_gaussians_are_of_the_tasks_features(taught: Learner, train: Source) -> None:
    """Of the last task, after which the tuning did not move."""
    made = taught.engine.compute(train, taught.method.branches, lambda p: {"x": p(taught.method.tuning)})["x"]
    labels = torch.tensor([taught.classes.index(train.classes[i]) for i in train.labels])
    gaussians = taught.method.gaussians
    assert gaussians.entry_task.tolist() == [0, 0, 1, 1, 2, 2]
    for c in (4, 5):
        rows = made[labels == c].double()
        torch.testing.assert_close(gaussians.means[c].double(), rows.mean(0), rtol=1e-4, atol=1e-5)
        wanted = torch.from_numpy(np.cov(rows.numpy(), rowvar=False)) + 1e-4 * torch.eye(48, dtype=torch.float64)
        torch.testing.assert_close(gaussians.covariances[c].double(), wanted, rtol=1e-3, atol=1e-5)


def test_scores_are_those_of_the_aligned_classifier(taught: Learner, test: Source) -> None:
    me = taught.method
    x = taught.engine.compute(test, me.branches, lambda p: {"x": p(me.tuning)})["x"]
    with torch.no_grad():
        wanted = x @ me.aligned.weight.T + me.aligned.bias
    torch.testing.assert_close(taught.scores(test), wanted, rtol=1e-4, atol=1e-5)


def test_the_slow_learner_alone(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """Learning does not depend on the alignment, which starts anew from the classifier each time."""
    me, whole = learner(backbone, align=False), learner(backbone)
    for task in stream:
        names = [report.name for report in me.learn(task)]
        whole.learn(task)
    assert names == ["open", "slow learner", "close"]
    assert me.method.gaussians.nbytes == 0 and me.method.aligned.classes == 0
    assert me.method.tuning.fingerprint() == whole.method.tuning.fingerprint()
    assert me.method.head.weight.equal(whole.method.head.weight)
    assert not torch.equal(me.scores(test), whole.scores(test))


@pytest.mark.parametrize(
    ("options", "moves"), [({"slow": 0.0}, (False, False)), ({"slow": 0.0, "first": 1.0}, (True, False))]
)
def test_how_slow_is_said_for_the_first_task_and_for_later_ones(
    backbone: TimmViT, stream: Stream, options: dict[str, float], moves: tuple[bool, bool]
) -> None:
    me = learner(backbone, **options)
    for task, moved in zip(stream, moves, strict=False):
        before = me.method.tuning.fingerprint()
        me.learn(task)
        assert (me.method.tuning.fingerprint() != before) is moved


def test_known_classes_in_new_domains(backbone: TimmViT, domains: Stream, test: Source) -> None:
    me = learner(backbone)
    for task in domains:
        me.learn(task)
    assert me.method.head.classes == 6 and me.method.gaussians.entries == 18
    assert me.method.gaussians.last_task.tolist() == [2] * 6
    x, y = me.method._draw(18 * 7)
    assert len(x) == 18 * 7 and y.bincount().tolist() == [21] * 6
    assert me.scores(test).isfinite().all()


def test_the_reverse_cross_entropy_written_out() -> None:
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, classes = torch.tensor([4, 7, 9] * 3), (4, 7, 9)
    one_hot = np.clip(np.eye(3)[[0, 1, 2] * 3], 1e-4, 1)
    wanted = -(softmax(logits.numpy(), axis=1) * np.log(one_hot)).sum(1).mean()
    assert float(reverse_cross_entropy(logits, labels, classes)) == pytest.approx(wanted, rel=1e-12)


def test_slca_plus_plus_learns_on_the_symmetric_loss(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone, preset="slca++")
    reports = me.learn(stream[0])
    assert set(reports[1].losses) == {"classification", "reverse"}
    assert 0 < reports[1].losses["reverse"] < -0.1 * math.log(1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"milestone": 0}, {"draws": 0}, {"slow": -0.1}, {"reverse": -1.0}, {"align_epochs": -1},
        {"shrink": -0.1}, {"first": -1.0}, {"align_rate": 0.0}, {"temperature": 0.0}, {"mean_decay": 1.5},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        SLCAConfig.make(**options)
