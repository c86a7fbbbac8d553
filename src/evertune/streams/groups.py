"""Which classes arrive together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evertune.errors import StreamError, nearest
from evertune.streams.order import arrange
from evertune.streams.task import some

GROUPINGS = ("prefix",)


@dataclass(frozen=True)
class ClassGroup:
    """Classes that arrive together, under a name."""

    name: str
    classes: tuple[str, ...]


def class_groups(
    known: tuple[str, ...],
    where: str,
    *,
    first: int | None = None,
    increment: int | None = None,
    sizes: Sequence[int] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    group_by: str | None = None,
    order: Sequence[str] | None = None,
    order_seed: int | None = None,
) -> tuple[list[ClassGroup], dict[str, Any]]:
    """The groups in order of arrival, and the settings that make them again. ``where`` names the data in messages.

    Exactly one way of grouping may be given; with none of them, a tenth of the classes arrives at a time, at least 2.
    """
    sized = {"first": first, "increment": increment}
    given = {"first and increment": any(value is not None for value in sized.values()), "sizes": sizes is not None}
    given |= {"groups": groups is not None, "group_by": group_by is not None}
    if sum(given.values()) > 1:
        ways = [way for way, is_given in given.items() if is_given]
        raise StreamError(f"{' and '.join(ways)} all say which classes arrive together: give one of them.")
    if groups is not None:
        return _listed(known, groups, where), {"groups": [list(group) for group in groups]}
    if group_by is not None:
        found = _by_prefix(known, group_by, where)
        names = arrange(tuple(found), order, order_seed, "groups")
        return [ClassGroup(name, found[name]) for name in names], {"group_by": group_by}
    names = arrange(known, order, order_seed, "classes")
    if sizes is not None:
        chosen: dict[str, Any] = {"sizes": list(sizes)}
        _require_sum(sizes, len(names), where)
        ends = np.cumsum(sizes).tolist()
    else:
        tenth = min(len(names), max(2, len(names) // 10))
        increment = (tenth if first is None else first) if increment is None else increment
        first = increment if first is None else first
        chosen = {"first": first, "increment": increment}
        for option, value in chosen.items():
            if not 1 <= value <= len(names):
                raise StreamError(
                    f"{option} is {value}; {where} has {len(names)} classes, so it must be 1 to {len(names)}."
                )
        ends = [*range(first, len(names), increment), len(names)]
    cuts = zip([0, *ends[:-1]], ends, strict=True)
    return [ClassGroup(f"task {i + 1}", names[start:end]) for i, (start, end) in enumerate(cuts)], chosen


def _require_sum(sizes: Sequence[int], classes: int, where: str) -> None:
    wrong = [size for size in sizes if size < 1]
    if wrong:
        raise StreamError(f"sizes holds {wrong[0]}; every task needs at least one class.")
    if sum(sizes) != classes:
        raise StreamError(
            f"sizes adds up to {sum(sizes)} classes, but {where} has {classes}: name the size of every task."
        )


def _listed(known: tuple[str, ...], groups: Sequence[Sequence[str]], where: str) -> list[ClassGroup]:
    names = [name for group in groups for name in group]
    arrange(known, names, None, f"classes in the groups of {where}")
    if not all(len(group) for group in groups):
        raise StreamError(f"Group {[len(group) for group in groups].index(0) + 1} of {where} is empty: leave it out.")
    return [ClassGroup(f"task {i + 1}", tuple(group)) for i, group in enumerate(groups)]


def _by_prefix(known: tuple[str, ...], group_by: str, where: str) -> dict[str, tuple[str, ...]]:
    """Classes "group/name" by what stands before their last slash, in the order in which the groups appear."""
    if group_by not in GROUPINGS:
        raise StreamError(f"Classes cannot be grouped by {group_by!r}. {nearest(group_by, GROUPINGS)}")
    bare = [name for name in known if "/" not in name.strip("/")]
    if bare:
        raise StreamError(
            f"{where}: group_by='prefix' needs class names such as 'group/name', but there is {some(bare)}."
        )
    found: dict[str, list[str]] = {}
    for name in known:
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return {group: tuple(names) for group, names in found.items()}
