"""DualGPM against projectors in numpy, which know nothing of bases and complements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evertune.statistics import GradientSpace, SecondMoments

WIDTH = 12


def inputs(seed: int, rank: int = WIDTH) -> np.ndarray:
    """Of some task [D, 40]: of so many directions, each weaker than the one before."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(WIDTH, rank)) @ np.diag(0.6 ** np.arange(rank)) @ rng.normal(size=(rank, 40))


def projector(space: GradientSpace) -> np.ndarray:
    """I − M Mᵀ, as the space applies it."""
    return space.free(torch.eye(WIDTH)).numpy()


def updated(free: np.ndarray, x: np.ndarray, share: float) -> np.ndarray:
    """The projector on what is orthogonal to the memory once that holds ``share`` of ‖X‖²."""
    u, s, _ = np.linalg.svd(free @ x)
    total, count = (x**2).sum(), 0
    while (s[count:] ** 2).sum() > (1 - share) * total:
        count += 1
    return free - u[:, :count] @ u[:, :count].T


def test_memory_is_the_projector_and_is_kept_by_the_smaller_basis() -> None:
    space, free = GradientSpace(WIDTH), np.eye(WIDTH)
    sizes, kept = [], []
    for task in range(6):
        x = inputs(task)
        space.update(torch.from_numpy(x), 0.8 + 0.03 * task)
        free = updated(free, x, 0.8 + 0.03 * task)
        np.testing.assert_allclose(projector(space), free, atol=1e-5)
        sizes.append(space.size)
        kept.append((bool(space.complement), int(space.basis.any(0).sum())))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert sizes == [WIDTH - round(np.trace(projector(space))) if size == sizes[-1] else size for size in sizes]
    assert [complement for complement, _ in kept] == [2 * size > WIDTH for size in sizes]
    assert {complement for complement, _ in kept} == {False, True}
    assert all(columns == min(size, WIDTH - size) for (_, columns), size in zip(kept, sizes, strict=True))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_memory_holds_its_share_of_what_it_was_given(share: float) -> None:
    space = GradientSpace(WIDTH)
    for task in range(3):
        x = inputs(task)
        space.update(torch.from_numpy(x), share)
        left = ((projector(space) @ x) ** 2).sum() / (x**2).sum()
        assert left <= 1 - share + 1e-6
        if task == 0:
            assert left > 0  # as few directions as that takes


@pytest.mark.parametrize("tasks", [0, 1, 5])
def test_designed_rows_are_the_best_orthogonal_to_the_memory(tasks: int) -> None:
    space, free = GradientSpace(WIDTH), np.eye(WIDTH)
    for task in range(tasks):
        space.update(torch.from_numpy(inputs(task)), 0.85)
        free = updated(free, inputs(task), 0.85)
    new = inputs(9)
    rows = space.design(torch.from_numpy(new), 3).double().numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(rows @ (np.eye(WIDTH) - free), 0, atol=1e-5)
    strength = np.linalg.svd(free @ new, compute_uv=False)
    assert np.linalg.norm(rows @ new) ** 2 == pytest.approx((strength[:3] ** 2).sum(), rel=1e-4)


def test_moments_or_their_root_serve_as_the_inputs_do() -> None:
    x = inputs(3)
    values, vectors = np.linalg.eigh(x @ x.T)
    root = vectors * np.sqrt(values.clip(0))
    one, two = GradientSpace(WIDTH), GradientSpace(WIDTH)
    one.update(torch.from_numpy(x), 0.9)
    two.update(torch.from_numpy(root), 0.9)
    np.testing.assert_allclose(projector(one), projector(two), atol=1e-5)


def test_where_nothing_is_left_rows_are_zero() -> None:
    space, x = GradientSpace(WIDTH), torch.from_numpy(inputs(0, rank=2))
    rows = space.design(x, 3)
    assert rows[:2].norm(dim=1).tolist() == pytest.approx([1, 1]) and not rows[2].any()
    space.update(x, 1.0)
    assert space.size == 2 and not space.design(x, 3).any()
    space.update(torch.from_numpy(inputs(1)), 1.0)
    assert space.size == WIDTH and space.complement and not space.basis.any()
    space.update(torch.from_numpy(inputs(2)), 1.0)
    assert space.size == WIDTH and not space.design(torch.from_numpy(inputs(2)), 3).any()


def test_a_state_loads() -> None:
    space, other = GradientSpace(WIDTH), GradientSpace(WIDTH)
    for task in range(4):
        space.update(torch.from_numpy(inputs(task)), 0.9)
    other.load_state_dict(space.state_dict())
    np.testing.assert_array_equal(projector(other), projector(space))


def test_moments_add_up_and_go() -> None:
    moments, x = SecondMoments(), torch.randn(2, 7, 5, dtype=torch.float64)
    moments.add(x[:, :3].mT @ x[:, :3])
    other = SecondMoments()
    other.load_state_dict(moments.state_dict())
    other.add(x[:, 3:].mT @ x[:, 3:])
    torch.testing.assert_close(other.take(), x.mT @ x)
    assert not other.sums.numel()
