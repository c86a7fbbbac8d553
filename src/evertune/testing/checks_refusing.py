"""What cannot be done is refused with a telling error, and leaves the learner as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from evertune.errors import ConfigError, DataError, StreamError, TrainingError
from evertune.learner import Learner
from evertune.streams import Stream, Task, open_data
from evertune.testing.course import Stage
from evertune.testing.material import CLASSES
from evertune.testing.sources import Stopped, failing
from evertune.testing.state import state_of
from evertune.testing.subject import Subject
from evertune.testing.suite import check, check_of_images, raises, require, require_same


@check
def a_failure_leaves_everything_as_it_was(subject: Subject) -> None:
    """Whatever stops a task, the learner is what it was before, and learns the task as if nothing had happened."""
    for number, task in enumerate(subject.tasks()[:2]):
        stage = subject.course.stages[number]
        learner = subject.after(number)
        before, classes, history = state_of(learner), learner.classes, list(learner.history)
        learns = [p.requires_grad for p in learner.method.parameters()]
        for where in _failures(learner, task, stage):
            require_same(state_of(learner), before, f"Task {number + 1} failed {where}; after that")
            require((learner.classes, learner.history) == (classes, history), "classes or history are others.")
            now = [p.requires_grad for p in learner.method.parameters()]
            require(now == learns, f"task {number + 1} failed {where}; after that other parameters are frozen.")
            require(not learner.method.training, "the method is left in training mode.")
        learner.learn(task)
        require_same(
            state_of(learner), stage.state, f"Task {number + 1}, learned after it had failed, unlike learned at once"
        )


def _failures(learner: Learner, task: Task, stage: Stage) -> Iterator[str]:
    """Fails at a task in one way after the other, and tells where: at an example, and after some of its phases."""
    good = len(task.train) // 2
    with raises(DataError, "cannot be read", f"example {good + 1} cannot be read"):
        learner.learn(dataclasses.replace(task, train=failing(task.train, good)))
    yield f"at example {good + 1}"
    count = len(stage.reports)
    for phases in sorted({1, (count + 1) // 2, count}):
        seen: list[Any] = []

        def stop(report: Any, seen: list[Any] = seen, phases: int = phases) -> None:
            seen.append(report)
            if len(seen) == phases:
                raise Stopped

        with raises(Stopped, "", f"learning was to stop after phase {phases}"):
            learner.learn(task, on_phase=stop)
        yield f"after its phase {stage.reports[phases - 1].name!r}"


@check
def a_divergence_is_an_error_that_leaves_everything_as_it_was(subject: Subject) -> None:
    """A rate far too high ends in a TrainingError, and the learner is what it was before the task."""
    if "rate" in subject.known:
        learner = subject.learner(rate=1e30)
        before = state_of(learner)
        with raises(TrainingError, "learning rate", "rate=1e30"):
            learner.learn(subject.tasks()[0])
        require_same(state_of(learner), before, "After a first task that diverged")
        require(learner.classes == () and learner.history == [], "a task that diverged is in classes or history.")
    if "follow_rate" in subject.known:
        learner = subject.learner(follow_rate=1e30)
        learner.learn(subject.task(0, "abc", rows=18))
        before, scores = state_of(learner), learner.scores(subject.examples(4))
        with raises(TrainingError, "learning rate", "follow_rate=1e30"):
            learner.learn(subject.tasks()[1])
        require_same(state_of(learner), before, "After a second task that diverged")
        require(torch.equal(learner.scores(subject.examples(4)), scores), "after a task diverged, scores are others.")


@check_of_images
def a_damaged_file_is_named(subject: Subject) -> None:
    """A file that breaks while it is learned from is named, and the learner is what it was."""
    folder = subject.place()
    for part in ("train", "test"):
        for i, image in enumerate(subject.examples(24, 0)):
            file = folder / part / CLASSES[i % 6] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    train, test = open_data(folder)
    first, second = Stream.class_incremental(train, test, first=3, increment=3, order_seed=None)
    learner = subject.learner()
    learner.learn(first)
    before = state_of(learner)
    victim = folder / "train" / "f" / "23.png"  # the last, so that most of the task has passed
    victim.write_bytes(victim.read_bytes()[:60])
    with raises(DataError, r"23\.png", "a file was cut short"):
        learner.learn(second)
    require_same(state_of(learner), before, "After a damaged file")


@check
def impossible_tasks_are_refused(subject: Subject) -> None:
    """One class alone at first, no new class later, names that do not print, an answer too early: StreamError."""
    learner = subject.learner()
    with raises(StreamError, "one class", "the first task has one class"):
        learner.learn(subject.task(0, "a"))
    with raises(StreamError, "learned nothing", "nothing is learned yet"):
        learner.predict(subject.examples(1))
    unprintable = ("a\tb", "c\x1b[2J")
    with raises(StreamError, "control characters", "names that would not print"):
        learner.learn(subject.task(0, unprintable, classes=unprintable))
    learner = subject.after(1)
    with raises(StreamError, "no new class", "a task of new classes has none"):
        learner.learn(subject.task(1, "ab"))
    with raises(StreamError, "never learned", "test data has classes that were not learned"):
        learner.evaluate(subject.data())


@check
def unknown_names_are_told_with_the_nearest(subject: Subject) -> None:
    """A method, preset or option that does not exist is a ConfigError, which names the nearest that does."""
    name, backbone = subject.method.name, subject.backbone
    with raises(ConfigError, f"Did you mean {name!r}", f"the method {name + 'x'!r}"):
        Learner(name + "x", backbone)
    for option in sorted(subject.known):
        with raises(ConfigError, "Did you mean", f"the option {option + 'x'!r}"):
            given: dict[str, Any] = {option + "x": 1}
            Learner(name, backbone, **given)
    preset = next(iter(subject.method.config_type.presets))
    with raises(ConfigError, f"Did you mean {preset!r}", f"the preset {preset + 'x'!r}"):
        Learner(name, backbone, preset=preset + "x")
    with raises(ConfigError, "select_best_on_test", "an option that is nothing like any"):
        Learner(name, backbone, select_best_on_test=True)
