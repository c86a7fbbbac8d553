"""When a checkpoint is due, and that what it holds of a training phase goes on from there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evertune import Learner
from evertune.engine import Checkpoint, Place, Progress, Runtime
from evertune.engine import progress as module
from evertune.engine.cache import FeatureCache
from evertune.engine.optimizer import make_optimizer, read_state, write_state
from evertune.engine.progress import same
from evertune.methods import Recipe


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def progress_of(
    clock: Clock, writes: list[float], took: float = 0.1, once: float = 0.0, fails: bool = False, **options: Any
) -> Progress:
    """Of a method of a few bytes; each write takes so many seconds, and the first ``once`` more."""

    def write(checkpoint: Checkpoint) -> float | None:
        clock.now += took if writes else took + once
        writes.append(clock.now)
        return None if fails else took

    progress = Progress(Runtime("cpu"), write, **options)
    progress.begin(Learner("simple_cil", device="cpu", progress=False).method)
    return progress


def run_for(progress: Progress, clock: Clock, seconds: int) -> None:
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 1
        progress.reached(0, 1)


def test_checkpoints_are_a_minute_apart_at_least(clock: Clock) -> None:
    writes: list[float] = []
    run_for(progress_of(clock, writes), clock, 130)
    assert writes == pytest.approx([60, 121], abs=1)


def test_slow_checkpoints_take_less_than_a_hundredth_of_the_time(clock: Clock) -> None:
    writes: list[float] = []
    run_for(progress_of(clock, writes, took=3.0), clock, 3000)
    assert np.diff(writes).min() >= 300
    assert 3 * len(writes) < 0.01 * clock.now + 3


def test_what_is_done_but_once_does_not_count(clock: Clock) -> None:
    """The digest of a large data set takes minutes, and no later checkpoint waits for hours because of that."""
    writes: list[float] = []
    run_for(progress_of(clock, writes, once=300.0), clock, 500)
    assert writes == pytest.approx([360, 421, 482], abs=2)


def test_what_fails_slowly_is_not_tried_all_the_time(clock: Clock) -> None:
    writes: list[float] = []
    run_for(progress_of(clock, writes, took=5.0, fails=True), clock, 1000)
    assert writes == pytest.approx([65, 65 + 500 + 5], abs=2)


def test_a_large_first_checkpoint_waits_until_it_is_worth_its_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPEED", 6000.0)  # a generator's state alone is 5056 bytes
    writes: list[float] = []
    run_for(progress_of(clock, writes), clock, 400)
    assert writes[0] == pytest.approx(100 * (2 * 5056) / 6000, abs=2)


def test_every_says_how_often(clock: Clock) -> None:
    writes: list[float] = []
    run_for(progress_of(clock, writes, every=10.0), clock, 33)
    assert len(writes) == 3
    run_for(progress_of(clock, writes, every=0), clock, 5)
    assert len(writes) == 8


def test_nothing_is_kept_without_a_place_for_it(clock: Clock) -> None:
    progress = Progress(Runtime("cpu"))
    progress.begin(Learner("simple_cil", device="cpu", progress=False).method)
    run_for(progress, clock, 1000)
    assert progress.place == Place(0, 0, 1) and not progress.eager


def test_a_layout_comes_back(clock: Clock) -> None:
    """Products with what lies by columns differ in the last bit from those with the same by rows."""
    kept: list[Checkpoint] = []
    one, two = (Learner("ranpac", device="cpu", progress=False, seeds=seed).method for seed in (0, 1))
    one.R = one.R.T.contiguous().T
    one.tuning.freeze()
    progress = Progress(Runtime("cpu"), lambda checkpoint: kept.append(checkpoint), every=0)
    progress.begin(one)
    progress.reached(0, 1)
    tensors = {name: tensor.contiguous().clone() for name, tensor in kept[0].shared.items()}  # as a file gives them
    Progress(Runtime("cpu"), found=Checkpoint(kept[0].notes, tensors, {})).begin(two)
    assert torch.equal(two.R, one.R) and two.R.stride() == one.R.stride() == (1, len(one.R))
    assert two.tuning.frozen and two.head.weight.requires_grad
    assert torch.equal(two.generators.init.get_state(), one.generators.init.get_state())


def test_equal_is_equal_to_the_last_bit() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same(nan, nan.clone()) and same(zero, zero.clone()) and same(torch.tensor(3), torch.tensor(3))
    assert not same(zero, -zero) and not same(zero, zero.double()) and not same(zero, zero[:, None])
    turned = torch.arange(6.0).view(2, 3).T
    assert same(turned, turned.contiguous())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_optimiser_goes_on_from_its_state(optimizer: str) -> None:
    def made() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [
            torch.nn.Parameter(torch.ones(3)),
            torch.nn.Parameter(torch.ones(2, 2)),
            torch.nn.Parameter(torch.ones(1)),
        ]
        recipe = Recipe(epochs=1, batch_size=1, rate=0.1, optimizer=optimizer, weight_decay=0.1, decay="matrices")
        return parameters, make_optimizer(parameters, recipe)

    def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in parameters[:2]:  # the last has no gradient and no memory
            p.grad = torch.rand(p.shape, generator=generator)
        optimizer.step()

    one, whole = made()
    step(one, whole, 0)
    two, again = made()
    for p, q in zip(two, one, strict=True):
        p.data.copy_(q.data)
    write_state(again, {name: value.clone() for name, value in read_state(whole).items()})
    for parameters, each in ((one, whole), (two, again)):
        step(parameters, each, 1)
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
    assert read_state(whole).keys() == read_state(again).keys()


def test_a_bank_of_views_goes_on_from_its_state() -> None:
    bank = FeatureCache()
    for rows in (torch.tensor([4, 1]), torch.tensor([0, 3])):
        bank.view("0", rows, 5).put("branch", rows[:, None].float(), torch.arange(2))
    again = FeatureCache()
    again.load({name: tensor.clone() for name, tensor in bank.state().items()}, torch.device("cpu"))
    for each in (bank, again):
        each.view("0", torch.tensor([2]), 5).put("branch", torch.tensor([[2.0]]), torch.arange(1))
        features, known = each.view("0", torch.arange(5), 5).get("branch") or pytest.fail("nothing is known")
        assert features[:, 0].tolist() == [0, 1, 2, 3, 4] and known.all()
        assert each.holds("branch", "0") and each.bytes == 20
