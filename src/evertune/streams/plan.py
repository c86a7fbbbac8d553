"""Which rows of the data make which task: the rules of streams whose tasks mix old classes with new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from evertune.errors import StreamError, nearest
from evertune.streams.groups import ClassGroup
from evertune.streams.order import class_generator, require_seed, rows_by_class
from evertune.streams.source import IntArray, Source
from evertune.streams.task import Task

Arrival = Literal["diagonal", "shuffled"]
NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Part:
    """A task before it is cut: rows of the training and of the test data, and its classes in order of arrival."""

    name: str
    train: IntArray
    test: IntArray
    classes: tuple[str, ...]

    def task(self, index: int, train: Source, test: Source | None) -> Task:
        tested = test.select(self.test) if test is not None and len(self.test) else None
        return Task(index, self.name, train.select(self.train), tested, self.classes, "mixed")


def grid(
    train: Source,
    test: Source | None,
    groups: Sequence[ClassGroup],
    domains: Sequence[str],
    arrival: Arrival,
    seed: int,
) -> list[Part]:
    """A task for every group of classes in every domain, tested on the same classes in the same domain.

    ``diagonal`` starts with the first group in the first domain, then comes the next group there, the first group in
    the next domain, and so on along the diagonals of the table: tasks bring new classes and new domains in turn.
    ``shuffled`` puts the tasks in an order drawn by ``seed``. Where a domain has none of a group, there is no task.
    """
    if arrival not in get_args(Arrival):
        raise StreamError(f"Tasks cannot arrive in the order {arrival!r}. {nearest(str(arrival), get_args(Arrival))}")
    cells = [(d, g) for d in range(len(domains)) for g in range(len(groups))]
    cells.sort(key=lambda cell: (sum(cell), cell[0]))
    if arrival == "shuffled":
        require_seed(seed, "arrival_seed")
        cells = [cells[i] for i in np.random.default_rng(seed).permutation(len(cells))]
    own = [train.rows_of(group.classes) for group in groups]
    tests = [NONE if test is None else test.rows_of(group.classes) for group in groups]
    parts, cut = [], 0
    for d, g in cells:
        rows = in_domain(train, own[g], domains[d])
        if not len(rows):
            continue
        tested = NONE if test is None else in_domain(test, tests[g], domains[d])
        cut += len(tested)
        present = set(train.select(rows).present())
        classes = tuple(name for name in groups[g].classes if name in present)
        parts.append(Part(f"{domains[d]} {g + 1}", rows, tested, classes))
    if test is not None and cut < len(test):
        raise StreamError(
            f"{test.name}: {len(test) - cut} test examples are of classes that have no training example in their "
            f"domain, so they belong to no task. Leave them out."
        )
    return parts


def shared_out(train: Source, test: Source | None, fractions: Sequence[float], seed: int) -> list[Part]:
    """The examples of every class dealt over the tasks: task t gets its fraction of each, drawn class by class.

    Counts are rounded up as they add up, so that the first task has every class. All test examples belong to it.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if len(shares) < 2 or not np.isfinite(shares).all() or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise StreamError(
            f"fractions are {', '.join(f'{share:g}' for share in shares)}; at least two are needed, all above 0, "
            f"and they add up to 1."
        )
    ends = np.cumsum(shares)[:-1]
    pieces = [np.split(r, np.ceil(ends * len(r) - 1e-6).astype(int)) for r in rows_by_class(train, seed).values()]
    chosen = [np.sort(np.concatenate(rows)) for rows in zip(*pieces, strict=True)]
    empty = [str(t + 1) for t, rows in enumerate(chosen) if not len(rows)]
    if empty:
        raise StreamError(
            f"{train.name}: no examples are left for task {', '.join(empty)}; ask for fewer tasks or larger fractions."
        )
    return first_tested(train, test, [(f"part {t + 1}", rows) for t, rows in enumerate(chosen)])


def first_tested(train: Source, test: Source | None, parts: Sequence[tuple[str, IntArray]]) -> list[Part]:
    """Parts whose tests are those of the classes that are new in them, each class tested once."""
    seen: set[str] = set()
    found = []
    for name, rows in parts:
        classes = train.select(rows).present()
        tested = NONE if test is None else test.rows_of([c for c in classes if c not in seen])
        seen.update(classes)
        found.append(Part(name, rows, tested, classes))
    return found


def blurry(
    train: Source,
    test: Source | None,
    names: Sequence[str],
    tasks: int,
    disjoint: float,
    blur: float,
    seed: int,
) -> list[Part]:
    """i-Blurry-N-M of Koh et al. (ICLR 2022), N = 100 · ``disjoint`` and M = 100 · ``blur``.

    The classes, in order of arrival ``names``, are dealt to the tasks in turn, each to its major task. The first N % of
    them are disjoint: all their examples are there. Of each other class M % are moved and spread evenly over the other
    tasks, drawn class by class; its major task keeps at least one. A class's test examples belong to its major task.
    """
    for option, value, below in (("disjoint", disjoint, False), ("blur", blur, True)):
        if not 0 <= value <= 1 or (below and value == 1):
            raise StreamError(f"{option} is {value}; it is a share, from 0 to {'below 1' if below else '1'}.")
    if not 2 <= tasks <= len(names):
        raise StreamError(f"tasks is {tasks}; {train.name} has {len(names)} classes, so it must be 2 to {len(names)}.")
    rows = rows_by_class(train)
    require_seed(seed, "blur_seed")
    alone = round(disjoint * len(names))
    pieces: list[list[IntArray]] = [[] for _ in range(tasks)]
    holds: list[list[str]] = [list(names[t::tasks]) for t in range(tasks)]
    for number, name in enumerate(names):
        own, random = rows[name], class_generator(seed, name)
        major = number % tasks
        moved = 0 if number < alone else min(round(blur * len(own)), len(own) - 1)
        drawn = random.permutation(own)
        pieces[major].append(drawn[moved:])
        others = random.permutation([t for t in range(tasks) if t != major])
        for turn, t in enumerate(others.tolist()):
            part = drawn[:moved][turn :: tasks - 1]
            if len(part):
                pieces[t].append(part)
                holds[t].append(name)
    tested = [NONE if test is None else test.rows_of(names[t::tasks]) for t in range(tasks)]
    return [Part(f"task {t + 1}", np.sort(np.concatenate(pieces[t])), tested[t], tuple(holds[t])) for t in range(tasks)]


def domains_of(source: Source) -> tuple[str, ...]:
    return tuple(source.domain_names[i] for i in np.unique(source.domains)) if source.domains is not None else ()


def in_domain(source: Source, rows: IntArray, name: str) -> IntArray:
    """Those of ``rows`` that are of the domain with this name."""
    if source.domains is None or name not in source.domain_names:
        return NONE
    there: IntArray = rows[source.domains[rows] == source.domain_names.index(name)]
    return there
