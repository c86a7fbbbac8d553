"""What learning does: each check fails at a method that breaks its promise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import Passes
from evertune.methods import Batch, Method, Optimise, Phase, Recipe, SimpleCIL, Solve, TaskInfo
from evertune.streams import Task
from evertune.testing import check_method

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


class Trained(Means):
    """A training phase before the means."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.weight = nn.Parameter(torch.ones(()))

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        recipe = Recipe(epochs=1, batch_size=8, rate=0.1)
        return [Optimise("scale", self.loss, lambda: [self.weight], recipe), *super().phases(task)]

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"scale": self.weight.square()}


class TrainsSilently(Trained):
    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        with torch.no_grad():
            self.extra += 1
        return super().loss(batch)


class TrainsTheBackbone(Means):
    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        next(batch.passes.backbone.parameters()).mul_(1.001)


class UnfreezesTheBackbone(Means):
    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        next(batch.passes.backbone.parameters()).requires_grad_(True)


class LearnsNothing(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": -super().scores(passes)["prototypes"]}


class DrawsGlobally(Means):
    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.extra += torch.rand(())


class ActsWhenAsked(Means):
    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        self.extra += 1
        return super().phases(task)


class ChangesItsMind(Means):
    """What happens depends on what a later phase of the same task changes."""

    def phases(self, task: TaskInfo) -> Iterable[Phase]:
        if len(self.prototypes.counts) == task.known:
            yield Solve("begin", lambda: None)
        yield from super().phases(task)
        yield Solve("end", lambda: None)


class AsksForTwo(Means):
    """The spread of one example is not a number."""

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.extra.copy_(batch.passes().std(0).mean())

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": super().scores(passes)["prototypes"] + 0 * self.extra}


class OnlyNewClasses(Means):
    """Learns of new classes alone."""

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return super().phases(task) if task.new else []


class CountsPresent(Means):
    """Takes all classes of a task for new ones."""

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [*super().phases(task), Solve("count", lambda: self.extra.add_(len(task.present)))]

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        found = super().scores(passes)["prototypes"]
        return {"prototypes": torch.cat([found, found.new_zeros(len(found), int(self.extra) - found.shape[1])], 1)}


class LooksAtTests(Means):
    """Finds the task among all objects of the process, and reads its test part."""

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        for task in [o for o in gc.get_objects() if type(o) is Task]:
            if task.test is not None:
                task.test.load(0)


def test_a_sound_method_breaks_nothing() -> None:
    check_method(Means)
    check_method(Trained, only=["only_what_is_declared_trains"])


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (TrainsSilently, "only_what_is_declared_trains", "extra .in the phase 'scale'"),
        (TrainsTheBackbone, "the_backbone_stays_as_it_was", "no longer what they were"),
        (UnfreezesTheBackbone, "the_backbone_stays_as_it_was", "have or want gradients"),
        (LearnsNothing, "it_learns", "of 30 new examples"),
        (DrawsGlobally, "the_same_seed_gives_the_same_learner", "these tensors of the state differ: extra"),
        (ActsWhenAsked, "phases_are_only_announced", "differ: extra"),
        (ActsWhenAsked, "phases_asked_again_are_the_same", "differ: extra"),
        (ChangesItsMind, "phases_asked_again_are_the_same", "phases.. tells of"),
        (AsksForTwo, "tasks_may_be_of_any_size", "not finite"),
        (OnlyNewClasses, "a_new_domain_brings_no_class", "nothing was learned of new examples"),
        (CountsPresent, "a_new_domain_brings_no_class", "12 scores for 6 classes"),
        (CountsPresent, "a_new_domain_may_bring_some", "6 scores for 4 classes"),
        (LooksAtTests, "held_out_data_is_not_touched_while_learning", "were read while learning"),
    ],
)
@pytest.mark.filterwarnings("ignore:std")
def test_it_fails(breaks: Breaks, method: type[Method], check: str, words: str) -> None:
    breaks(method, check, words)
