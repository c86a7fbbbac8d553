"""The choice of λ against brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import evertune.statistics.gram as module
from evertune.errors import TrainingError
from evertune.statistics import holdout, select_ridge

DECADES = tuple(10.0**p for p in range(-8, 9))


def planted(rows: int, width: int, *, noise: float = 1.0, classes: int = 4, seed: int = 0):
    """Features around one mean per class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    means = rng.normal(size=(classes, width))
    features = means[labels] + noise * rng.normal(size=(rows, width))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def brute(h, y, grid, fit, val) -> np.ndarray:
    """Held-out errors by singular values in float64."""
    H, present = h.double().numpy(), np.unique(y)
    Y = (y.numpy()[:, None] == present).astype(float)
    u, s, vt = np.linalg.svd(H[fit], full_matrices=False)
    kept = s > s[0] * 1e-12
    errors = []
    for strength in grid:
        solution = (vt.T * np.where(kept, s / (s**2 + strength), 0)) @ (u.T @ Y[fit])
        errors.append(((H[val] @ solution - Y[val]) ** 2).mean())
    return np.array(errors)


def thirds(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(rows * 2 // 3), torch.arange(rows * 2 // 3, rows)


@pytest.mark.parametrize(("rows", "width"), [(30, 90), (90, 20), (60, 40)])
def test_losses_are_those_of_brute_force(rows: int, width: int) -> None:
    h, y = planted(rows, width)
    fit, val = thirds(rows)
    chosen = select_ridge(h, y, DECADES, fit, val)
    wanted = brute(h, y, DECADES, fit, val)
    np.testing.assert_allclose(chosen.losses, wanted, rtol=1e-6)
    assert chosen.strength == DECADES[int(wanted.argmin())]
    assert chosen.grid == DECADES


@pytest.mark.parametrize("duplicated", [False, True])
def test_beyond_the_eigen_limit_each_strength_has_its_factor(monkeypatch: pytest.MonkeyPatch, duplicated: bool) -> None:
    h, y = planted(60, 100)
    if duplicated:  # a singular kernel
        h[1:20], y[1:20] = h[0], y[0]
    fit, val = thirds(60)
    eigen = select_ridge(h, y, DECADES[6:], fit, val)
    monkeypatch.setattr(module, "EIGEN_LIMIT", 10)
    cholesky = select_ridge(h, y, DECADES[6:], fit, val)
    np.testing.assert_allclose(cholesky.losses, eigen.losses, rtol=1e-6)
    assert cholesky.strength == eigen.strength


@pytest.mark.parametrize("chunk", [1, 7, 40, 4096])
def test_primal_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    h, y = planted(90, 20)
    fit, val = thirds(90)
    monkeypatch.setattr(module, "CHUNK", chunk)
    widths = []

    def lift(features: torch.Tensor) -> torch.Tensor:
        widths.append(len(features))
        return features * 2

    chosen = select_ridge(h, y, DECADES, fit, val, lift)
    np.testing.assert_allclose(chosen.losses, brute(h * 2, y, DECADES, fit, val), rtol=1e-6)
    assert max(widths) <= chunk


def test_more_rows_than_the_eigen_limit() -> None:
    rows = module.EIGEN_LIMIT + 200
    h, y = planted(rows, module.EIGEN_LIMIT + 150, noise=3)
    fit, val = torch.arange(rows - 60), torch.arange(rows - 60, rows)
    grid = (1.0, 1e3, 1e5)
    np.testing.assert_allclose(select_ridge(h, y, grid, fit, val).losses, brute(h, y, grid, fit, val), rtol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 4.0])
def test_the_choice_is_near_the_best_on_fresh_data(noise: float) -> None:
    h, y = planted(700, 40, noise=noise, seed=1)
    fit, val = torch.arange(60), torch.arange(60, 200)
    chosen = select_ridge(h, y, DECADES, fit, val)
    truth = brute(h, y, DECADES, fit, torch.arange(200, 700))
    assert truth[DECADES.index(chosen.strength)] <= truth.min() * 1.05


def test_a_strength_that_is_not_a_number_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    h, y = planted(30, 60)
    losses = torch.tensor([torch.nan, 0.5, -torch.inf, 0.2, torch.inf, torch.nan], dtype=torch.float64)
    monkeypatch.setattr(module, "_dual", lambda *_: losses)
    chosen = select_ridge(h, y, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), *thirds(30))
    assert chosen.strength == 4.0
    assert not np.isnan(chosen.losses).any()


def test_no_finite_candidate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    h, y = planted(30, 60)
    monkeypatch.setattr(module, "_dual", lambda *_: torch.tensor([torch.nan, torch.inf]))
    with pytest.raises(TrainingError, match="larger candidates"):
        select_ridge(h, y, (1.0, 2.0), *thirds(30))


@pytest.mark.parametrize(("rows", "width"), [(30, 60), (60, 20)])
@pytest.mark.parametrize("held", [True, False])
def test_features_that_are_not_finite_are_refused(rows: int, width: int, held: bool) -> None:
    h, y = planted(rows, width)
    h[0, 0] = torch.nan
    fit, val = thirds(rows) if held else (torch.arange(rows), torch.arange(0))
    with pytest.raises(TrainingError, match="NaN or infinity"):
        select_ridge(h, y, DECADES, fit, val)


def test_classes_that_do_not_occur_do_not_change_the_choice() -> None:
    h, y = planted(60, 30)
    fit, val = thirds(60)
    gaps = torch.tensor([3, 17, 40, 41])
    assert select_ridge(h, gaps[y], DECADES, fit, val) == select_ridge(h, y, DECADES, fit, val)


@pytest.mark.parametrize(("rows", "width"), [(12, 40), (40, 12)])
def test_without_held_out_rows_every_row_is_left_out_once(rows: int, width: int) -> None:
    h, y = planted(rows, width)
    none = torch.arange(0)
    grid = DECADES[4:]
    got = select_ridge(h, y, grid, torch.arange(rows), none)
    one_by_one = [brute_one(h, y, grid, np.delete(np.arange(rows), i), np.array([i])) for i in range(rows)]
    np.testing.assert_allclose(got.losses, np.mean(one_by_one, axis=0), rtol=1e-5)


def brute_one(h, y, grid, fit, val) -> np.ndarray:
    """Like ``brute``, against the one-hot target of all classes."""
    H, Y, eye = h.double().numpy(), np.eye(int(y.max()) + 1)[y], np.eye(h.shape[1])
    solutions = [np.linalg.solve(H[fit].T @ H[fit] + s * eye, H[fit].T @ Y[fit]) for s in grid]
    return np.array([((H[val] @ solution - Y[val]) ** 2).mean() for solution in solutions])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_handful_of_rows(rows: int) -> None:
    h, y = planted(rows, 30, classes=rows)
    fit, val = holdout(y, 0.2, torch.Generator().manual_seed(0))
    assert len(val) == 0
    assert select_ridge(h, y, DECADES, fit, val).strength in DECADES


def test_a_single_class() -> None:
    h, _ = planted(20, 30)
    assert select_ridge(h, torch.full((20,), 7), DECADES, *thirds(20)).strength in DECADES


def test_the_caller_s_features_are_untouched() -> None:
    h, y = planted(40, 10)
    kept = h.clone()
    no_change: Callable[[torch.Tensor], torch.Tensor] = torch.relu
    select_ridge(h, y, DECADES, *thirds(40), no_change)
    assert torch.equal(h, kept)
