"""What learning does, and what it leaves alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from evertune.backbones import digest
from evertune.methods import Optimise, Phase, TaskInfo
from evertune.testing.course import spy
from evertune.testing.material import CLASSES
from evertune.testing.state import state_of
from evertune.testing.subject import Subject
from evertune.testing.suite import check, require, require_same


@check
def only_what_is_declared_trains(subject: Subject) -> None:
    """A training phase changes the parameters and the averages that it declares, and nothing else."""
    moved = subject.course.moved
    require(
        not moved,
        f"a training phase changed what it gives neither in Optimise.parameters nor in Optimise.averaged: "
        f"{', '.join(moved[:5])}. Change other state in a Solve phase.",
    )


@check
def the_backbone_stays_as_it_was(subject: Subject) -> None:
    """Not a byte of the frozen weights changes, none learns, and none is kept in the method's state."""
    learner = subject.taught
    backbone = learner.backbone
    require(digest(backbone.state_dict()) == subject.weights, "the backbone's weights are no longer what they were.")
    learns = [n for n, p in backbone.named_parameters() if p.requires_grad or p.grad is not None]
    require(not learns, f"these weights of the backbone have or want gradients: {', '.join(learns[:5])}.")
    held = {p.data_ptr() for p in backbone.parameters()}
    shared = [n for n, v in learner.method.state_dict().items() if v.numel() and v.data_ptr() in held]
    require(not shared, f"the state holds the backbone's own memory: {', '.join(shared)}.")


@check
def it_learns(subject: Subject) -> None:
    """Of new examples more than half are recognised; of the last task's alone, if the method does not remember."""
    learner = subject.after(2)
    learner.learn(subject.task(2, "f"))
    require(learner.classes == CLASSES, f"the classes are {learner.classes}, and should be {CLASSES}.")
    _require_right(subject, learner, CLASSES if learner.method.remembers else "f")


def _require_right(subject: Subject, learner: Any, names: Any) -> None:
    correct, total = subject.right(learner, names)
    require(
        correct > total / 2,
        f"{correct} of {total} new examples of the classes {', '.join(names)} were recognised among "
        f"{len(learner.classes)}. The test of other methods is the same: look at the loss, and at the options given.",
    )


@check
def the_same_seed_gives_the_same_learner(subject: Subject) -> None:
    """Learning again gives the same bits, whatever the state of the global random generators."""
    known = torch.get_rng_state(), np.random.get_state()
    try:
        torch.manual_seed(7)
        np.random.seed(7)
        learner = subject.learner()
        for task in subject.tasks()[:2]:
            learner.learn(task)
    finally:
        torch.set_rng_state(known[0])
        np.random.set_state(known[1])
    require_same(
        state_of(learner), subject.course.stages[1].state, "After the same tasks with the same seeds (draw random "
        "numbers from self.generators)",
    )  # fmt: skip


@check
def phases_are_only_announced(subject: Subject) -> None:
    """Asking for the phases of a task changes nothing: what happens happens inside a phase."""
    learner = subject.taught
    before = state_of(learner)
    next(iter(learner.method.phases(TaskInfo(index=3, present=(6,), new=(6,), known=6, size=5))), None)
    require_same(state_of(learner), before, "After phases() was asked and no phase was run")


@check
def phases_asked_again_are_the_same(subject: Subject) -> None:
    """Asked again in the midst of a task, as after a crash, phases() tells of the same phases and changes nothing."""
    learner = subject.learner()
    ran: list[Any] = []
    infos: list[TaskInfo] = []

    def note(info: TaskInfo, phase: Phase) -> None:
        infos.append(info)
        ran.append(_described(phase))

    phases = spy(learner.method, on_phase=note)
    for number, task in enumerate(subject.tasks()[:2]):
        ran.clear()
        told: list[list[Any]] = []

        def ask(_: Any, told: list[list[Any]] = told) -> None:
            # So many finished phases are skipped after a crash, and the next one is run.
            told.append([_described(p) for p in itertools.islice(phases(infos[-1]), len(told) + 2)])

        learner.learn(task, on_phase=ask)
        for finished, listed in enumerate(told, 1):
            require(
                listed == ran[: finished + 1],
                f"in task {number + 1}, asked after phase {finished} ({ran[finished - 1][1]!r}), phases() tells of "
                f"{[p[1] for p in listed]}; {[p[1] for p in ran]} ran. phases() may read only what later phases of the "
                "same task leave alone.",
            )
        require_same(
            state_of(learner), subject.course.stages[number].state, "After phases() was asked between all phases"
        )


def _described(phase: Phase) -> tuple[Any, ...]:
    return type(phase).__name__, phase.name, phase.recipe if isinstance(phase, Optimise) else None


@check
def tasks_may_be_of_any_size(subject: Subject) -> None:
    """A first task of two examples, one class at a time, three, and a single example: all are learned."""
    learner = subject.learner()
    given = [
        subject.task(0, "ab", limit=2),
        subject.task(1, "c", rows=18),
        subject.task(2, "def", rows=18),
        subject.task(3, "a", limit=1, kind="domain"),
    ]
    for task in given:
        learner.learn(task)
        scores = learner.scores(subject.examples(6))
        require(
            scores.isfinite().all(),
            f"after {task!r} some scores are not finite: is there a standard deviation, a split or a mean of too few?",
        )
    require(learner.classes == CLASSES, f"the classes are {learner.classes}, and should be {CLASSES}.")


@check
def a_new_domain_brings_no_class(subject: Subject) -> None:
    """Known classes in a new domain are learned, all of them or some, and none is added."""
    learner = subject.after(3)
    for names, seed in ((CLASSES, 5), (("b", "d"), 6)):
        before = state_of(learner)
        learner.learn(subject.task(3, names, seed=seed, kind="domain"))
        require(learner.classes == CLASSES, f"a new domain made the classes {learner.classes}.")
        width = learner.scores(subject.examples(2)).shape[1]
        require(width == len(CLASSES), f"after a new domain there are {width} scores for {len(CLASSES)} classes.")
        after = state_of(learner)
        ignored = ("tasks_seen", "random sampling")
        moved = [k for k, v in after.items() if k not in ignored and (k not in before or not torch.equal(v, before[k]))]
        require(moved, f"nothing was learned of new examples of {', '.join(names)}.")
    _require_right(subject, learner, CLASSES if learner.method.remembers else "bd")


@check
def a_new_domain_may_bring_some(subject: Subject) -> None:
    """A task may hold known classes and new ones."""
    learner = subject.after(1)
    learner.learn(subject.task(1, "bcd", seed=5, kind="domain"))
    require(learner.classes == tuple("abcd"), f"the classes are {learner.classes}, and should be a, b, c, d.")
    width = learner.scores(subject.examples(2)).shape[1]
    require(width == 4, f"there are {width} scores for 4 classes: TaskInfo.new says which are new, .present which not.")
    _require_right(subject, learner, "abcd" if learner.method.remembers else "bcd")


@check
def held_out_data_is_not_touched_while_learning(subject: Subject) -> None:
    """No example of a task's test part is read."""
    count = subject.course.tested
    require(not count, f"{count} examples of the tasks' test parts were read while learning.")
