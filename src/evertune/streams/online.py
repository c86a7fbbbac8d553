"""A stream cut into small chunks that arrive one after the other, each seen once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evertune.errors import StreamError
from evertune.streams.joined import joined
from evertune.streams.order import require_seed
from evertune.streams.source import IntArray, Source
from evertune.streams.task import Task


def chunks(tasks: Sequence[Task], size: int, seed: int | None, boundary: float) -> list[Task]:
    """The training examples of ``tasks`` in order of arrival, ``size`` at a time, each chunk a task of its own.

    The first chunk goes on until two classes were seen. The test examples of a class belong to the chunk in which their
    task's first example of it arrives.
    """
    if size < 1:
        raise StreamError(f"chunk is {size}; it must be at least 1.")
    owner, rows = arrival([len(task.train) for task in tasks], seed, boundary)
    table = tuple(dict.fromkeys(name for task in tasks for name in task.classes))
    position = {name: i for i, name in enumerate(table)}
    labels = np.zeros(len(owner), np.int64)
    for t, task in enumerate(tasks):
        names = np.array([position.get(name, -1) for name in task.train.classes], np.int64)
        labels[owner == t] = names[task.train.labels[rows[owner == t]]]
    others = np.flatnonzero(labels != labels[0])  # a stream has at least two classes
    start = max(size, int(others[0]) + 1)
    ends = [*range(start, len(owner), size), len(owner)]
    tested = _tested(tasks, owner, labels, position, np.array(ends))
    found = []
    for index, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        here = np.unique(owner[begin:end]).tolist()
        train = joined([tasks[t].train.select(rows[begin:end][owner[begin:end] == t]) for t in here])
        first = np.unique(labels[begin:end], return_index=True)[1]
        classes = tuple(table[labels[begin + i]] for i in np.sort(first))
        test = joined(tested[index]) if tested[index] else None
        found.append(Task(index, f"{begin + 1}-{end}", train, test, classes, "mixed"))
    return found


def arrival(lengths: Sequence[int], seed: int | None, boundary: float) -> tuple[IntArray, IntArray]:
    """Task [N] and row in its task [N] of all examples in order of arrival.

    Rows of a task come in its order, or shuffled by ``seed``. Around the border of two tasks, over the share
    ``boundary`` of the shorter one on both sides, examples at equal distance from it change places with a probability
    that falls linearly from one half to nothing: neither task loses any, and none starts or ends at once.
    """
    if not 0 <= boundary <= 0.5:
        raise StreamError(f"boundary is {boundary}; it is a share of a task, from 0 to 0.5.")
    if seed is not None:
        require_seed(seed, "online_seed")
    pieces = [
        np.arange(n) if seed is None else np.random.default_rng([seed, t]).permutation(n) for t, n in enumerate(lengths)
    ]
    owner, rows = np.repeat(np.arange(len(lengths)), lengths), np.concatenate(pieces)
    borders = np.cumsum(lengths)[:-1]
    for t, border in enumerate(borders.tolist()):
        width = int(boundary * min(lengths[t], lengths[t + 1]))
        distance = np.arange(width)
        chance = 0.5 * (1 - (distance + 0.5) / max(width, 1))
        swapped = distance[np.random.default_rng([seed or 0, t, 1]).random(width) < chance]
        before, after = border - 1 - swapped, border + swapped
        for values in (owner, rows):
            values[before], values[after] = values[after], values[before]
    return owner, rows


def _tested(
    tasks: Sequence[Task], owner: IntArray, labels: IntArray, position: dict[str, int], ends: IntArray
) -> list[list[Source]]:
    """The test examples that belong to each chunk, by task."""
    keys, first = np.unique(owner * len(position) + labels, return_index=True)
    arrived = dict(zip(keys.tolist(), first.tolist(), strict=True))  # first place of a task's class
    known = {int(label): int(i) for label, i in zip(*np.unique(labels, return_index=True), strict=True)}
    begins = {int(t): int(i) for t, i in zip(*np.unique(owner, return_index=True), strict=True)}
    found: list[list[Source]] = [[] for _ in ends]
    for t, task in enumerate(tasks):
        if task.test is None:
            continue
        by_chunk: dict[int, list[str]] = {}
        for name in task.test.present():
            label = position[name]
            place = arrived.get(t * len(position) + label, max(begins[t], known[label]))
            by_chunk.setdefault(int(np.searchsorted(ends, place, side="right")), []).append(name)
        for chunk, names in by_chunk.items():
            found[chunk].append(task.test.select(task.test.rows_of(names)))
    return found
