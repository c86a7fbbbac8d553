"""Runs side by side: those that differ only in class order and seeds are one row, and rows are compared in pairs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from evertune.comparison.kept import metric_names
from evertune.comparison.rows import By, Row, grouped, read_runs, require_distinct, row_names, run_folders, with_part
from evertune.errors import ConfigError, RunError, nearest
from evertune.evaluation import CONVENTIONS, Interval, Protocol, interval, paired, require_same

METRICS = ("final_accuracy_sample", "average_accuracy_sample", "forgetting_with_last_stage")
"""What a comparison shows unless asked otherwise."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, the metrics they are compared in, and the row that the others are compared with.

    ``pairs`` names the draws of class order and seeds that every row has; it is empty where the rows have not the same.
    ``unlike`` are the fields in which the protocols differ, where that was allowed. ``left_out`` are folders without a
    finished run, each with the reason; ``notes`` what has to be known besides.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    baseline: Row
    level: float
    pairs: tuple[str, ...]
    unlike: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def numbers(self) -> dict[str, Any]:
        """Everything as plain values: by run, means with intervals, and differences from the baseline in pairs."""
        return {
            "level": self.level,
            "metrics": list(self.metrics),
            "baseline": self.baseline.name,
            "pairs": list(self.pairs),
            "unlike": list(self.unlike),
            "rows": [self._row(row) for row in self.rows],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }

    def _row(self, row: Row) -> dict[str, Any]:
        config = row.runs[0].config
        runs = [
            {
                "folder": str(run.folder),
                "order": run.order,
                "seeds": run.config["seeds"],
                "protocol": run.protocol.hash,
            }
            for run in row.runs
        ]
        seconds = [run.seconds for run in row.runs if run.seconds is not None]
        return {
            "name": row.name,
            "method": config["method"],
            "preset": config["preset"],
            "part": row.part,
            "runs": runs,
            "stored_bytes": max((run.stored for run in row.runs if run.stored is not None), default=None),
            "trained_at_once": max((run.parameters for run in row.runs if run.parameters is not None), default=None),
            "seconds": float(np.mean(seconds)) if seconds else None,
            "metrics": {metric: self._metric(row, metric) for metric in self.metrics},
        }

    def _metric(self, row: Row, metric: str) -> dict[str, Any]:
        values = [None if np.isnan(value) else float(value) for value in row.values(metric)]
        known = [value for value in values if value is not None]
        found = interval(known, self.level) if len(known) == len(values) else None  # None: not measured in all of them
        return {
            "values": values,
            **_told(found),
            "difference": None if found is None or row is self.baseline else self._difference(row, metric),
        }

    def _difference(self, row: Row, metric: str) -> dict[str, Any] | None:
        """This row less the baseline over the draws that both have; None where they share none."""
        mine, base = (
            dict(zip((run.draw for run in one.runs), one.values(metric).tolist(), strict=True))
            for one in (row, self.baseline)
        )
        shared = [draw for draw in base if draw in mine]
        if not shared or np.isnan([base[draw] for draw in shared]).any():
            return None
        found = paired([mine[draw] for draw in shared], [base[draw] for draw in shared], self.level)
        return {"pairs": len(shared), **_told(found.difference), "t_test": found.t_test}


