"""In which order names arrive, and which examples of a class come first: every draw has a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from evertune.errors import StreamError, nearest
from evertune.streams.source import IntArray, Source
from evertune.streams.task import some

MOST_SEED = 2**32 - 1


def arrange(known: tuple[str, ...], order: Sequence[str] | None, order_seed: int | None, what: str) -> tuple[str, ...]:
    """The names in the given order, in that of the seed, or as they are."""
    if order is None:
        if order_seed is None:
            return known
        require_seed(order_seed, "order_seed")
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


def rows_by_class(source: Source, seed: int | None = None) -> dict[str, IntArray]:
    """The rows of every class that has any, in file order, or shuffled by ``seed``.

    The shuffle of a class hangs on the seed and the class's name alone: what other classes there are, or in which
    order, changes nothing of it.
    """
    order = np.argsort(source.labels, kind="stable")
    ends = np.cumsum(source.counts())
    parts = dict(zip(source.classes, np.split(order, ends[:-1]), strict=True)) if len(ends) else {}
    present = {name: rows for name, rows in parts.items() if len(rows)}
    if seed is None:
        return present
    require_seed(seed, "the seed")
    return {name: class_generator(seed, name).permutation(rows) for name, rows in present.items()}


def class_generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one class, whatever other classes there are."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, number])


def leading(rows: Mapping[str, IntArray], counts: Mapping[str, int]) -> IntArray:
    """The first so many rows of every class that ``counts`` names, together in file order."""
    chosen = [rows[name][:count] for name, count in counts.items()]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def first_per_class(train: Source, count: int | None) -> Source:
    """The first ``count`` examples of each class, in file order; None takes all."""
    if count is None:
        return train
    if count < 1:
        raise StreamError(f"train_per_class is {count}; it must be at least 1, or None for all.")
    rows = rows_by_class(train)
    chosen = leading(rows, dict.fromkeys(rows, count))
    return train if len(chosen) == len(train) else train.select(chosen)


def few_per_class(train: Source, shots: int, seed: int) -> Source:
    """``shots`` examples of each class, drawn class by class: with more shots, those of fewer are among them.

    Raises
    ------
    StreamError
        A class has fewer.
    """
    if shots < 1:
        raise StreamError(f"shots is {shots}; it must be at least 1, or None for all examples.")
    rows = rows_by_class(train, seed)
    for name, own in rows.items():
        if len(own) < shots:
            raise StreamError(
                f"{train.name}: class {name!r} has {len(own)} training examples, but shots={shots} asks for more. "
                f"Ask for fewer, or leave the class out."
            )
    return train.select(leading(rows, dict.fromkeys(rows, shots)))


def require_seed(seed: int, name: str) -> None:
    if not 0 <= seed <= MOST_SEED:
        raise StreamError(f"{name} is {seed}; it must be a whole number from 0 to {MOST_SEED}.")
