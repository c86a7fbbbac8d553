"""The subject of the checks: a method under a preset on some material, and what several checks may share."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evertune.backbones import Backbone, digest
from evertune.learner import Learner
from evertune.methods import METHODS, Method
from evertune.streams import Source, Task
from evertune.streams.task import Kind
from evertune.testing.course import Course, follow
from evertune.testing.material import CLASSES, Material
from evertune.testing.surroundings import remove

QUICK: dict[str, Any] = {
    "epochs": 2, "follow_epochs": 1, "batch_size": 8, "features": 48, "blocks": "0-2", "shared_epochs": 2,
    "shared_follow_epochs": 1, "fix_epochs": 1, "freeze_epochs": 1, "warmup": 0, "shared_warmup": 0, "tii_epochs": 20,
    "tap_epochs": 20, "centroids": 2, "draws": 16, "align_epochs": 5,
}  # fmt: skip
"""Of these options, those that a method has: small, so that learning takes no time."""

ROWS = 36
"""Examples of a task's data set, before classes are chosen: six of each class."""


class Subject:
    """What a check is given.

    Parameters
    ----------
    method
        The class; a check may ask for it by name.
    preset, options
        As :class:`evertune.Learner` takes them; ``options`` stand above the quick ones.
    material
        Images or texts.
    """

    def __init__(
        self, method: type[Method], preset: str | None, material: Material, options: Mapping[str, Any]
    ) -> None:
        self.method, self.preset, self.material = method, preset, material
        self.known = {f.name for f in dataclasses.fields(method.config_type)}
        self.options = {k: v for k, v in QUICK.items() if k in self.known} | dict(options)
        self.folder = Path(tempfile.mkdtemp(prefix="evertune-contract-"))
        weakref.finalize(self, remove, self.folder)

    def __str__(self) -> str:
        preset = f", preset {self.preset!r}" if self.preset else ""
        return f"{self.method.name} ({self.method.__qualname__}{preset}, on {self.material.name})"

    @contextmanager
    def registered(self) -> Iterator[None]:
        """The method answers to its name meanwhile, whatever did before."""
        before = METHODS.get(self.method.name)
        METHODS[self.method.name] = self.method
        try:
            yield
        finally:
            if before is None:
                del METHODS[self.method.name]
            else:
                METHODS[self.method.name] = before

    # -- data --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def backbone(self) -> Backbone:
        return self.material.backbone()

    @functools.cached_property
    def weights(self) -> str:
        """The digest of the backbone as it was made."""
        return digest(self.material.backbone().state_dict())

    def examples(self, rows: int = 12, seed: int = 1) -> NDArray[Any]:
        """Without labels; other examples than are learned unless the seed is theirs, 0."""
        return self.material.examples(rows, seed)

    def data(self, rows: int = ROWS, seed: int = 0, classes: Sequence[str] = CLASSES) -> Source:
        """Row i is of class i mod the number of classes; only with six of them can they be told apart."""
        return self.material.source(self.material.examples(rows, seed), np.arange(rows) % len(classes), classes)

    def task(
        self,
        index: int,
        names: Sequence[str],
        *,
        rows: int = ROWS,
        seed: int = 0,
        kind: Kind = "class",
        limit: int | None = None,
        classes: Sequence[str] = CLASSES,
    ) -> Task:
        """The examples of some classes; at most ``limit`` of them."""
        source = self.data(rows, seed, classes)
        return Task(index, f"task {index + 1}", source.select(source.rows_of(names)[:limit]), kind=kind)

    def tasks(self, rows: int = ROWS, classes: Sequence[str] = CLASSES) -> list[Task]:
        """Three classes, then two, then one of a single example."""
        parts = ((classes[:3], None), (classes[3:5], None), (classes[5:], 1))
        return [self.task(i, names, rows=rows, limit=limit, classes=classes) for i, (names, limit) in enumerate(parts)]

    # -- learners ----------------------------------------------------------------------------------------------------

    def learner(self, **options: Any) -> Learner:
        """A new one. Batches of the test view are small, so that a pass over a task has several."""
        settings: dict[str, Any] = {"seeds": 3, "device": "cpu", "progress": False, "eval_batch": 8}
        return Learner(self.method.name, self.backbone, preset=self.preset, **settings, **self.options | options)

    def load(self, folder: Path, **settings: Any) -> Learner:
        usual: dict[str, Any] = {"device": "cpu", "progress": False, "eval_batch": 8}
        return Learner.load(folder, self.backbone, **usual | settings)

    @functools.cached_property
    def course(self) -> Course:
        """What happened when a new learner learned the :meth:`tasks`, watched all the time; learned once."""
        return follow(self.learner, self.tasks(), self.data(12, seed=1), self.folder / "course")

    @functools.cached_property
    def again(self) -> Course:
        """The same once more: what a library does but once, when it is first used, is not seen any more."""
        return follow(self.learner, self.tasks(), self.data(12, seed=1), self.folder / "again")

    def after(self, tasks: int, **settings: Any) -> Learner:
        """A learner of its own that knows the first tasks of the course; a new one for 0."""
        return self.load(self.course.stages[tasks - 1].folder, **settings) if tasks else self.learner()

    @functools.cached_property
    def taught(self) -> Learner:
        """A learner that knows the course, for all checks that only look at it."""
        return self.after(len(self.course.stages))

    def place(self) -> Path:
        """A new folder to write in."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def right(self, learner: Learner, names: Sequence[str]) -> tuple[int, int]:
        """How many of how many new examples of these classes are recognised, among all classes seen."""
        held = self.data(30, seed=1)
        return next(iter(learner.evaluate(held.select(held.rows_of(names))).values()))