def compare(
    folders: Iterable[str | os.PathLike[str]],
    *,
    metrics: Sequence[str] | None = None,
    convention: str | None = None,
    part: str | None = None,
    baseline: str | None = None,
    by: By = "method",
    allow_different: bool = False,
    level: float = 0.95,
) -> Comparison:
    """Put the runs in ``folders`` side by side.

    Runs with the same method, preset, options and views, measured under the same protocol but for class order and
    seeds, are one row with a mean and Student's interval over its runs. Differences from the baseline are of pairs: two
    runs with the same class order and the same seeds.

    Parameters
    ----------
    folders : run folders, or folders of run folders.
    metrics : names of `evertune.evaluation.summary`, or ``"pilot.forgetting"``: a number of a convention.
    convention : all numbers that a code base prints (`evertune.evaluation.CONVENTIONS`), in place of ``metrics``.
    part : a part of the methods, by default each one's answer; runs without it are left out.
    baseline : the name of a row; the first one by default.
    by : ``"run"`` makes a row of every run.
    allow_different : compare runs of unlike protocols too, and rows whose class orders or seeds are not the same.
    level : of the intervals.

    Raises
    ------
    RunError
        No run, one run only, the same run twice, or runs that do not compare.
    ConfigError
        An unknown metric, convention, part or row.
    StorageError
        A damaged file.
    """
    if by not in get_args(By):
        raise ConfigError(f"Rows cannot be made by {by!r}. {nearest(str(by), get_args(By))}")
    chosen = chosen_metrics(metrics, convention)
    runs, left_out = read_runs(run_folders(folders))
    runs = with_part(runs, part, left_out)
    if len(runs) < 2:
        missing = f" Left out: {'; '.join(left_out)}." if left_out else ""
        raise RunError(f"There is nothing to compare: {len(runs)} finished run. Name two or more.{missing}")
    conditions = {str(run.folder): run.condition for run in runs}
    if not allow_different:
        require_same(conditions)
    unlike, notes = _unlike(list(conditions.values())), []
    if unlike:
        notes.append(f"the runs were measured under different protocols: they differ in {', '.join(unlike)}")
    groups, gained = grouped(runs) if by == "method" else ([[run] for run in runs], [])
    notes += gained
    for group in groups:
        require_distinct(group)
    names = row_names(groups, by)
    rows = tuple(
        Row(name, tuple(group), part or group[0].matrix.primary) for name, group in zip(names, groups, strict=True)
    )
    first = _row_called(rows, baseline)
    pairs = _pairs(rows, by, allow_different)
    return Comparison(rows, chosen, first, level, pairs, unlike, tuple(left_out), tuple(notes))


def chosen_metrics(metrics: Sequence[str] | None, convention: str | None) -> tuple[str, ...]:
    """The names of the asked metrics; ConfigError for an unknown one."""
    if convention is not None:
        if metrics:
            raise ConfigError("A convention names its own metrics: give metrics or a convention, not both.")
        if convention not in CONVENTIONS:
            raise ConfigError(f"There is no convention {convention!r}. {nearest(convention, CONVENTIONS)}")
        return tuple(f"{convention}.{quantity}" for quantity in CONVENTIONS[convention].numbers)
    for metric in metrics or ():
        if metric not in metric_names():
            raise ConfigError(f"There is no metric {metric!r}. {nearest(metric, metric_names())}")
    return tuple(dict.fromkeys(metrics or METRICS))


def _unlike(conditions: Sequence[Protocol]) -> tuple[str, ...]:
    """The fields in which the protocols of the runs are not all the same."""
    return tuple(sorted({one.field for other in conditions[1:] for one in conditions[0].diff(other)}))


def _row_called(rows: Sequence[Row], name: str | None) -> Row:
    names = [row.name for row in rows]
    if name is None:
        return rows[0]
    if name not in names:
        raise ConfigError(f"There is no row {name!r} to compare with. {nearest(name, names)}")
    return rows[names.index(name)]


def _pairs(rows: Sequence[Row], by: By, allow_different: bool) -> tuple[str, ...]:
    """The draws that all rows have, in words; RunError where a row lacks one of another, unless that is allowed."""
    sets = [{run.draw: run.drawn for run in row.runs} for row in rows]
    shared = tuple(words for draw, words in sets[0].items() if all(draw in other for other in sets))
    if by == "method" and not allow_different:
        for row, own in zip(rows, sets, strict=True):
            if own.keys() != sets[0].keys():
                raise RunError(
                    f"The rows are not of the same class orders and seeds: {rows[0].name} has "
                    f"{'; '.join(sets[0].values())}, {row.name} has {'; '.join(own.values())}. Name the same ones of "
                    "each, or allow rows that differ (--allow-different, allow_different=True)."
                )
    return shared


def _told(found: Interval | None) -> dict[str, float | None]:
    return {name: None if found is None else getattr(found, name) for name in ("mean", "low", "high")}
