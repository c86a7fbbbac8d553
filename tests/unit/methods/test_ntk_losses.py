"""NTK-CL's regularisers against their sums written out, and what they are for (spec §5, §12.12, §12.13)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.methods.losses import (
    dissimilarity,
    dissimilarity_released,
    old_directions,
    overlap,
    overlap_released,
    released_residual,
)

Loss = Callable[..., Tensor]
TAU = 0.1
LABELS = torch.tensor([7, 8, 7, 9, 8, 7, 5])  # 9 and 5 are alone


def draw(rows: int, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(*rows: Tensor) -> np.ndarray:
    z = torch.cat(rows).numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T / TAU


# -- dissimilarity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [0, 1, 4])
def test_dissimilarity_written_out(old: int) -> None:
    m, prototypes = draw(7), draw(old, seed=1)
    s, terms = cosines(m, prototypes), []
    for i in range(7):
        alike = [j for j in range(7) if j != i and LABELS[j] == LABELS[i]]
        total = sum(math.exp(s[i, a]) for a in range(7 + old) if a != i)
        if alike:
            terms.append(-np.mean([math.log(math.exp(s[i, j]) / total) for j in alike]))
        else:
            terms.append(math.log(np.mean(np.exp(s[i, 7:]))) if old else 0.0)
    assert dissimilarity(m, LABELS, prototypes, tau=TAU).item() == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.parametrize("old", [0, 1, 4])
def test_dissimilarity_as_released_written_out(old: int) -> None:
    """−I, prototypes being anchors too, and one sum of positives for all."""
    m, prototypes = draw(7), draw(old, seed=1)
    s, n = cosines(m, prototypes), 7 + old
    positives = [(i, j) for i in range(7) for j in range(7) if i != j and LABELS[i] == LABELS[j]]
    together = math.log(sum(math.exp(s[i, j]) for i, j in positives))
    anchors = np.mean([math.log(sum(math.exp(s[i, j]) for j in range(n) if j != i)) for i in range(n)])
    value = dissimilarity_released(m, LABELS, prototypes, tau=TAU).item()
    assert value == pytest.approx(-(-together + anchors), rel=1e-12)


@pytest.mark.parametrize("form", [dissimilarity, dissimilarity_released])
def test_dissimilarity_does_not_depend_on_order_or_length(form: Loss) -> None:
    m, prototypes, order = draw(7), draw(4, seed=1), torch.tensor([3, 6, 0, 5, 1, 4, 2])
    value = form(m, LABELS, prototypes)
    torch.testing.assert_close(form(m[order], LABELS[order], prototypes.flip(0)), value)
    lengths = 1 + torch.arange(7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(form(lengths * m, LABELS, 9 * prototypes), value)
    torch.testing.assert_close(form(m, LABELS, prototypes, tau=0.1), value)
    assert not torch.isclose(form(m, LABELS, prototypes, tau=0.2), value)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("old", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dissimilarity_of_any_batch_is_finite(rows: int, old: int, dtype: torch.dtype) -> None:
    """One image, none alike, no old class, equal features, a prototype of zeros."""
    for m in (draw(rows), torch.ones(rows, 12, dtype=torch.float64)):
        for labels in (torch.arange(rows), torch.zeros(rows, dtype=torch.long)):
            x = m.to(dtype).clone().requires_grad_()
            prototypes = torch.cat([draw(old, seed=1), torch.zeros(min(old, 1), 12).double()]).to(dtype)
            for form in (dissimilarity, dissimilarity_released):
                value = form(x, labels, prototypes)
                assert value.isfinite() and value.dtype == dtype
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value, x)
                    assert gradient.isfinite().all()


def test_without_pairs_the_released_term_is_nothing_and_ours_repels_old_classes() -> None:
    m, prototypes = draw(3).requires_grad_(), draw(4, seed=1)
    value = dissimilarity_released(m, torch.arange(3), prototypes)
    assert value == 0 and not value.requires_grad
    (gradient,) = torch.autograd.grad(dissimilarity(m, torch.arange(3), prototypes), m)
    nearer = F.cosine_similarity((m - 1e-3 * gradient)[:, None], prototypes[None], dim=2).logsumexp(1)
    assert (nearer < F.cosine_similarity(m[:, None], prototypes[None], dim=2).logsumexp(1)).all()


@pytest.mark.parametrize(("form", "gathers"), [(dissimilarity, True), (dissimilarity_released, False)])
def test_what_descent_on_the_dissimilarity_does(form: Loss, gathers: bool) -> None:
    """Ours gathers classes and leaves old prototypes; the released sign scatters the classes (T2)."""
    labels = torch.arange(12) % 3
    m, prototypes = draw(12).requires_grad_(), draw(5, seed=1)

    def measured() -> tuple[float, float]:
        z = F.normalize(m.detach(), dim=1)
        alike = (labels[:, None] == labels) & ~torch.eye(12, dtype=torch.bool)
        nearest = (z @ F.normalize(prototypes, dim=1).T).amax(1)
        return (z @ z.T)[alike].mean().item(), nearest.mean().item()

    before = measured()
    optimizer = torch.optim.SGD([m], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        form(m, labels, prototypes).backward()
        optimizer.step()
    after = measured()
    if gathers:
        assert after[0] > before[0] + 0.5 and after[1] < before[1] - 0.05
    else:
        assert after[0] < before[0]


# -- orthogonality -----------------------------------------------------------------------------------------------------


def test_directions_are_the_first_singular_vectors() -> None:
    rows = draw(9)
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    left, strength, _ = np.linalg.svd(unit.T)
    for rank in (1, 4, 9):
        U = old_directions(rows, rank).numpy()
        np.testing.assert_allclose(U @ U.T, left[:, :rank] @ left[:, :rank].T, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(unit @ U, axis=0), strength[:rank], rtol=1e-12)


@pytest.mark.parametrize(("rows", "rank", "found"), [(0, 40, 0), (1, 40, 1), (5, 40, 5), (5, 2, 2), (20, 40, 12)])
def test_there_are_no_more_directions_than_old_classes_have(rows: int, rank: int, found: int) -> None:
    U = old_directions(draw(rows).float(), rank)
    assert U.shape == (12, found) and U.dtype == torch.float32
    torch.testing.assert_close(U.T @ U, torch.eye(found), rtol=0, atol=1e-6)
    same = torch.cat([draw(rows), 3 * draw(rows), torch.zeros(2, 12).double()])  # none of them new
    assert old_directions(same, rank).shape == (12, found)


def test_overlap_is_the_energy_in_the_old_span() -> None:
    prototypes = draw(4)
    U = old_directions(prototypes, 40)
    inside = draw(6, 4, seed=2) @ prototypes
    x = draw(6, seed=3)
    outside = x - x @ torch.linalg.pinv(prototypes) @ prototypes
    assert overlap(U, inside).item() == pytest.approx(1, abs=1e-12)
    assert overlap(U, outside).item() == pytest.approx(0, abs=1e-12)
    assert overlap(U, inside, inside, outside).item() == pytest.approx(2, abs=1e-12)
    mixed = F.normalize(inside, dim=1) * 3 + F.normalize(outside, dim=1) * 4
    assert overlap(U, mixed).item() == pytest.approx(9 / 25, abs=1e-12)
    assert overlap(U, torch.cat([inside, outside])).item() == pytest.approx(0.5, abs=1e-12)


def test_overlap_depends_on_the_span_alone() -> None:
    U, z = old_directions(draw(4), 40), draw(6, seed=3)
    turn, _ = torch.linalg.qr(draw(4, 4, seed=4))
    for same in (overlap(U @ turn, z), overlap(-U, z), overlap(U, -z), overlap(U, 5 * z)):
        torch.testing.assert_close(same, overlap(U, z))


@pytest.mark.parametrize("rank", [3, 40])
def test_orthogonality_as_released_written_out(rank: int) -> None:
    """Zero rows of the classes to come enter the basis: beyond the old classes it is any that the library gives."""
    prototypes = torch.cat([draw(4), torch.zeros(3, 12).double()])
    c, p = draw(6, seed=2), draw(6, seed=3)
    left = np.linalg.svd(F.normalize(prototypes, dim=1).T.numpy())[0][:, :rank]
    outside = np.eye(12) - left @ left.T
    wanted = sum((outside @ F.normalize(z, dim=1).numpy().T).sum() for z in (c, p))
    residual = released_residual(prototypes, rank)
    assert overlap_released(residual, c, p).item() == pytest.approx(wanted, abs=1e-10)
    torch.testing.assert_close(overlap_released(residual, -c, -p), -overlap_released(residual, c, p))
    assert abs(wanted) > 1e-3 or rank > 12
