"""Class means, task features, held-out rows, growing state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evertune.statistics import ClassMeans, Growing, TaskFeatures, holdout
from evertune.statistics.gram import CHUNK

# -- class means -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 30))
def test_means_are_those_of_numpy_in_any_chunks(labels: list[int], chunk: int) -> None:
    y = torch.tensor(labels)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(len(y), 5))).float()
    means = ClassMeans()
    for rows, part in zip(x.split(chunk), y.split(chunk), strict=True):
        means.update(rows, part)
    assert means.counts.tolist() == np.bincount(y).tolist()
    for c in range(int(y.max()) + 1):
        wanted = x[y == c].mean(0) if (y == c).any() else torch.zeros(5)
        torch.testing.assert_close(means.means[c], wanted, rtol=1e-5, atol=1e-6)


def test_a_class_that_comes_again_adds_to_its_mean() -> None:
    means = ClassMeans()
    means.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    means.update(torch.tensor([[0.0, 4.0], [2.0, 2.0]]), torch.tensor([1, 0]))
    assert means.means.tolist() == [[1.5, 1.0], [0.0, 4.0]]
    means.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert means.counts.tolist() == [2, 1]


# -- features of the task being learned --------------------------------------------------------------------------------


def test_features_are_joined_then_forgotten() -> None:
    task = TaskFeatures()
    task.add(torch.ones(2, 3), torch.tensor([0, 1]))
    task.add(2 * torch.ones(1, 3), torch.tensor([1]))
    assert len(task.features) == 0
    task.close()
    assert task.features[:, 0].tolist() == [1, 1, 2]
    assert task.labels.tolist() == [0, 1, 1]
    task.close()
    assert len(task.features) == 3
    task.clear()
    assert task.features.numel() == task.labels.numel() == 0


def test_chunks_cover_every_row_once() -> None:
    task = TaskFeatures()
    task.add(torch.arange(2 * CHUNK + 5.0)[:, None], torch.arange(2 * CHUNK + 5))
    task.close()
    chunks = list(task.chunks())
    assert [len(x) for x, _ in chunks] == [CHUNK, CHUNK, 5]
    assert torch.equal(torch.cat([y for _, y in chunks]), task.labels)


def test_means_of_normalised_features() -> None:
    task = TaskFeatures()
    task.add(torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 1.0]]), torch.tensor([4, 4, 2]))
    task.close()
    assert task.means((2, 4)).tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_half_a_pass_is_in_the_state_and_goes_on() -> None:
    task, again = TaskFeatures(), TaskFeatures()
    for each in range(2):
        task.add(torch.full((2, 3), float(each)), torch.tensor([each, each]))
    again.load_state_dict(task.state_dict())
    for one in (task, again):
        one.add(torch.full((1, 3), 2.0), torch.tensor([2]))
        one.close()
        assert one.features[:, 0].tolist() == one.labels.tolist() == [0, 0, 1, 1, 2]


def test_a_restored_state_forgets_half_a_pass() -> None:
    """After a failure the learner is put back; rows collected before it must not enter the next task."""
    task = TaskFeatures()
    before = task.state_dict()
    task.add(torch.ones(2, 3), torch.tensor([0, 1]))
    task.load_state_dict(before)
    task.close()
    assert len(task.features) == 0


# -- held-out rows -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.floats(0, 0.95),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_row_is_in_one_part_and_something_is_fitted(
    labels: list[int], fraction: float, stratified: bool, seed: int
) -> None:
    y = torch.tensor(labels)
    fit, held = holdout(y, fraction, torch.Generator().manual_seed(seed), stratified=stratified)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(len(y)))
    assert len(fit) >= 1
    if stratified:
        assert set(y[fit].tolist()) == set(labels)
        for c in set(labels):
            assert (y[held] == c).sum() == min(int(fraction * labels.count(c)), labels.count(c) - 1)


def test_sorted_labels_are_shuffled() -> None:
    y = torch.arange(10).repeat_interleave(20)
    for stratified in (True, False):
        fit, held = holdout(y, 0.2, torch.Generator().manual_seed(0), stratified=stratified)
        assert len(fit) == 160
        assert len(held) == 40
        assert len(y[held].unique()) >= 8
        assert len(y[fit].unique()) == 10


def test_the_split_follows_the_generator_alone() -> None:
    y = torch.arange(40) % 4
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = holdout(y, 0.2, torch.Generator().manual_seed(7))
    second = holdout(y, 0.2, torch.Generator().manual_seed(7))
    other = holdout(y, 0.2, torch.Generator().manual_seed(8))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(torch.get_rng_state(), state)


# -- growing state -----------------------------------------------------------------------------------------------------


class Grown(Growing):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(rows)))
        self.register_buffer("table", torch.ones(rows, 2, dtype=torch.float64))


def test_a_state_brings_its_shapes() -> None:
    fresh = nn.ModuleDict({"head": Grown(0)})
    fresh["head"].weight.requires_grad_(False)
    fresh.load_state_dict(nn.ModuleDict({"head": Grown(3)}).state_dict())
    assert fresh["head"].weight.tolist() == [0, 1, 2]
    assert fresh["head"].table.shape == (3, 2)
    assert fresh["head"].table.dtype == torch.float64
    assert not fresh["head"].weight.requires_grad
    fresh.load_state_dict(nn.ModuleDict({"head": Grown(1)}).state_dict())
    assert fresh["head"].weight.tolist() == [0]


def test_a_state_that_lacks_something_is_refused() -> None:
    with pytest.raises(RuntimeError, match="table"):
        Grown(2).load_state_dict({"weight": torch.zeros(5)})
