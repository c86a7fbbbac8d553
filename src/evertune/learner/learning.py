"""Teaching a learner one task: its classes get their indices, its phases run, and the learner remembers that."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import NDArray

import evertune
from evertune.engine import PhaseReport
from evertune.errors import ConfigError, StreamError
from evertune.learner.names import printable
from evertune.learner.update import updating
from evertune.methods import TaskInfo
from evertune.streams import Task

if TYPE_CHECKING:
    from evertune.learner.learner import Learner


def learn(
    learner: Learner,
    task: Task,
    on_phase: Callable[[PhaseReport], None] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    restart: bool = False,
    every: float | None = None,
    keep: int | None = None,
) -> list[PhaseReport]:
    """See :meth:`Learner.learn`."""
    if folder is None and (restart or every is not None or keep is not None):
        raise ConfigError("restart, every and keep are about what is kept in a folder: say which, folder=.")
    classes, info, indices = _arranged(learner, task)
    before = learner._remember()
    with updating(learner, task, before, folder, restart=restart, every=every) as progress:
        try:
            for report in learner.engine.learn(learner.method, info, task.train, indices, progress):
                if on_phase is not None:
                    on_phase(report)
        except BaseException:
            learner._recall(before)
            raise
        learner.phases = [vars(report) | {"losses": dict(report.losses)} for report in progress.reports]
        learner.history.append(_entry(learner, task, classes, progress.reports))
        learner.classes = classes
        if folder is not None:
            learner.engine.runtime.together(lambda: learner.save(folder, keep=keep))
    return progress.reports


def _arranged(learner: Learner, task: Task) -> tuple[tuple[str, ...], TaskInfo, NDArray[np.int64]]:
    """All classes once the task is learned, what the method may know of it, and the index of each of its labels."""
    names = task.classes
    new = tuple(name for name in names if name not in learner.classes)
    if task.kind == "class" and not new:
        raise StreamError(
            f"Task {task.name!r} brings no new class: {', '.join(names[:5])} are known. If its images are of a new "
            "domain, give it kind='domain'; if they are more of the same, kind='mixed'."
        )
    for name in (task.name, *new):
        if not printable(name):
            raise StreamError(f"Task {task.name!r}: the name {name!r} holds control characters: rename it.")
    classes = (*learner.classes, *new)
    if len(classes) < 2:
        raise StreamError(f"The first task has one class, {classes[0]!r}: there is nothing to tell apart yet.")
    position = {name: i for i, name in enumerate(classes)}
    indices = np.array([position.get(name, -1) for name in task.train.classes], dtype=np.int64)
    info = TaskInfo(
        index=len(learner.history),
        present=tuple(sorted(position[name] for name in names)),
        new=tuple(position[name] for name in new),
        known=len(learner.classes),
        size=len(task.train),
    )
    return classes, info, indices


def _entry(learner: Learner, task: Task, classes: tuple[str, ...], reports: list[PhaseReport]) -> dict[str, Any]:
    """What the history says of the task."""
    position = {name: i for i, name in enumerate(classes)}
    return {
        "task": task.name,
        "kind": task.kind,
        "new_classes": list(classes[len(learner.classes) :]),
        "classes": sorted(task.classes, key=position.__getitem__),
        "examples": len(task.train),
        "seconds": round(sum(report.seconds for report in reports), 3),
        "evertune": evertune.__version__,
        "pillow": PIL.__version__,  # whose resizing decides about single bits of an image
        **learner.method.describe(),
    }
