"""What learning and answering cost, counted: against formulas, whatever was sampled, and without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evertune import Learner, Stream
from evertune.backbones import Passes, TimmViT
from evertune.engine import Checkpoint, PhaseReport, Progress, Runtime, engine
from evertune.engine.meter import Meter, Operations, alike
from evertune.methods import Batch, Optimise, Recipe, TaskInfo, get_method
from evertune.streams import ArraySource
from evertune.tuning import make_tuning

Data = tuple[ArraySource, ArraySource]
TASK = TaskInfo(0, (0, 1), (0, 1), 0, 24)


def learner_of(tiny: TimmViT, method: str, **options: Any) -> Learner:
    learner = Learner(method, tiny, device="cpu", progress=False, **options)
    learner.engine.counts = True
    return learner


def learned(learner: Learner, data: Data, **how: Any) -> list[PhaseReport]:
    """The reports of a first task of two classes, 24 images."""
    (task,) = Stream.class_incremental(*data, first=2, increment=2, order=data[0].classes)[:1]
    progress = Progress(learner.engine.runtime, **how)
    list(learner.engine.learn(learner.method, TASK, task.train, np.array([0, 1]), progress))
    return progress.reports


def plain_operations(tokens: int, width: int, depth: int, patch: int) -> int:
    """Of a ViT whose feature is CLS: the last block asks for one token only. Two for each multiplication."""
    block = 2 * tokens * width * (4 + 8) * width + 4 * tokens**2 * width
    last = 2 * width**2 * (2 * tokens + 1 + 1 + 8) + 4 * tokens * width
    return 2 * (tokens - 1) * width * 3 * patch**2 + (depth - 1) * block + last


def test_the_unit_is_a_plain_pass(tiny: TimmViT) -> None:
    images = torch.rand(2, 3, 32, 32)
    expected = plain_operations(tokens=17, width=48, depth=3, patch=8)
    for precision in ("fp32", "bf16"):  # torch's fused attention, and ours
        meter = Meter(tiny, Runtime("cpu", precision).autocast)
        assert meter.unit(images) == expected


@pytest.mark.parametrize("trained", [True, False])
def test_the_count_is_torchs(tiny: TimmViT, trained: bool) -> None:
    images, tuning = torch.rand(2, 3, 32, 32), make_tuning("lora", tiny.shape, torch.Generator())

    def work() -> None:
        feature = Passes(tiny, images)(tuning)
        if trained:
            feature.sum().backward()

    with torch.set_grad_enabled(trained), sdpa_kernel(SDPBackend.MATH):  # no release counts every fused attention
        with Operations() as ours:
            work()
        with FlopCounterMode(display=False) as theirs:
            work()
    assert ours.count == theirs.get_total_flops() > 0


def test_what_asks_for_one_plain_pass_costs_one(tiny: TimmViT, blobs: Data) -> None:
    learner = learner_of(tiny, "simple_cil", eval_batch=7)
    report = next(r for r in learned(learner, blobs) if r.kind == "collect")
    assert report.forwards == pytest.approx(24)
    assert learner.engine.forwards(learner.method, blobs[1].select([0, 1, 2])) == pytest.approx(1, abs=0.01)


def test_a_trained_branch_costs_its_way_back_without_the_weights_of_the_backbone(tiny: TimmViT, blobs: Data) -> None:
    """Two products in place of three; LoRA itself and attention's third, the scores again, are small."""
    reports = learned(learner_of(tiny, "finetune", epochs=3, batch_size=8), blobs)
    (trained,) = [r.forwards for r in reports if r.kind == "optimise" and r.forwards is not None]
    assert 1.9 < trained / (3 * 24) < 2.4


@pytest.mark.parametrize(("views", "epochs"), [(None, 3), (1, 3), (2, 5), (3, 3), (9, 3)])
def test_a_sample_stands_for_all(
    tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch, views: int | None, epochs: int
) -> None:
    """Counting every batch gives the same: here each epoch is one batch."""
    assert sum(alike(Recipe(epochs, 24, 0.1, views=views), epoch) for epoch in range(epochs)) == epochs
    phase = next(p for p in learner_of(tiny, "finetune").method.phases(TASK) if isinstance(p, Optimise))
    recipe = Recipe(epochs=epochs, batch_size=24, rate=0.01, views=views)

    def loss(batch: Batch) -> Mapping[str, Tensor]:
        """Of a branch that is trained on top of a frozen one."""
        return {"a": (batch.passes() * weight).sum()}

    def phases(self: object, task: TaskInfo) -> list[Optimise]:
        return [Optimise(phase.name, loss, lambda: [weight], recipe)]

    found = []
    for each in (alike, lambda recipe, epoch: 1):
        weight = nn.Parameter(torch.ones(48))
        monkeypatch.setattr(get_method("finetune"), "phases", phases)
        monkeypatch.setattr(engine, "alike", each)
        found.append(learned(learner_of(tiny, "finetune"), blobs)[0].forwards)
    assert found[0] == pytest.approx(24 * min(views or epochs, epochs)) and found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counting_leaves_no_trace(tiny: TimmViT, blobs: Data, precision: str) -> None:
    states, losses = [], []
    for counts in (True, False):
        torch.manual_seed(0)
        learner = learner_of(tiny, "safe", precision=precision, epochs=2, features=32, batch_size=8)
        learner.engine.counts = counts
        reports = learned(learner, blobs)
        if counts:
            learner.engine.forwards(learner.method, blobs[1])
        assert all((r.forwards is not None) == (counts and r.kind != "solve") for r in reports)
        states.append({**learner.method.state_dict(), "random": torch.get_rng_state()})
        losses.append([r.losses for r in reports])
    assert losses[0] == losses[1]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_stop_neither_loses_nor_doubles_what_was_counted(tiny: TimmViT, blobs: Data) -> None:
    options = {"epochs": 3, "features": 32, "batch_size": 8, "eval_batch": 8}
    kept: list[Checkpoint] = []

    def write(checkpoint: Checkpoint) -> float:
        copy = [{k: v.clone() for k, v in part.items()} for part in (checkpoint.shared, checkpoint.own)]
        kept.append(Checkpoint(checkpoint.notes, *copy))
        return 0.0

    whole = learned(learner_of(tiny, "ranpac", **options), blobs, write=write, every=0)
    inside = [c for c in kept if c.notes.place.step]
    assert len(inside) > 9
    before = learner_of(tiny, "ranpac", **options).method.state_dict()
    for checkpoint in inside[::4]:
        again = learned(learner_of(tiny, "ranpac", **options), blobs, found=checkpoint, before=before)
        assert [r.forwards for r in again] == [r.forwards for r in whole]
