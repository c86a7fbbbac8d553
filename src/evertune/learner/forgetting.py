"""Taking classes out of a learner, and what shows that the rest is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evertune.errors import StreamError
from evertune.learner.told import task_numbers
from evertune.streams.unlabelled import Images

if TYPE_CHECKING:
    from evertune.learner.learner import Learner

PROBES = 16
"""Inputs that are made up to compare scores before and after."""


@dataclass(frozen=True)
class Forgotten:
    """What went, what stays, and what the learner answers now.

    ``classes`` and ``tasks`` that went, and the ``bytes`` freed. ``remains`` tells in a sentence each what could not be
    removed, and why scores of other classes may differ. On ``probes`` inputs, scores of the other classes differ by
    ``largest_difference`` at most, and ``same_answers`` times the best of them is the same.
    """

    classes: tuple[str, ...]
    tasks: tuple[str, ...]
    bytes: int
    remains: tuple[str, ...]
    largest_difference: float
    same_answers: int
    probes: int


def forget(learner: Learner, names: Sequence[str], task: str | int | None, examples: Images | None) -> Forgotten:
    """See :meth:`Learner.forget`."""
    gone = _indices(learner, [*names, *_classes_of(learner, task)])
    stay = [i for i in range(len(learner.classes)) if i not in gone]
    history, tasks = _without(learner.history, {learner.classes[i] for i in gone})
    expected = _scores(learner, examples)[:, stay]
    size = sum(kept.bytes for kept in learner.stored())
    state, former = learner._remember(), (learner.classes, learner.history, learner.phases)
    try:
        remains = learner.method.forget(gone)
        if history[-1]["task"] != learner.history[-1]["task"]:
            learner.phases = []  # they are of the last task
        learner.history, learner.classes = history, tuple(learner.classes[i] for i in stay)
        found = _scores(learner, examples)
    except BaseException:
        learner._recall(state)
        learner.classes, learner.history, learner.phases = former
        raise
    if learner.temperature is not None:
        known, _ = _without(former[1][: learner.temperature.tasks], {former[0][i] for i in gone})
        learner.temperature = replace(learner.temperature, tasks=len(known))
    difference = torch.where(found == expected, 0.0, (found - expected).abs())  # equal infinities too
    return Forgotten(
        classes=tuple(former[0][i] for i in gone),
        tasks=tasks,
        bytes=size - sum(kept.bytes for kept in learner.stored()),
        remains=(*remains, *_beside(learner)),
        largest_difference=float(difference.max()),
        same_answers=int((found.argmax(1) == expected.argmax(1)).sum()),
        probes=len(found),
    )


def _classes_of(learner: Learner, task: str | int | None) -> list[str]:
    """The classes of a task, which no other task may have: of those it is not kept which task brought what."""
    if task is None:
        return []
    number = int(task_numbers(learner.history, task, 1))
    own = _of(learner.history[number])
    elsewhere = {name for i, entry in enumerate(learner.history) if i != number for name in _of(entry)}
    common = [name for name in own if name in elsewhere]
    if common:
        raise StreamError(
            f"Task {learner.history[number]['task']!r} has classes in common with other tasks "
            f"({', '.join(common[:5])}), and what each task brought of them is not kept apart. Forget these classes by "
            "name: they then go from all tasks."
        )
    return own


def _indices(learner: Learner, names: Sequence[str]) -> list[int]:
    """The places of ``names`` among the classes, ascending; not of all of them."""
    if not names:
        raise StreamError("There is nothing to forget: name classes, or a task.")
    for name in names:
        if name not in learner.classes:
            close = get_close_matches(name, learner.classes, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            some = ", ".join(learner.classes[:10]) + (" …" if len(learner.classes) > 10 else "")
            known = f"{len(learner.classes)} are known: {some}" if learner.classes else "nothing is learned yet"
            raise StreamError(f"No class is called {name!r}: {hint}{known}.")
    gone = sorted({learner.classes.index(name) for name in names})
    if len(gone) == len(learner.classes):
        raise StreamError(
            f"These are all {len(gone)} classes: nothing would be left. Remove the learner's folder instead, and begin "
            "anew."
        )
    return gone


def _without(history: list[dict[str, Any]], gone: set[str]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The history without these classes, and the tasks that drop out of it because no class of theirs is left."""
    left, tasks = [], []
    for entry in history:
        names = [name for name in _of(entry) if name not in gone]
        if _of(entry) and not names:
            tasks.append(str(entry["task"]))
            continue
        new = [name for name in entry["new_classes"] if name not in gone]
        left.append(entry | {"classes": names, "new_classes": new})
    return left, tuple(tasks)


def _of(entry: dict[str, Any]) -> list[str]:
    """The classes of a task of the history."""
    return list(entry.get("classes", entry["new_classes"]))


def _beside(learner: Learner) -> list[str]:
    """What stays that is no part of the method."""
    said = []
    if learner.temperature is not None:
        said.append("The temperature was found among all classes and stays: calibrate again for probabilities.")
    if learner.engine.disk is not None:
        folder = learner.engine.disk.folder
        said.append(f"The feature cache {folder} may hold features of their examples: DiskCache.clear() removes them.")
    return said


def _scores(learner: Learner, examples: Images | None) -> Tensor:
    """Scores [N, K] of the probes, and of ``examples`` behind them."""
    scores = learner.scores(probes(learner.backbone.modality))
    return scores if examples is None else torch.cat([scores, learner.scores(examples)])


def probes(modality: str) -> Images:
    """Coarse noise [16, 8, 8, 3] as images, or 16 short texts of made-up words; always the same."""
    rng = np.random.default_rng(0)
    if modality == "image":
        return rng.integers(0, 256, (PROBES, 8, 8, 3), dtype=np.uint8)
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz"])
    return np.array([" ".join("".join(rng.choice(letters, 3)) for _ in range(4)) for _ in range(PROBES)])
