"""Accumulated second moments against numpy, scikit-learn and the dual form."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from evertune.errors import TrainingError
from evertune.statistics import Gram


def examples(rows: int, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive, un-normalised features [rows, width] and labels that hold every class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=max(rows - classes, 0))])[:rows]
    features = np.maximum(rng.normal(size=(rows, width)) * 5 + labels[:, None], 0)
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def filled(*parts: tuple[torch.Tensor, torch.Tensor]) -> Gram:
    gram = Gram()
    for h, y in parts:
        gram.update(h, y)
    return gram


def one_hot(labels: torch.Tensor, classes: int | None = None) -> np.ndarray:
    return np.eye(classes or int(labels.max()) + 1)[labels.numpy()]


def oracle(h: torch.Tensor, y: torch.Tensor, strength: float) -> np.ndarray:
    """The ridge solution by the singular values of H in float64: exact at any λ, singular or not."""
    u, s, vt = np.linalg.svd(h.double().numpy(), full_matrices=False)
    kept = s > s[0] * 1e-12
    return (vt.T * np.where(kept, s / (s**2 + strength), 0)) @ (u.T @ one_hot(y))


def test_sums_are_those_of_numpy() -> None:
    h, y = examples(30)
    gram = filled((h, y))
    H = h.double().numpy()
    np.testing.assert_allclose(gram.G, H.T @ H, rtol=1e-12)
    np.testing.assert_allclose(gram.Q, H.T @ one_hot(y), rtol=1e-12)
    assert gram.counts.tolist() == np.bincount(y).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 39), max_size=6), st.integers(0, 5))
def test_sums_do_not_depend_on_chunks(rows: int, cuts: list[int], seed: int) -> None:
    h, y = examples(rows, seed=seed)
    edges = [0, *sorted({c for c in cuts if c < rows}), rows]
    whole, parts = filled((h, y)), filled(*[(h[a:b], y[a:b]) for a, b in pairwise(edges)])
    torch.testing.assert_close(parts.G, whole.G, rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(parts.Q, whole.Q, rtol=1e-13, atol=1e-10)
    assert parts.counts.tolist() == whole.counts.tolist()


def test_an_empty_batch_changes_nothing() -> None:
    h, y = examples(10)
    gram = filled((h, y), (h[:0], y[:0]))
    torch.testing.assert_close(gram.G, filled((h, y)).G)
    assert filled((h[:0], y[:0])).counts.tolist() == []


@pytest.mark.parametrize("strength", [1e3, 1e5])
def test_task_by_task_equals_all_at_once(strength: float) -> None:
    h, y = examples(60, width=40, classes=6)
    tasks = [y < 2, (y >= 2) & (y < 5), y == 5]
    gram = filled(*[(h[m], y[m]) for m in tasks])
    np.testing.assert_allclose(gram.solve(strength), oracle(h, y, strength), rtol=1e-9, atol=1e-15)
    sk = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(h.double().numpy(), one_hot(y))
    np.testing.assert_allclose(gram.solve(strength), sk.coef_.T, rtol=1e-8, atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)), st.sampled_from([1e-2, 1.0, 1e3]))
def test_the_order_of_tasks_only_permutes_columns(order: list[int], strength: float) -> None:
    h, y = examples(50, classes=5)
    position = torch.tensor([order.index(c) for c in range(5)])
    straight = filled((h, y)).solve(strength)
    permuted = filled(*[(h[y == c], position[y[y == c]]) for c in order]).solve(strength)
    torch.testing.assert_close(permuted[:, position], straight, rtol=1e-8, atol=1e-12)
    assert torch.equal(order_of(h @ permuted.float(), order), (h @ straight.float()).argmax(1))


def order_of(scores: torch.Tensor, order: list[int]) -> torch.Tensor:
    return torch.tensor(order)[scores.argmax(1)]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 30), st.floats(3, 6))
def test_primal_equals_dual(rows: int, width: int, exponent: float) -> None:
    h, y = examples(rows, width=width, classes=min(rows, 3))
    strength = 10**exponent
    H, Y = h.double().numpy(), one_hot(y)
    dual = H.T @ np.linalg.solve(H @ H.T + strength * np.eye(rows), Y)
    np.testing.assert_allclose(filled((h, y)).solve(strength), dual, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("exponent", range(-8, 9))
@pytest.mark.parametrize(("rows", "width"), [(25, 120), (25, 25), (120, 25), (1, 30)])
def test_never_garbage(rows: int, width: int, exponent: int) -> None:
    """Fewer samples than features, as many, more; λ over sixteen decades, on features the solution never saw."""
    h, y = examples(rows, width=width, classes=min(rows, 5), seed=3)
    probe, _ = examples(50, width=width, seed=4)
    got = probe.double().numpy() @ filled((h, y)).solve(10.0**exponent).numpy()
    wanted = probe.double().numpy() @ oracle(h, y, 10.0**exponent)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_duplicated_rows_are_no_danger() -> None:
    h, y = examples(20, width=60)
    wanted = oracle(torch.cat([h, h]), torch.cat([y, y]), 1e-8)
    H = h.double().numpy()
    np.testing.assert_allclose(H @ filled((h, y), (h, y)).solve(1e-8).numpy(), H @ wanted, atol=1e-4)


def test_a_vanishing_strength_interpolates() -> None:
    h, y = examples(15, width=80)
    np.testing.assert_allclose(h.double() @ filled((h, y)).solve(1e-8), one_hot(y), atol=1e-5)


def test_a_huge_strength_ranks_by_class_sums() -> None:
    h, y = examples(40)
    gram = filled((h, y))
    assert torch.equal((h.double() @ gram.solve(1e14)).argmax(1), (h.double() @ gram.Q).argmax(1))


def test_zero_strength_and_zero_features_end() -> None:
    y = torch.tensor([0, 1, 1])
    assert filled((torch.zeros(3, 4), y)).solve(0.0).abs().max() == 0
    h, y = examples(10, width=30)
    assert filled((h, y)).solve(0.0).isfinite().all()


def test_one_sample_per_class() -> None:
    h, y = examples(5, width=50, classes=5)
    solution = filled((h, y)).solve(1.0)
    assert (h.double() @ solution).argmax(1).tolist() == y.tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    h, y = examples(10)
    h[3, 2] = value
    with pytest.raises(TrainingError, match="NaN or infinity"):
        filled((h, y)).solve(1e3)


def test_columns_grow_and_gaps_stay_zero() -> None:
    h, _ = examples(2)
    gram = filled((h, torch.tensor([0, 0])), (h, torch.tensor([3, 3])))
    assert gram.Q.shape == (12, 4)
    assert gram.counts.tolist() == [2, 0, 0, 2]
    assert not gram.Q[:, 1:3].any()


def test_sums_are_float64_and_survive_their_state() -> None:
    h, y = examples(20)
    gram, fresh = filled((h, y)), Gram()
    fresh.load_state_dict(gram.state_dict())
    assert fresh.G.dtype == fresh.Q.dtype == torch.float64
    fresh.update(h, y)
    torch.testing.assert_close(fresh.G, 2 * gram.G)
