"""Several streams as one: whose task comes when, and how the names of one data set stay apart from another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from evertune.errors import StreamError
from evertune.streams.source import Example, Source, check_names
from evertune.streams.task import Task


class Renamed(Source):
    """A source under other class names, one for each of its own: a view, no image is read or copied."""

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        self.source = source
        self.modality = source.modality
        self.name = source.name
        self.classes = check_names(classes, source.name)
        self.labels = source.labels
        self.domains, self.domain_names, self.times = source.domains, source.domain_names, source.times
        self.skipped = source.skipped

    def load(self, index: int) -> Example:
        return self.source.load(index)

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def identify(self, index: int) -> str:
        return self.source.identify(index)

    def content(self, index: int) -> bytes:
        return self.source.content(index)

    def _digest(self) -> str:
        return hashlib.sha256("\0".join((self.source.digest, *self.classes)).encode()).hexdigest()


def chained(streams: Mapping[str, Iterable[Task]], interleave: bool) -> list[Task]:
    """The tasks of all streams in one order, their names and their classes' names below the key of their stream.

    One stream after the other, or, where they ``interleave``, the first task of each, then the second of each that has
    one, and so on.

    Raises
    ------
    StreamError
        A key that is empty or holds a slash, so that what is below it could belong to another.
    """
    for key in streams:
        if not key or "/" in key:
            raise StreamError(
                f"Streams are chained under the key {key!r}, but names become 'key/class': give it a name without '/'."
            )
    queues = [[(key, task) for task in tasks] for key, tasks in streams.items()]
    turns: Iterable[Iterable[Any]] = zip_longest(*queues) if interleave else queues
    arriving = (pair for turn in turns for pair in turn if pair is not None)
    return [_below(key, task, index) for index, (key, task) in enumerate(arriving)]


def _below(key: str, task: Task, index: int) -> Task:
    """``task`` as task number ``index``, its names below ``key``."""

    def names(classes: Iterable[str]) -> tuple[str, ...]:
        return tuple(f"{key}/{name}" for name in classes)

    train = Renamed(task.train, names(task.train.classes))
    test = None if task.test is None else Renamed(task.test, names(task.test.classes))
    return Task(index, f"{key}/{task.name}", train, test, names(task.classes), task.kind)
