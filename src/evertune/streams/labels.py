"""Names of classes as people write them: which are the same, and in which order they come."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from evertune.errors import DataError
from evertune.streams.source import IntArray


def tabulate(names: Sequence[str], codes: Sequence[int] | IntArray, table: Sequence[str]) -> IntArray:
    """Codes [N], positions in ``names``, as positions in ``table``."""
    position = {name: i for i, name in enumerate(table)}
    return np.array([position[name] for name in names], dtype=np.int64)[np.asarray(codes, dtype=np.int64)]


def arranged(names: Sequence[str], numbers: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """Names in order: by their numbers where they have any, by size if all are whole numbers, else by name.

    >>> arranged(["10", "9"]), arranged(["b", "a"]), arranged(["b", "a"], {"b": 0, "a": 1})
    (('9', '10'), ('a', 'b'), ('b', 'a'))
    """
    if numbers:
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    if all(map(is_number, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def require_one_kind(first: Mapping[Hashable, str], where: str, *, written: bool) -> None:
    """DataError if some labels are whole numbers and some are names.

    ``first`` has each label as it was read and the place it was first seen. In a ``written`` table all are text, so
    digits alone make a number; elsewhere the type decides.
    """
    numbers = [label for label in first if isinstance(label, int) or (written and is_number(str(label)))]
    if numbers and len(numbers) < len(first):
        names = [label for label in first if label not in set(numbers)]
        raise DataError(
            f"{where} mixes whole numbers and names as labels: {first[numbers[0]]} has {numbers[0]!r}, "
            f"{first[names[0]]} has {names[0]!r}. Make them alike, or, if a number is a name like any other, say so "
            f"with numbers_as_names=True (--numbers-as-names)."
        )


def merged(
    names: Sequence[str], counts: IntArray, where: str, normalise: bool | None
) -> tuple[IntArray, tuple[str, ...]]:
    """Where each class goes, and the classes there are then.

    Parameters
    ----------
    names, counts : the classes and how many rows each has.
    normalise : True takes blanks off the ends and makes names one that differ in blanks or case only, under the
        spelling with the most rows; False keeps every spelling as a class of its own; None refuses such names.

    Returns
    -------
    Positions [len(names)] in the table that follows them.

    Raises
    ------
    DataError
        Listing the names that look the same, if that was not settled.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        groups[_fold(name)].append(i)
    alike = [group for group in groups.values() if len(group) > 1]
    if normalise is None and alike:
        listed = "".join("\n  " + ", ".join(f"{names[i]!r} ({counts[i]} rows)" for i in group) for group in alike[:10])
        more = f"\n  and {len(alike) - 10} more" if len(alike) > 10 else ""
        raise DataError(
            f"{where}: these classes differ only in case or blanks:{listed}{more}\n"
            f"Make them one with normalise_labels=True (--normalise-labels), or keep them apart with "
            f"normalise_labels=False (--no-normalise-labels)."
        )
    if not normalise:
        return np.arange(len(names)), tuple(names)
    spelling = {}
    for group in groups.values():
        chosen = " ".join(names[max(group, key=lambda i: int(counts[i]))].split())
        spelling.update(dict.fromkeys(group, chosen))
    table = {name: place for place, name in enumerate(dict.fromkeys(spelling[i] for i in range(len(names))))}
    return np.array([table[spelling[i]] for i in range(len(names))], dtype=np.int64), tuple(table)


def alike(new: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The new names that are not known but differ from a known one in case or blanks only, each with that one.

    >>> alike(["Cat", "dog", "owl"], ["cat", "dog"])
    {'Cat': 'cat'}
    """
    folded = {_fold(name): name for name in known}
    return {name: folded[_fold(name)] for name in new if name not in known and _fold(name) in folded}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split()).casefold())


def united(
    tables: Sequence[Sequence[str]],
    counts: Sequence[IntArray],
    where: str,
    normalise: bool | None,
    numbers: Mapping[str, int] | None = None,
) -> tuple[list[IntArray], tuple[str, ...]]:
    """One table of classes for several parts of a data set, and the positions of each part's classes in it.

    Parts that share a table keep its order; otherwise names are arranged anew. ``normalise`` as in :func:`merged`.
    """
    numbers = numbers or {}
    total = Counter[str]()
    for names, rows in zip(tables, counts, strict=True):
        total.update(dict(zip(names, map(int, rows), strict=True)))
    positions, classes = merged(tuple(total), np.array(list(total.values()), dtype=np.int64), where, normalise)
    table = classes
    if any(tuple(names) != tuple(tables[0]) for names in tables):
        known = {classes[p]: numbers[name] for p, name in zip(positions, total, strict=True) if name in numbers}
        table = arranged(classes, known if len(known) == len(classes) else None)
    order = {name: i for i, name in enumerate(table)}
    place = {name: order[classes[p]] for name, p in zip(total, positions, strict=True)}
    return [np.array([place[name] for name in names], dtype=np.int64) for names in tables], table
