"""Identities of SAFE's losses and of its entropy-weighted mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from torch import Tensor
from torch.nn import functional as F

from evertune.methods.losses import aggregate, alignment, cross_classification, entropy, entropy_weights, transfer

SEEDS = st.integers(0, 1000)


def draw(rows: int, width: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- transfer ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), SEEDS)
def test_transfer_equals_the_correlation_matrix_written_out(rows: int, width: int, seed: int) -> None:
    s, p = draw(rows, width, seed), draw(rows, width, seed + 1)
    S, P = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (s, p))
    M = S.T @ P / rows
    diagonal, redundancy = transfer(s, p)
    assert float(diagonal) == pytest.approx(((np.diag(M) - 1) ** 2).sum(), rel=1e-10)
    assert float(redundancy) == pytest.approx((M**2).sum() - (np.diag(M) ** 2).sum(), rel=1e-8, abs=1e-12)
    # L_diag = L − 2·mean cos + Σ M_ii²: feature-cosine distillation and a constant
    cosine = (S * P).sum(1).mean()
    assert float(diagonal) == pytest.approx(width - 2 * cosine + (np.diag(M) ** 2).sum(), rel=1e-10)


def test_transfer_of_equal_features_has_cosine_one() -> None:
    s = draw(12, 30)
    diagonal, _ = transfer(s, s)
    squares = (F.normalize(s, dim=1).square().mean(0)).square().sum()
    assert float(diagonal) == pytest.approx(float(30 - 2 + squares), rel=1e-12)


@pytest.mark.parametrize("per_feature", [False, True])
def test_transfer_gradients(per_feature: bool) -> None:
    s, p = draw(4, 5).requires_grad_(), draw(4, 5, 1)
    assert torch.autograd.gradcheck(lambda x: transfer(x, p, per_feature=per_feature), (s,))
    diagonal, redundancy = transfer(s, p, per_feature=per_feature)
    (diagonal + redundancy).backward()
    assert p.grad is None


def test_transfer_per_feature_correlates_columns() -> None:
    s, p = draw(50, 7), draw(50, 7, 1)
    correlation = np.corrcoef(s.numpy().T, p.numpy().T)[:7, 7:]
    diagonal, redundancy = transfer(s, p, per_feature=True)
    assert float(diagonal) == pytest.approx(((np.diag(correlation) - 1) ** 2).sum(), rel=1e-10)
    assert float(redundancy) == pytest.approx((correlation**2).sum() - (np.diag(correlation) ** 2).sum(), rel=1e-8)
    assert all(torch.isfinite(x) for x in transfer(torch.ones(3, 4), torch.ones(3, 4), per_feature=True))


# -- alignment and cross-classification --------------------------------------------------------------------------------


def test_alignment_is_a_cosine_distance() -> None:
    v, u = draw(6, 9), draw(6, 9, 1)
    wanted = [1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(v, u, strict=True)]
    assert float(alignment(v, u)) == pytest.approx(np.mean(wanted))
    assert float(alignment(v, u, reduction="sum")) == pytest.approx(np.sum(wanted))
    assert float(alignment(3 * u, u)) == pytest.approx(0, abs=1e-12)


def wired(**learns: bool) -> dict[str, Tensor]:
    """Leaves of the two cross terms, by name."""
    sizes = {"features_slow": (5, 9), "features_fast": (5, 9), "W_slow": (6, 9), "W_fast": (6, 9)}
    leaves = {name: draw(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    for name, leaf in leaves.items():
        leaf.requires_grad_(learns.get(name, True))
    return leaves


def test_slow_to_fast_reaches_the_fast_head_alone() -> None:
    t, y = wired(features_slow=False, W_slow=False), torch.tensor([4, 5, 4, 4, 5])
    cross_classification(t["features_slow"], t["W_slow"][:4], y, t["W_fast"], torch.tensor(10.0)).backward()
    assert t["features_fast"].grad is None
    assert (t["W_fast"].grad.abs().sum(1) > 0).all()


def test_fast_to_slow_reaches_fast_features_and_old_fast_rows() -> None:
    t, y = wired(W_slow=False), torch.tensor([4, 5, 4, 4, 5])
    cross_classification(t["features_fast"], t["W_fast"][:4], y, t["W_slow"], torch.tensor(10.0)).backward()
    assert t["W_slow"].grad is None
    assert (t["features_fast"].grad.abs().sum(1) > 0).all()
    assert (t["W_fast"].grad[:4].abs().sum(1) > 0).all()
    assert not t["W_fast"].grad[4:].any()


def test_cross_classification_is_one_mean_over_prototypes_and_samples() -> None:
    x, w, y = draw(5, 9), draw(6, 9, 1), torch.tensor([4, 5, 0, 4, 5])
    protos = draw(4, 9, 2)
    logits = 7 * F.normalize(torch.cat([protos, x]), dim=1) @ F.normalize(w, dim=1).T
    wanted = -np.log(softmax(logits.numpy(), axis=1))[np.arange(9), [0, 1, 2, 3, *y.tolist()]].mean()
    assert float(cross_classification(x, protos, y, w, torch.tensor(7.0))) == pytest.approx(wanted)


# -- aggregation -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(2, 20), SEEDS)
def test_entropy_is_scipy_s(rows: int, classes: int, seed: int) -> None:
    z = draw(rows, classes, seed)
    np.testing.assert_allclose(entropy(z), scipy_entropy(softmax(z.numpy(), axis=1), axis=1), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 345])
def test_uniform_logits_have_the_entropy_of_their_count(classes: int) -> None:
    assert entropy(torch.full((1, classes), 3.7)).item() == pytest.approx(math.log(classes), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0, 50))
def test_weights_sum_to_one_and_favour_the_certain(seed: int, gamma: float) -> None:
    a, b = draw(8, 5, seed), draw(8, 5, seed + 1)
    weights = entropy_weights(a, b, gamma=gamma)
    torch.testing.assert_close(weights.sum(0), torch.ones(8, dtype=torch.float64))
    assert ((weights[0] >= weights[1]) == (entropy(a) <= entropy(b))).all() or gamma < 1e-6


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0, 100))
def test_equal_learners_agree_with_their_mixture(seed: int, gamma: float) -> None:
    z = draw(8, 5, seed)
    torch.testing.assert_close(aggregate(z, z, gamma=gamma), z)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_limits_of_gamma(seed: int) -> None:
    a, b = draw(8, 5, seed), draw(8, 5, seed + 1)
    torch.testing.assert_close(aggregate(a, b, gamma=0), (a + b) / 2)
    surer = (entropy(a) < entropy(b))[:, None]
    torch.testing.assert_close(aggregate(a, b, gamma=1e12), torch.where(surer, a, b))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(-20, 20))
def test_a_constant_on_all_logits_of_a_learner_changes_nothing(seed: int, constant: float) -> None:
    a, b = draw(8, 5, seed), draw(8, 5, seed + 1)
    torch.testing.assert_close(entropy_weights(a + constant, b, gamma=2), entropy_weights(a, b, gamma=2))
    assert torch.equal(aggregate(a + constant, b, gamma=2).argmax(1), aggregate(a, b, gamma=2).argmax(1))


def test_every_sample_is_mixed_alone() -> None:
    a, b = draw(8, 5), draw(8, 5, 1)
    alone = torch.cat([aggregate(a[i : i + 1], b[i : i + 1], gamma=1) for i in range(8)])
    torch.testing.assert_close(aggregate(a, b, gamma=1), alone)


def test_extreme_logits_stay_finite() -> None:
    a, b = 1e4 * draw(8, 5).float(), torch.zeros(8, 5)
    assert aggregate(a, b, gamma=100).isfinite().all()
