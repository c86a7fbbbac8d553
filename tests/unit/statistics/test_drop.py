"""Classes and tasks taken out of statistics and heads again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evertune.heads import CosineHead, LinearHead, MLPHead, RidgeHead
from evertune.statistics import ClassGaussians, ClassMeans, Gram, TaskCentroids, moved, others
from evertune.statistics.gaussian import SPREADS


def drawn(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.sets(st.integers(0, 9)))
def test_numbers_move_to_the_places_of_those_left(count: int, gone: set[int]) -> None:
    left = others(count, gone)
    assert left.tolist() == sorted(set(range(count)) - gone)
    assert moved(left, gone).tolist() == list(range(len(left)))


@pytest.mark.parametrize("kind", [ClassMeans, Gram])
def test_sums_are_those_without_the_class(kind: type[ClassMeans] | type[Gram]) -> None:
    x, y = drawn(20), torch.arange(20) % 4
    both, fewer = kind(), kind()
    both.update(x, y)
    both.drop([1, 3])
    stay = (y % 2) == 0
    fewer.update(x[stay], y[stay] // 2)
    assert both.counts.tolist() == fewer.counts.tolist() == [5, 5]
    for name in ("sums", "Q"):
        if hasattr(both, name):
            torch.testing.assert_close(getattr(both, name), getattr(fewer, name))
    both.update(x[:2], torch.tensor([2, 0]))  # a new class goes behind those left
    assert both.counts.tolist() == [6, 5, 1]


def test_a_ridge_without_columns_answers_as_before() -> None:
    gram, ridge = Gram(), RidgeHead()
    gram.update(drawn(30), torch.arange(30) % 5)
    ridge.solve(gram, 0.1)
    before = ridge(drawn(4, 1))
    ridge.drop([0, 3])
    torch.testing.assert_close(ridge(drawn(4, 1)), before[:, [1, 2, 4]])
    assert ridge.classes == 3 and float(ridge.strength) == 0.1


@pytest.mark.parametrize("kind", ["linear", "cosine", "mlp"])
def test_heads_lose_rows_and_stay_trainable(kind: str) -> None:
    init = torch.Generator().manual_seed(0)
    head = {"linear": lambda: LinearHead(6), "cosine": lambda: CosineHead(6, 2.0), "mlp": lambda: MLPHead(6)}[kind]()
    head.draw(4, init) if isinstance(head, CosineHead) else head.grow(4, init)
    before = head(drawn(3))
    trains = [p.requires_grad for p in head.parameters()]
    head.drop([2])
    torch.testing.assert_close(head(drawn(3)), before[:, [0, 1, 3]])
    assert head.classes == 3 and [p.requires_grad for p in head.parameters()] == trains
    head.requires_grad_(False)
    head.drop([0])
    assert not any(p.requires_grad for p in head.parameters())


def test_an_empty_head_has_nothing_to_lose() -> None:
    for part in (LinearHead(6), CosineHead(6, 1.0), ClassMeans(), Gram(), RidgeHead()):
        before = {name: value.shape for name, value in part.state_dict().items()}
        part.drop([0, 5])
        assert {name: value.shape for name, value in part.state_dict().items()} == before


@pytest.mark.parametrize("mode", SPREADS)
def test_gaussians_lose_entries_and_tasks_without_any(mode: str) -> None:
    """Classes 0 and 1 in task 0, class 2 in task 1, classes 0 and 3 in task 2."""
    kept, fewer = ClassGaussians(mode, centroids=2, rank=2), ClassGaussians(mode, centroids=2, rank=2)
    lessons = [(0, (0, 1)), (1, (2,)), (2, (0, 3))]
    for task, classes in lessons:
        for c in classes:
            x, y = drawn(8, 10 * task + c), torch.full((8,), c)
            kept.fit(x, y, task, torch.Generator().manual_seed(c))
            if c in (0, 3):
                fewer.fit(x, torch.full((8,), {0: 0, 3: 1}[c]), {0: 0, 2: 1}[task], torch.Generator().manual_seed(c))
    kept.sample(5, torch.Generator().manual_seed(0))  # remembers roots of the covariances
    assert kept.forget([1, 2]) == [1]
    one, two = kept.state_dict(), fewer.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    draws = [part.sample(7, generator)[0] for part, generator in zip((kept, fewer), generators, strict=True)]
    assert torch.equal(*draws)


def test_task_centroids_lose_tasks_and_domains_without_any() -> None:
    kept = TaskCentroids(k=2)
    for task, domain in enumerate([0, 1, 0, 2]):
        kept.add(drawn(9, task), domain, torch.Generator().manual_seed(0))
    centroids = kept.centroids.clone()
    assert kept.forget([2]) == [] and kept.domain.tolist() == [0, 1, 2]
    assert kept.forget([1]) == [1] and kept.domain.tolist() == [0, 1]
    assert kept.owner.tolist() == [0, 0, 1, 1] and kept.domains == kept.tasks == 2
    assert torch.equal(kept.centroids, centroids[[0, 1, 6, 7]])
