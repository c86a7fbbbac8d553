"""A stream: tasks in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from evertune.errors import StreamError, nearest
from evertune.streams.chain import chained
from evertune.streams.source import Source
from evertune.streams.task import Kind, Task, require_seen, some, warn_if_single


class Stream(Sequence[Task]):
    """Tasks in order of arrival, all of one kind.

    Made from one data set by :meth:`class_incremental` or :meth:`domain_incremental`, from several by :meth:`chain`, or
    from tasks. Each class of a class-incremental stream belongs to one task. ``classes`` holds all names in order of
    arrival.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        data: Mapping[str, Source | None] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise StreamError("A stream needs at least one task.")
        self.kind: Kind = self.tasks[0].kind
        self.data = dict(data or {})  # the whole sources that the tasks were cut from, for the description
        self.settings = dict(settings or {})
        owner: dict[str, Task] = {}
        for task in self.tasks:
            if task.kind != self.kind:
                raise StreamError(
                    f"Task {task.name!r} is of kind {task.kind!r} in a stream of kind {self.kind!r}; all must agree."
                )
            if self.kind == "class":
                _require_new(task, owner)
            for name in task.classes:
                owner.setdefault(name, task)
            if task.test is not None:
                require_seen(task.test, tuple(owner), f"Task {task.name!r}")
        self.classes = tuple(owner)
        if len(self.classes) < 2:
            raise StreamError(
                f"The whole stream has one class, {self.classes[0]!r}, so there is nothing to tell apart. "
                f"Add images of another class (a folder 'other' will do)."
            )

    @classmethod
    def class_incremental(
        cls,
        train: Source,
        test: Source | None,
        *,
        first: int,
        increment: int,
        order_seed: int | None = 1993,
        order: Sequence[str] | None = None,
        train_per_class: int | None = None,
    ) -> Stream:
        """Classes arrive in groups: ``first`` of them, then ``increment`` at a time; the last group may be smaller.

        Parameters
        ----------
        order_seed : the field's rule, ``numpy.random.RandomState(seed).permutation`` over the n classes that have
            training examples; None keeps their own order.
        order : the names of all classes in order of arrival; it takes the place of ``order_seed``.
        train_per_class : use only the first so many training examples of each class, in file order.
        """
        _require_two(train)
        if test is not None:
            require_seen(test, train.present(), train.name)
        names = _arrange(train.present(), order, order_seed, "classes")
        for option, value in (("first", first), ("increment", increment)):
            if not 1 <= value <= len(names):
                raise StreamError(
                    f"{option} is {value}; {train.name} has {len(names)} classes, so it must be 1 to {len(names)}."
                )
        rows = _first_per_class(train, train_per_class)
        data = train if len(rows) == len(train) else train.select(rows)
        warn_if_single(data)
        starts = [0, *range(first, len(names), increment)]
        tasks = []
        for index, (start, end) in enumerate(zip(starts, [*starts[1:], len(names)], strict=True)):
            group = names[start:end]
            tested = None if test is None else _part(test, test.rows_of(group))
            tasks.append(Task(index, f"task {index + 1}", data.select(data.rows_of(group)), tested, group, "class"))
        settings = {
            "first": first,
            "increment": increment,
            "order_seed": None if order is not None else order_seed,
            "train_per_class": train_per_class,
        }
        return cls(tasks, data={"train": train, "test": test}, settings=settings)

    @classmethod
    def domain_incremental(
        cls,
        train: Source,
        test: Source | None,
        *,
        order: Sequence[str] | None = None,
        order_seed: int | None = None,
    ) -> Stream:
        """Domains arrive one at a time, each with its classes.

        They come in the source's order, in that of ``order`` (all their names), or permuted by ``order_seed`` as
        classes are.
        """
        _require_two(train)
        if train.domains is None:
            raise StreamError(
                f"{train.name} has no domains. Give an index.csv with a column 'domain', folders "
                f"<domain>/<class>/<file> opened with a domain level, or an array of domains."
            )
        if test is not None and test.domains is None:
            raise StreamError(f"{test.name} has no domains, but its training data has; give both or neither.")
        if test is not None:
            require_seen(test, train.present(), train.name)
        known = _domains_of(train)
        if test is not None:
            unseen = [name for name in _domains_of(test) if name not in known]
            if unseen:
                raise StreamError(f"{test.name} holds domains that training never saw: {some(unseen)}. Remove them.")
        tasks = []
        for index, name in enumerate(_arrange(known, order, order_seed, "domains")):
            tested = None if test is None else _part(test, _domain_rows(test, name))
            tasks.append(Task(index, name, train.select(_domain_rows(train, name)), tested, kind="domain"))
        warn_if_single(train)
        settings = {"order_seed": None if order is not None else order_seed}
        return cls(tasks, data={"train": train, "test": test}, settings=settings)

    @classmethod
    def chain(cls, streams: Mapping[str, Stream], *, interleave: bool = False) -> Stream:
        """Class-incremental streams of several data sets as one, each class and task named "key/name".

        So "cat" of two data sets are two classes. Nothing is copied.

        Parameters
        ----------
        streams : streams by key, in order of arrival.
        interleave : the first task of each stream, then the second of each that has one …, not stream after stream.

        Raises
        ------
        StreamError
            No streams, one of domains, or a key that is empty or holds a slash.
        """
        if not streams:
            raise StreamError("There are no streams to chain; give at least one, by name.")
        for key, stream in streams.items():
            if stream.kind != "class":
                raise StreamError(
                    f"Stream {key!r} is {stream.kind}-incremental: its classes come again in every task. Only "
                    f"class-incremental streams can be chained."
                )
        data = {f"{key}/{part}": source for key, stream in streams.items() for part, source in stream.data.items()}
        settings = {
            "interleave": interleave,
            "order_seed": {key: stream.settings.get("order_seed") for key, stream in streams.items()},
            "streams": {key: stream.settings for key, stream in streams.items()},
        }
        return cls(chained(streams, interleave), data=data, settings=settings)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, index: int | slice) -> Task | tuple[Task, ...]:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)

    def description(self) -> dict[str, Any]:
        """All that decides which example arrives when, ready for JSON. Reads the data once, for its digests."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            **self.settings,
            "data": {part: source and source.digest for part, source in self.data.items()},
            "tasks": [_describe(task) for task in self.tasks],
        }

    def __repr__(self) -> str:
        return f"<Stream of {len(self)} tasks, {self.kind}-incremental, {len(self.classes)} classes>"


def _describe(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "classes": list(task.classes),
        "train": {"size": len(task.train), "digest": task.train.digest},
        "test": None if task.test is None else {"size": len(task.test), "digest": task.test.digest},
    }


def _require_new(task: Task, owner: Mapping[str, Task]) -> None:
    known = [name for name in task.classes if name in owner]
    if known and len(known) == len(task.classes):
        raise StreamError(
            f"Task {task.name!r} brings no new class: {some(known)} came before. "
            f"Leave it out, or make a stream of kind 'domain' if its images are of a new domain."
        )
    if known:
        others = sorted({owner[name].name for name in known})
        raise StreamError(
            f"The same class in two tasks: {some(known)} of task {task.name!r} came before, in {some(others)}. "
            f"Each class of a class-incremental stream belongs to one task."
        )


def _require_two(train: Source) -> None:
    present = train.present()
    if not present:
        raise StreamError(f"{train.name} has no training examples.")
    if len(present) == 1:
        raise StreamError(
            f"{train.name} has one class, {present[0]!r}, so there is nothing to tell apart. "
            f"Add images of another class (a folder 'other' will do); "
            f"to teach one more class to a learner, use Task.from_folder."
        )


def _arrange(known: tuple[str, ...], order: Sequence[str] | None, order_seed: int | None, what: str) -> tuple[str, ...]:
    """The names in the given order, in that of the seed, or as they are."""
    if order is None:
        if order_seed is None:
            return known
        return tuple(known[i] for i in np.random.RandomState(order_seed).permutation(len(known)))
    unknown = [name for name in order if name not in set(known)]
    if unknown:
        raise StreamError(f"The order of {what} names {unknown[0]!r}. {nearest(str(unknown[0]), known)}")
    twice = [name for name in dict.fromkeys(order) if list(order).count(name) > 1]
    if twice:
        raise StreamError(f"The order of {what} names {some(twice)} more than once.")
    missing = [name for name in known if name not in set(order)]
    if missing:
        raise StreamError(
            f"The order of {what} leaves out {some(missing)}. Name all of them, or select their rows away first."
        )
    return tuple(order)


def _first_per_class(train: Source, count: int | None) -> NDArray[np.int64]:
    if count is None:
        return np.arange(len(train))
    if count < 1:
        raise StreamError(f"train_per_class is {count}; it must be at least 1, or None for all.")
    by_class = (np.flatnonzero(train.labels == label)[:count] for label in range(len(train.classes)))
    return np.sort(np.concatenate(list(by_class)))


def _part(source: Source, rows: NDArray[np.int64]) -> Source | None:
    return source.select(rows) if len(rows) else None


def _domains_of(source: Source) -> tuple[str, ...]:
    return tuple(source.domain_names[i] for i in np.unique(source.domains)) if source.domains is not None else ()


def _domain_rows(source: Source, name: str) -> NDArray[np.int64]:
    if source.domains is None or name not in source.domain_names:
        return np.zeros(0, np.int64)
    return np.flatnonzero(source.domains == source.domain_names.index(name))
