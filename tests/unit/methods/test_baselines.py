"""SimpleCIL, APER and RanPAC over a real, tiny transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.learner import Learner
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {"preset": "paper", "batch_size": 8, "epochs": 2, "rate": 0.05}


def learner(name: str, backbone: TimmViT, **options: Any) -> Learner:
    return Learner(name, backbone, progress=False, device="cpu", **options)


def plain(me: Learner, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Frozen features, and indices in the order of ``me.classes``."""
    return me.engine.features(source), torch.tensor([me.classes.index(source.classes[i]) for i in source.labels])


def test_simple_cil_is_the_nearest_class_mean(backbone: TimmViT, stream: Stream, train: Source, test: Source) -> None:
    me = learner("simple_cil", backbone)
    for task in stream:
        me.learn(task)
    x, y = plain(me, train)
    means = torch.stack([x[y == c].mean(0) for c in range(6)])
    wanted = F.cosine_similarity(plain(me, test)[0][:, None], means[None], dim=2)
    torch.testing.assert_close(me.scores(test), wanted, rtol=1e-4, atol=1e-5)
    assert not list(me.method.parameters())


def test_simple_cil_over_domains_pools_them(backbone: TimmViT, domains: Stream, train: Source, test: Source) -> None:
    me, whole = learner("simple_cil", backbone), learner("simple_cil", backbone)
    for task in domains:
        me.learn(task)
    whole.learn(Stream.class_incremental(train, test, first=6, increment=1, order_seed=None)[0])
    torch.testing.assert_close(me.scores(test), whole.scores(test), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tuning", ["adapter", "ssf", "vpt"])  # fresh, the last two are not the plain model
def test_aper_without_epochs_is_simple_cil(backbone: TimmViT, stream: Stream, test: Source, tuning: str) -> None:
    aper = learner("aper", backbone, **QUICK | {"epochs": 0, "tuning": tuning})
    simple = learner("simple_cil", backbone)
    for task in stream:
        aper.learn(task)
        simple.learn(task)
    torch.testing.assert_close(aper.scores(test), simple.scores(test), rtol=1e-5, atol=1e-6)
    assert aper.predict(test) == simple.predict(test)


def test_aper_puts_the_plain_half_first(backbone: TimmViT, stream: Stream, train: Source) -> None:
    me = learner("aper", backbone, **QUICK)
    for task in stream:
        me.learn(task)
    x, y = plain(me, train)
    means = torch.stack([x[y == c].mean(0) for c in range(6)])
    assert me.method.prototypes.means.shape == (6, 96)
    torch.testing.assert_close(me.method.prototypes.means[:, :48], means, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(me.method.prototypes.means[:, 48:], means, rtol=1e-3)


@pytest.mark.parametrize("name", ["aper", "ranpac"])
def test_only_the_first_session_trains(backbone: TimmViT, stream: Stream, name: str) -> None:
    me = learner(name, backbone, **QUICK | ({"features": 32} if name == "ranpac" else {}))
    start = me.method.tuning.fingerprint()
    reports = me.learn(stream[0])
    trained = me.method.tuning.fingerprint()
    assert trained != start
    assert [r.name for r in reports if r.kind == "optimise"] == ["first session"]
    assert me.method.tuning.frozen and me.method.head.classes == 0
    for task in stream[1:]:
        assert not [r for r in me.learn(task) if r.kind == "optimise"]
    assert me.method.tuning.fingerprint() == trained


@pytest.mark.parametrize("strength", [1e-6, 10.0, 1e4])
def test_ranpac_without_projection_is_ridge_on_all_data(
    backbone: TimmViT, stream: Stream, train: Source, test: Source, strength: float
) -> None:
    me = learner("ranpac", backbone, epochs=0, features=0, strength=strength)
    for task in stream:
        me.learn(task)
    x, y = plain(me, train)
    probe = plain(me, test)[0].double().numpy()
    wanted = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(x.double().numpy(), np.eye(6)[y])
    np.testing.assert_allclose(me.scores(test), wanted.predict(probe), rtol=1e-3, atol=1e-4)


def test_ranpac_does_not_care_for_the_order_of_tasks(backbone: TimmViT, train: Source, test: Source) -> None:
    scores = []
    for seed in (0, 1):
        me = learner("ranpac", backbone, epochs=0, features=64, strength=1e3)
        for task in Stream.class_incremental(train, test, first=2, increment=2, order_seed=seed):
            me.learn(task)
        scores.append(me.scores(test)[:, [me.classes.index(name) for name in "abcdef"]])
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-6)


def test_ranpac_multiplies_nothing_but_its_features(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """Plain inner products; one toolbox takes cosines to A instead (§5.5)."""
    me = learner("ranpac", backbone, epochs=0, features=64)
    me.learn(stream[0])
    h = torch.relu(plain(me, stream[0].test)[0] @ me.method.R)  # type: ignore[arg-type]
    torch.testing.assert_close(me.scores(stream[0].test), h @ me.method.ridge.A, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_without_epochs_nothing_is_trained(backbone: TimmViT, stream: Stream) -> None:
    me = learner("ranpac", backbone, epochs=0, features=16)
    start = me.method.tuning.fingerprint()
    assert not [r for r in me.learn(stream[0]) if r.kind == "optimise"]
    assert me.method.tuning.fingerprint() == start and me.method.tuning.frozen
    assert me.method.branches == (None,)  # which a feature cache can serve


def test_pilot_scores_are_cosines_with_the_ridge_solution(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """The toolbox's variant: every class vector has length one, which changes predictions, so it is only an option."""
    me = learner("ranpac", backbone, preset="pilot", epochs=1, batch_size=8, features=60)
    for task in stream:
        me.learn(task)
    h = torch.relu(
        me.engine.compute(test, (me.method.tuning,), lambda p: {"f": p(me.method.tuning)})["f"] @ me.method.R
    )
    wanted = F.cosine_similarity(h[:, None], me.method.ridge.A.T[None], dim=2)
    torch.testing.assert_close(me.scores(test), wanted, rtol=1e-4, atol=1e-5)
    assert learner("ranpac", backbone).method.config.scoring == "inner"
