"""HiDe-PET's contrastive regulariser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from evertune.methods.losses import centre_constants, contrastive

SIZES = st.integers(1, 9)


def draw(rows: int, width: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(features: Tensor, centres: Tensor, tau: float = 0.8) -> Tensor:
    return contrastive(features, centres, centre_constants(centres, tau), tau=tau)


def explicit(features: Tensor, centres: Tensor, tau: float = 0.8) -> Tensor:
    """As released: all products, each row its own class."""
    rows = torch.cat([centres.detach().reshape(-1, features.shape[1]), features])
    return F.cross_entropy(rows @ rows.T / tau, torch.arange(len(rows)))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 9), SIZES, st.floats(0.1, 3), st.integers(0, 100))
def test_value_and_gradient_are_those_of_all_products(
    batch: int, known: int, width: int, tau: float, seed: int
) -> None:
    centres = draw(known, width, seed + 1)
    ours, theirs = (draw(batch, width, seed).requires_grad_() for _ in range(2))
    got, wanted = loss(ours, centres, tau), explicit(theirs, centres, tau)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    got.backward()
    wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11)


def test_value_is_the_softmax_in_two_loops() -> None:
    h, centres = draw(4, 5), draw(3, 5, 1)
    rows = [*centres.tolist(), *h.tolist()]
    total = 0.0
    for row in rows:
        terms = [math.exp(float(np.dot(row, other)) / 0.8) for other in rows]
        total -= math.log(math.exp(float(np.dot(row, row)) / 0.8) / sum(terms))
    assert float(loss(h, centres)) == pytest.approx(total / 7, rel=1e-12)


def test_without_centres_it_is_the_batch_alone() -> None:
    h = draw(6, 5)
    for empty in (torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, 0)):
        torch.testing.assert_close(contrastive(h, empty, torch.zeros(0)), explicit(h, h[:0]))
    assert float(contrastive(h[:1], h[:0], torch.zeros(0))) == 0


def test_gradients_by_differences() -> None:
    centres = draw(3, 4, 1)
    assert torch.autograd.gradcheck(lambda h: loss(h, centres), (draw(5, 4).requires_grad_(),))


def test_centres_are_constants() -> None:
    h, centres = draw(5, 4).requires_grad_(), draw(3, 4, 1).requires_grad_()
    loss(h, centres).backward()
    assert centres.grad is None
    assert h.grad is not None and h.grad.any()


def test_samples_move_away_from_a_centre_they_resemble() -> None:
    centre = torch.tensor([[1.0, 0.0]])
    h = torch.tensor([[0.9, 0.5]], requires_grad=True)
    loss(h, centre).backward()
    assert h.grad is not None
    assert loss((h - 0.1 * h.grad).detach(), centre) < loss(h, centre)


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_float32_bears_products_in_the_thousands(scale: float) -> None:
    """Own products of 1 to 7000 and, for some rows, others that exceed them."""
    h, centres = draw(16, 2, 0, scale), draw(30, 2, 1, scale)
    exact, single = h.clone().requires_grad_(), h.float().requires_grad_()
    wanted, got = explicit(exact, centres), loss(single, centres.float())
    wanted.backward()
    got.backward()
    assert exact.grad is not None and single.grad is not None
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (single.grad - exact.grad).abs().max() <= 1e-3 * exact.grad.abs().max()


def test_a_margin_that_is_kept_costs_exactly_nothing() -> None:
    """Orthogonal features of length 50: float32 must not add noise of the size of its rounding at 3000."""
    h, centres = 50 * torch.eye(12)[:8], 50 * torch.eye(12)[8:]
    h.requires_grad_()
    value = loss(h, centres)
    value.backward()
    assert value == 0
    assert h.grad is not None and not h.grad.any()


def test_what_is_left_of_a_narrow_margin_keeps_its_digits() -> None:
    """Own products of 2500, others less by 3 to 7: losses of 1e-2 to 1e-4, near float32's rounding of 3125."""
    h = 50 * torch.eye(5)
    centres = h * torch.tensor([0.9972, 0.9981, 0.9975, 0.9987, 0.9988])[:, None] + 20 * torch.eye(5).roll(1, 0)
    wanted = explicit(h.double(), centres.double())
    assert 1e-4 < wanted < 1e-2
    assert loss(h, centres).item() == pytest.approx(wanted.item(), rel=1e-3)


def test_constants_of_float32_centres_are_exact() -> None:
    centres = draw(30, 2, 1, 60.0).float()
    torch.testing.assert_close(
        centre_constants(centres).double(), centre_constants(centres.double()), rtol=2e-7, atol=0
    )


def test_constants_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    centres = draw(11, 4)
    whole = centre_constants(centres)
    monkeypatch.setattr("evertune.methods.losses.CHUNK", 3)
    torch.testing.assert_close(centre_constants(centres), whole)
    wanted = [math.log(sum(math.exp(float((m - c) @ c) / 0.8) for m in centres)) for c in centres]
    np.testing.assert_allclose(whole, wanted, rtol=1e-12)
