"""What a learner's folder holds, and that nothing is lost on the way through it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from safetensors import safe_open

from evertune.backbones import digest
from evertune.learner import Learner
from evertune.streams import Source, Task
from evertune.testing.course import Stage
from evertune.testing.sources import Stopped, stopping
from evertune.testing.state import state_of
from evertune.testing.subject import Subject
from evertune.testing.suite import check, raises, require, require_same


@check
def a_kept_learner_predicts_and_goes_on_the_same(subject: Subject) -> None:
    """Saved and loaded after every task, a learner predicts and learns bit for bit as one that never was."""
    stages, probe = subject.course.stages, subject.data(12, seed=1)
    for number, stage in enumerate(stages, 1):
        learner = subject.load(stage.folder)
        require_same(state_of(learner), stage.state, f"Loaded after task {number}")
        parts = learner.engine.scores(learner.method, probe)
        unequal = [name for name in stage.parts if not torch.equal(parts[name], stage.parts[name])]
        require(
            not unequal and parts.keys() == stage.parts.keys(),
            f"loaded after task {number}, the scores are others ({', '.join(unequal)}): all that they depend on must "
            "be in parameters and buffers, or be made again in restored().",
        )
        require(learner.classes == stage.classes, f"loaded after task {number}, the classes are {learner.classes}.")
        if number < len(stages):
            learner.learn(subject.tasks()[number])
            require_same(state_of(learner), stages[number].state, f"Loaded after task {number}, gone on with the next")
    names = [entry["task"] for entry in learner.history]
    require(names == ["task 1", "task 2", "task 3"], f"the history tells of {names}.")


@check
def what_is_kept_is_json_and_safetensors(subject: Subject) -> None:
    """The folder holds the method's tensors and generators in safetensors, all else in JSON, and no backbone weight."""
    folder = subject.course.stages[2].folder
    odd = [p.name for p in folder.iterdir() if p.suffix not in (".json", ".safetensors") and p.name != ".lock"]
    require(not odd, f"the learner's folder holds {', '.join(odd)}.")
    content = json.loads((folder / "learner.json").read_text(encoding="utf-8"))
    require(content["method"] == subject.method.name, f"learner.json says it is of {content['method']!r}.")
    learner = subject.load(folder)
    # A fresh norm's ones are anyone's.
    weights = {digest({"": p}) for p in learner.backbone.state_dict().values() if p.unique().numel() > 1}
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
            kept = [n for n in tensors.keys() if digest({"": tensors.get_tensor(n)}) in weights]  # noqa: SIM118
            require(not kept, f"weights of the backbone are kept: {', '.join(kept)}.")
    wanted = {*learner.method.state_dict(), "random.init", "random.sampling"}
    require(names == wanted, f"the file holds other tensors than the state: {', '.join(sorted(names ^ wanted))}.")


@check
def what_is_kept_does_not_grow_with_examples(subject: Subject) -> None:
    """Statistics are kept instead of data: from half the examples, tensors of the same sizes."""
    learner = subject.learner()
    for task in subject.tasks(rows=18)[:2]:
        learner.learn(task)
    few, many = state_of(learner), subject.course.stages[1].state
    grown = [name for name in many if name not in few or few[name].shape != many[name].shape]
    require(
        not grown and few.keys() == many.keys(),
        f"learned from more examples, these tensors have other sizes: {', '.join(grown[:5])}.",
    )


NAMES = (
    " naïve “café” ☕ 東京 🗼", "a, b; c", "say \"hi\", it's C:\\x", "long " * 80, "007", "7",
    "None", "1e3", "../../learner.json", "مرحبا<b>&amp;",
)  # fmt: skip
"""Names of classes that a careless writer of files, tables or JSON would lose."""


@check
def names_come_back_as_given(subject: Subject) -> None:
    """Names of classes and tasks change nothing of what is learned and come back exactly, from a folder too."""
    learner = subject.learner()
    for number, task in enumerate(subject.tasks(classes=NAMES[:6])):
        learner.learn(dataclasses.replace(task, name=NAMES[-1 - number], index=7))
    require_same(state_of(learner), subject.course.stages[2].state, "Learned under other names of tasks and classes")
    learner.learn(subject.task(3, NAMES[6:], rows=20, classes=NAMES))
    x, folder = subject.examples(), subject.place()
    learner.save(folder)
    for each in (learner, subject.load(folder)):
        require(each.classes == NAMES, f"the classes came back as {each.classes}.")
        taught = [(entry["task"], *entry["new_classes"]) for entry in each.history]
        parts = (NAMES[:3], NAMES[3:5], NAMES[5:6])
        given = [(NAMES[-1 - i], *part) for i, part in enumerate(parts)] + [("task 4", *NAMES[6:])]
        require(taught == given, f"the history came back as {taught}.")
        named = [NAMES[i] for i in each.scores(x).argmax(1).tolist()]
        require(each.predict(x) == named, "the predicted names are not those that were given.")
        _, total = next(iter(each.evaluate(subject.data(20, 1, NAMES)).values()))
        require(total == 20, f"{total} of 20 examples with these names were evaluated.")


# -- stopped and gone on -----------------------------------------------------------------------------------------------


@check
def a_stopped_task_goes_on_the_same(subject: Subject) -> None:
    """Stopped between two phases or in the midst of one, learning goes on there and ends bit for bit the same."""
    for number, task in enumerate(subject.tasks()[:2]):
        stage = subject.course.stages[number]
        for where, after, phases in _stops(stage)[: None if number else 1]:
            folder = subject.place()
            subject.after(number).save(folder)
            _stop(subject.load(folder), task, folder, after, phases, where)
            learner = subject.load(folder)
            learner.learn(task, folder=folder)
            require_same(state_of(learner), stage.state, f"Task {number + 1} stopped {where} and gone on with")
            kept = subject.load(folder)
            require_same(state_of(kept), stage.state, f"Task {number + 1} stopped {where}, gone on with and loaded")


def _stops(stage: Stage) -> list[tuple[str, int | None, int]]:
    """Where to stop a task: in words, after how many examples read or (None) how many finished phases.

    In the midst of the last phase of each kind that reads data (three quarters through it: of two epochs, in the
    second), and after the middle one of all phases.
    """
    begins = [0, *stage.reads]
    readers = {r.kind: i for i, r in enumerate(stage.reports) if stage.reads[i] > begins[i]}
    stops: list[tuple[str, int | None, int]] = [
        (f"in the midst of {stage.reports[i].name!r}", (begins[i] + 3 * stage.reads[i]) // 4, i)
        for _, i in sorted(readers.items(), reverse=True)  # training first
    ]
    middle = (len(stage.reports) - 1) // 2
    return [*stops, (f"after {stage.reports[middle].name!r}", None, middle + 1)]


def _stop(learner: Learner, task: Task, folder: Any, after: int | None, phases: int, where: str) -> None:
    """Learn ``task``, kept in ``folder`` at every step, until it is stopped."""
    ended: list[Any] = []

    def stop(report: Any) -> None:
        ended.append(report)
        if after is None and len(ended) == phases:
            raise Stopped

    train: Source = task.train if after is None else stopping(task.train, after)
    with raises(Stopped, "", f"learning was to stop {where}"):
        learner.learn(dataclasses.replace(task, train=train), stop, folder=folder, every=0)
