"""Examples by the time they were made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from evertune.errors import StreamError
from evertune.streams.source import IntArray, Source


def rows_by_time(train: Source, tasks: int | None, edges: Sequence[float | str] | None) -> list[tuple[str, IntArray]]:
    """A name and the rows, oldest first, of each period: before the first edge, from each edge on.

    With ``tasks`` a period ends where what is left would be shared out evenly, at the next change of time.
    """
    if train.times is None:
        raise StreamError(f"{train.name} has no times. Give a table with a time column, or an array of times.")
    if (tasks is None) == (edges is None):
        raise StreamError("Say how many periods there are by tasks, or where they begin by edges: one of the two.")
    order = np.argsort(train.times, kind="stable")
    times = train.times[order]
    ends: Sequence[int] | IntArray
    if edges is None:
        assert tasks is not None
        if not 2 <= tasks <= len(train):
            raise StreamError(
                f"tasks is {tasks}; {train.name} has {len(train)} examples, so it must be 2 to {len(train)}."
            )
        ends = _even(times, tasks)
    else:
        moments = [_moment(edge) for edge in edges]
        if not moments or (np.diff(moments) <= 0).any():
            raise StreamError(f"edges are {', '.join(map(str, edges)) or 'empty'}; give at least one, rising.")
        ends = np.searchsorted(times, moments, side="left")
    periods = np.split(order, ends)
    empty = [str(i + 1) for i, rows in enumerate(periods) if not len(rows)]
    if empty:
        raise StreamError(
            f"{train.name}: no training example falls into period {', '.join(empty)} of {len(periods)}; its times run "
            f"from {times[0]:.15g} to {times[-1]:.15g}. Ask for fewer tasks or other edges."
        )
    if edges is None:
        return [(f"from {train.times[rows[0]]:.15g}", rows) for rows in periods]
    return list(zip([f"before {edges[0]}", *(f"from {edge}" for edge in edges)], periods, strict=True))


def _even(times: NDArray[np.float64], tasks: int) -> list[int]:
    ends: list[int] = []
    for left in range(tasks, 1, -1):
        begin = ends[-1] if ends else 0
        last = min(begin + max((len(times) - begin) // left, 1), len(times)) - 1
        ends.append(int(np.searchsorted(times, times[last], side="right")))
    return ends


def _moment(edge: float | str) -> float:
    """A number as it is, a date in seconds (UTC unless it says), as tables of times are read."""
    if not isinstance(edge, str):
        return float(edge)
    try:
        moment = datetime.fromisoformat(edge)
    except ValueError as error:
        raise StreamError(f"The edge {edge!r} is neither a number nor a date such as 2024-05-01.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
