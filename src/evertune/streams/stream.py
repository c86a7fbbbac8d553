"""A stream: tasks in the order in which they arrive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, overload

import numpy as np

from evertune.errors import StreamError
from evertune.streams import plan
from evertune.streams.chain import chained
from evertune.streams.groups import class_groups
from evertune.streams.joined import joined
from evertune.streams.longtail import Tail, long_tailed
from evertune.streams.online import chunks
from evertune.streams.opening import Options
from evertune.streams.order import arrange, few_per_class, first_per_class
from evertune.streams.refusals import require_data, require_domains, require_new
from evertune.streams.source import Source
from evertune.streams.task import Kind, Task, require_seen, some, warn_if_alike, warn_if_single
from evertune.streams.times import rows_by_time

PLAIN = {"kind", "first", "increment", "order_seed", "order", "train_per_class"}
"""Settings of streams whose order of arrival is told by their classes and tasks."""

TASK_COUNT = "task_count"
"""The setting ``tasks`` in a description, whose ``tasks`` are what became of it."""


class Stream(Sequence[Task]):
    """Tasks in order of arrival, all of one kind.

    Of kind ``"class"`` every task brings new classes, and each class belongs to one task; of kind ``"domain"`` a task
    is a domain; of kind ``"mixed"`` a task brings anything: new classes, new domains, more of what is known. A task's
    own test examples, of classes seen so far, are one group of the accuracy matrix. ``classes`` holds all names in
    order of arrival, ``settings`` what :func:`evertune.streams.make_stream` makes the stream again from. ``merged`` are
    the tasks that :meth:`joint` put together, and empty otherwise.

    Made from one data set by :meth:`class_incremental`, :meth:`domain_incremental`, :meth:`class_and_domain`,
    :meth:`more_data`, :meth:`by_time` or :meth:`blurry`; from folders or tasks by :meth:`of`; from other streams by
    :meth:`chain`, :meth:`online` and :meth:`joint`.
    """

    merged: tuple[Task, ...] = ()

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
                require_new(task, owner)
            for name in task.classes:
                owner.setdefault(name, task)
            if task.test is not None:
                require_seen(task.test, owner, f"Task {task.name!r}")
        self.classes = tuple(owner)
        if len(self.classes) < 2:
            raise StreamError(
                f"The whole stream has one class, {self.classes[0]!r}, so there is nothing to tell apart. "
                f"Add {self.tasks[0].train.modality}s of another class ('other' will do)."
            )

    @classmethod
    def class_incremental(
        cls,
        train: Source,
        test: Source | None,
        *,
        first: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        groups: Sequence[Sequence[str]] | None = None,
        group_by: str | None = None,
        order_seed: int | None = 1993,
        order: Sequence[str] | None = None,
        train_per_class: int | None = None,
        shots: int | None = None,
        shot_seed: int = 0,
        imbalance: float | None = None,
        imbalance_seed: int = 0,
        imbalance_order: Tail = "shuffled",
    ) -> Stream:
        """Classes arrive in groups, each class in one task.

        Parameters
        ----------
        first, increment : ``first`` classes, then ``increment`` at a time; the last group may be smaller. One of them
            stands for both; without any grouping a tenth of the classes arrives at a time, at least 2.
        sizes : the number of classes of every task, instead.
        groups : the names of the classes of every task, instead; they are the order, too.
        group_by : ``"prefix"`` makes a task of all classes "group/name" with the same group, instead; ``order`` and
            ``order_seed`` then put groups in order, with None by first appearance.
        order_seed : the field's rule, ``numpy.random.RandomState(seed).permutation`` over the n classes that have
            training examples; None keeps their own order.
        order : the names of all classes in order of arrival; it takes the place of ``order_seed``.
        train_per_class : use only the first so many training examples of each class, in file order.
        shots : few-shot learning: tasks after the first have so many examples of each class, drawn by ``shot_seed``
            class by class.
        imbalance : a long tail: the largest class has so many times the training examples of the smallest; see
            :func:`evertune.streams.long_tailed` for ``imbalance_seed`` and ``imbalance_order`` ("descending" is by
            order of arrival). Test data stays as it is.
        """
        require_data(train, test)
        cut, settings = class_groups(
            train.present(),
            train.name,
            first=first,
            increment=increment,
            sizes=sizes,
            groups=groups,
            group_by=group_by,
            order=order,
            order_seed=order_seed,
        )
        settings["kind"] = "class"
        if groups is None:
            settings |= _ordered(order, order_seed)
        settings["train_per_class"] = train_per_class
        data = first_per_class(train, train_per_class)
        if imbalance is not None:
            if shots is not None:
                raise StreamError("shots and imbalance both say how many examples classes have: give one of them.")
            arrival = [name for group in cut for name in group.classes]
            data = long_tailed(data, imbalance, seed=imbalance_seed, order=imbalance_order, classes=arrival)
            settings |= {
                "imbalance": imbalance, "imbalance_seed": imbalance_seed, "imbalance_order": imbalance_order,
            }  # fmt: skip
        warn_if_single(data)
        tasks = []
        for index, group in enumerate(cut):
            part: Source = data.select(data.rows_of(group.classes))
            if shots is not None and index:
                part = few_per_class(part, shots, shot_seed)
            tested = None if test is None else _part(test, group.classes)
            tasks.append(Task(index, group.name, part, tested, group.classes, "class"))
        if shots is not None:
            settings |= {"shots": shots, "shot_seed": shot_seed}
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
        require_domains(train, test)
        tasks = []
        for index, name in enumerate(arrange(plan.domains_of(train), order, order_seed, "domains")):
            rows = plan.in_domain(train, np.arange(len(train)), name)
            tests = plan.NONE if test is None else plan.in_domain(test, np.arange(len(test)), name)
            tested = test.select(tests) if test is not None and len(tests) else None
            tasks.append(Task(index, name, train.select(rows), tested, kind="domain"))
        warn_if_single(train)
        settings = {"kind": "domain", **_ordered(order, order_seed)}
        return cls(tasks, data={"train": train, "test": test}, settings=settings)

    @classmethod
    def class_and_domain(
        cls,
        train: Source,
        test: Source | None,
        *,
        first: int | None = None,
        increment: int | None = None,
        sizes: Sequence[int] | None = None,
        order_seed: int | None = 1993,
        order: Sequence[str] | None = None,
        domain_seed: int | None = None,
        domain_order: Sequence[str] | None = None,
        arrival: plan.Arrival = "diagonal",
        arrival_seed: int = 0,
    ) -> Stream:
        """New classes and new domains in turn: a task is a group of classes in one domain.

        Classes are grouped as in :meth:`class_incremental`, domains ordered as in :meth:`domain_incremental`.

        Parameters
        ----------
        arrival : ``"diagonal"``: the first group in the first domain; the second group there, the first group in the
            second domain; the third group in the first domain, and so on. ``"shuffled"``: in an order drawn by
            ``arrival_seed`` (the versatile setting of Park et al., ECCV 2024).
        """
        require_domains(train, test)
        groups, settings = class_groups(
            train.present(),
            train.name,
            first=first,
            increment=increment,
            sizes=sizes,
            order=order,
            order_seed=order_seed,
        )
        domains = arrange(plan.domains_of(train), domain_order, domain_seed, "domains")
        settings |= {"kind": "mixed", **_ordered(order, order_seed), "arrival": arrival}
        settings["domain_seed"] = None if domain_order is not None else domain_seed
        if domain_order is not None:
            settings["domain_order"] = list(domain_order)
        if arrival == "shuffled":
            settings["arrival_seed"] = arrival_seed
        return cls._planned(train, test, plan.grid(train, test, groups, domains, arrival, arrival_seed), settings)

    @classmethod
    def more_data(
        cls,
        train: Source,
        test: Source | None,
        *,
        tasks: int | None = None,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
    ) -> Stream:
        """More data of the same classes: the examples of each class are dealt over the tasks (new instances).

        Parameters
        ----------
        tasks : so many equal parts; 5 unless ``fractions`` says how much of each class every task gets.
        seed : which examples; drawn class by class.

        All test examples belong to the first task, which has every class: how accuracy on them grows is one column.
        """
        require_data(train, test)
        if fractions is None:
            tasks = 5 if tasks is None else tasks
            shares = [1 / max(tasks, 1)] * tasks
        else:
            if tasks is not None:
                raise StreamError("tasks and fractions both say how many tasks there are: give one of them.")
            shares = list(fractions)
        said: dict[str, Any] = {"tasks": tasks} if fractions is None else {"fractions": shares}
        settings = {"kind": "data", **said, "deal_seed": seed}
        return cls._planned(train, test, plan.shared_out(train, test, shares, seed), settings)

    @classmethod
    def by_time(
        cls,
        train: Source,
        test: Source | None,
        *,
        tasks: int | None = None,
        edges: Sequence[float | str] | None = None,
    ) -> Stream:
        """Training examples in order of their times, cut into periods; a period may bring new and old classes.

        Parameters
        ----------
        tasks : so many periods of about equal counts; examples of one time stay together.
        edges : when every period but the first begins: numbers as the times are, or dates such as "2024-05-01".

        The test examples of a class belong to the period in which it appears first.
        """
        require_data(train, test)
        periods = rows_by_time(train, tasks, edges)
        said: dict[str, Any] = {"tasks": tasks} if edges is None else {"edges": list(edges)}
        return cls._planned(train, test, plan.first_tested(train, test, periods), {"kind": "time", **said})

    @classmethod
    def blurry(
        cls,
        train: Source,
        test: Source | None,
        *,
        tasks: int = 5,
        disjoint: float = 0.5,
        blur: float = 0.1,
        seed: int = 0,
        order_seed: int | None = 1993,
        order: Sequence[str] | None = None,
    ) -> Stream:
        """Tasks without sharp borders: i-Blurry-N-M of Koh et al. (ICLR 2022).

        Parameters
        ----------
        disjoint : share N of the classes that are in one task only.
        blur : share M of every other class's examples that is moved out of its major task, evenly over the others.
        seed : which examples are moved, drawn class by class.
        order_seed, order : of the classes, as in :meth:`class_incremental`; they are dealt to the tasks in turn, the
            disjoint ones first.

        A class's test examples belong to its major task.
        """
        require_data(train, test)
        names = arrange(train.present(), order, order_seed, "classes")
        parts = plan.blurry(train, test, names, tasks, disjoint, blur, seed)
        settings = {"kind": "blurry", "tasks": tasks, "disjoint": disjoint, "blur": blur, "blur_seed": seed}
        return cls._planned(train, test, parts, settings | _ordered(order, order_seed))

    @classmethod
    def online(cls, stream: Stream, *, chunk: int = 64, seed: int | None = 0, boundary: float = 0.0) -> Stream:
        """``stream`` in small chunks, each a task of its own: training examples in order of arrival, seen once.

        The first chunk goes on until two classes were seen, since one alone cannot be learned; the last may be small.
        The test examples of a class belong to the chunk in which it first appears (in a stream of domains, in which it
        first appears in its domain); most chunks have none. For a single pass give the method ``epochs=1``.

        Parameters
        ----------
        seed : shuffles the examples within each task; None keeps the order of their rows.
        boundary : a share of the tasks, up to 0.5, over which the border between two of them is blurred: there,
            examples of both change places with a probability that falls linearly with the distance from the border.
        """
        settings = {**stream.settings, "online": chunk, "online_seed": seed, "boundary": boundary}
        return cls(chunks(stream.tasks, chunk, seed, boundary), data=stream.data, settings=settings)

    def joint(self) -> Stream:
        """All tasks as one: every example is there at once, which is the mark above what learns task by task.

        To a method this is a first task like any other, so all of them can be measured so. With the same epochs they
        take as many steps as over all tasks together, rounding aside.

        Raises
        ------
        StreamError
            The stream was cut into chunks; :meth:`online` can cut the joint one.
        """
        if "online" in self.settings:
            raise StreamError("This stream was cut into chunks: put its tasks together first, then cut what comes out.")
        if self.merged:
            return self
        tests = [task.test for task in self if task.test is not None]
        train, test = joined([task.train for task in self]), joined(tests) if tests else None
        task = Task(0, "joint", train, test, self.classes, self.kind)
        stream = Stream([task], data=self.data, settings={**self.settings, "joint": True})
        stream.merged = self.tasks
        return stream

    @classmethod
    def of(cls, *tasks: Task | str | os.PathLike[str], kind: Kind = "mixed", **options: Unpack[Options]) -> Stream:
        """Tasks, or folders of class folders, in order; later the same stream with more of them goes on.

        ``evertune.run`` on a run folder that knows the first tasks learns the new ones. Every task needs a name of its
        own, which is the folder's. ``kind`` and ``options`` as in :meth:`Task.from_folder`.
        """
        made = [
            replace(task, index=index, kind=kind)
            if isinstance(task, Task)
            else Task.from_folder(task, index=index, kind=kind, **options)
            for index, task in enumerate(tasks)
        ]
        names = [task.name for task in made]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise StreamError(f"Two tasks are called {some(twice)}: a task is known by its name, so give each its own.")
        stream = cls(made)
        known: list[str] = []
        for task in made:
            warn_if_alike(task, known)
            known += task.classes
        return stream

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
            No streams, one whose classes come again, or a key that is empty or holds a slash.
        """
        if not streams:
            raise StreamError("There are no streams to chain; give at least one, by name.")
        for key, stream in streams.items():
            if stream.kind != "class":
                what = "domain-incremental" if stream.kind == "domain" else f"of kind {stream.kind!r}"
                raise StreamError(
                    f"Stream {key!r} is {what}: its classes come again in every task. Only "
                    f"class-incremental streams can be chained."
                )
        data = {f"{key}/{part}": source for key, stream in streams.items() for part, source in stream.data.items()}
        settings = {
            "interleave": interleave,
            "order_seed": {key: stream.settings.get("order_seed") for key, stream in streams.items()},
            "streams": {
                key: {name: value for name, value in stream._told().items() if name != "kind"}
                for key, stream in streams.items()
            },
        }
        return cls(chained(streams, interleave), data=data, settings=settings)

    @classmethod
    def _planned(
        cls, train: Source, test: Source | None, parts: Sequence[plan.Part], settings: Mapping[str, Any]
    ) -> Stream:
        tasks = [part.task(index, train, test) for index, part in enumerate(parts)]
        return cls(tasks, data={"train": train, "test": test}, settings=settings)

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
            **self._told(),
            "data": {part: source and source.digest for part, source in self.data.items()},
            "tasks": [_describe(task) for task in self.tasks],
        }

    def _told(self) -> dict[str, Any]:
        """The settings without the order of a plain stream, which the description's classes or tasks are in.

        The number of tasks that was asked for makes way for the tasks themselves.
        """
        plain = set(self.settings) <= PLAIN
        told = {name: value for name, value in self.settings.items() if not (plain and name == "order")}
        if "tasks" in told:
            told[TASK_COUNT] = told.pop("tasks")
        return told

    def __repr__(self) -> str:
        if self.merged:
            return f"<Stream of {len(self.merged)} tasks as one, {len(self.classes)} classes>"
        how = "mixed" if self.kind == "mixed" else f"{self.kind}-incremental"
        return f"<Stream of {len(self)} tasks, {how}, {len(self.classes)} classes>"


def _describe(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "classes": list(task.classes),
        "train": {"size": len(task.train), "digest": task.train.digest},
        "test": None if task.test is None else {"size": len(task.test), "digest": task.test.digest},
    }


def _ordered(order: Sequence[str] | None, order_seed: int | None) -> dict[str, Any]:
    return {"order_seed": order_seed} if order is None else {"order_seed": None, "order": list(order)}


def _part(source: Source, classes: Sequence[str]) -> Source | None:
    rows = source.rows_of(classes)
    return source.select(rows) if len(rows) else None
