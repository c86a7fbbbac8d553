"""The tables of a bench: which rows and columns, and the Markdown of what is finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evertune.bench.cells import fill
from evertune.comparison import KeptRun, metric_names
from evertune.costs import COSTS
from evertune.errors import ConfigError, nearest
from evertune.evaluation import interval

NAMES = ("stream", "backbone", "method")
"""What a row or a column may set for the names of runs: run = "{stream}-{method}"."""

OF_CELLS = ("run", "part", "metric", "reference", "cost", "per", "orders", "spread", "places", *NAMES)
SPREADS = ("interval", "deviation", "none", "each")
"""What stands behind a mean: half the 95 % interval, the standard deviation, nothing; or every value instead."""


@dataclass(frozen=True, eq=False)
class Table:
    """Each cell is what its row and its column say together; ``where`` names the table in messages, ``caption`` stands
    above its picture."""

    where: str
    title: str
    caption: str
    rows: tuple[Mapping[str, Any], ...]
    columns: tuple[Mapping[str, Any], ...]

    def markdown(self, finished: Mapping[str, Sequence[KeptRun]]) -> str:
        """The table of the ``finished`` runs by entry; cells without any are empty."""
        header = [self.title, *(str(column["label"]) for column in self.columns)]
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for row in self.rows:
            cells = [self._cell(finished, {**column, **row}) for column in self.columns]
            lines.append(f"| {' | '.join([str(row['label']), *cells])} |")
        return "\n".join(lines)

    def needs(self) -> tuple[str, ...]:
        """The entries whose runs the table is of."""
        cells = ({**column, **row} for row in self.rows for column in self.columns)
        return tuple(dict.fromkeys(name for cell in cells for name in run_names(cell, self.where)))

    def values(self, finished: Mapping[str, Sequence[KeptRun]], cell: Mapping[str, Any]) -> list[float]:
        """Of the runs of a cell, those without its number left out."""
        runs = [run for name in run_names(cell, self.where) for run in finished.get(name, ())]
        if "orders" in cell:
            runs = [run for run in runs if run.order in cell["orders"]]
        return [value for run in runs if (value := self._value(run, cell)) is not None]

    def _cell(self, finished: Mapping[str, Sequence[KeptRun]], cell: Mapping[str, Any]) -> str:
        values = self.values(finished, cell)
        if not values:
            return ""
        places, spread = cell.get("places", 2), cell.get("spread", "none" if "cost" in cell else "interval")
        if spread == "each":
            return " / ".join(f"{value:.{places}f}" for value in values)
        mean = f"{np.mean(values):.{places}f}"
        if len(values) == 1 or spread == "none":
            return mean
        found = interval(values, 0.95)
        half = float(np.std(values, ddof=1)) if spread == "deviation" else (found.high or 0.0) - found.mean
        return f"{mean} ± {half:.{places}f}"

    def _value(self, run: KeptRun, cell: Mapping[str, Any]) -> float | None:
        """None where the run has no such number."""
        if "cost" in cell:
            cost = run.costs.get(cell["cost"])
            return None if cost is None else cost / cell.get("per", 1)
        if "reference" in cell:
            return run.references.get(cell["reference"])
        part = cell.get("part")
        if part is not None and part not in run.matrix.parts:
            raise ConfigError(f"{self.where}: {run.folder} has no part {part!r}. {nearest(part, run.matrix.parts)}")
        value = run.value(cell.get("metric", "final_accuracy_sample"), part)
        return None if math.isnan(value) else value


def read_table(given: dict[str, Any], entries: Sequence[str], where: str) -> Table:
    """The table behind ``[tables.*]``: a title, ``rows`` and ``columns``; what it says itself holds for all cells.

    Raises
    ------
    ConfigError
        An unknown key, entry, metric or spread, or nothing to show.
    """
    common = {key: value for key, value in given.items() if key not in ("title", "caption", "rows", "columns")}
    _require_known(common, OF_CELLS, where)
    lines = {}
    for name in ("rows", "columns"):
        found = given.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(line, dict) for line in found):
            raise ConfigError(f"{where} lacks {name}: a list of tables, each with a label.")
        for line in found:
            _require_known(line, ("label", *(("mark",) if name == "rows" else ()), *OF_CELLS), f"{where}, {name}")
            if "label" not in line:
                raise ConfigError(f"{where}, {name}: {line} lacks its label.")
        lines[name] = found
    columns = tuple({**common, **column} for column in lines["columns"])
    title, caption = str(given.get("title", "")), str(given.get("caption", ""))
    table = Table(where, title, caption, tuple(lines["rows"]), columns)
    for row in table.rows:
        for column in table.columns:
            _check({**column, **row}, entries, where)
    return table


def run_names(cell: Mapping[str, Any], where: str) -> list[str]:
    """The entries of a cell, the names within them in place."""
    given = cell["run"] if isinstance(cell["run"], list) else [cell["run"]]
    known = {name: cell[name] for name in NAMES if name in cell}
    return [fill(name, known, lambda text: ConfigError(f"{where}: {text}")) for name in given]


def _check(cell: Mapping[str, Any], entries: Sequence[str], where: str) -> None:
    if "run" not in cell:
        raise ConfigError(f"{where}: neither the row {cell['label']!r} nor its columns name a run.")
    for name in run_names(cell, where):
        if name not in entries:
            raise ConfigError(f"{where}: no entry of [[runs]] is called {name!r}. {nearest(name, entries)}")
    for key, choices in (("metric", metric_names()), ("cost", COSTS), ("spread", SPREADS)):
        if key in cell and cell[key] not in choices:
            raise ConfigError(f"{where}: there is no {key} {cell[key]!r}. {nearest(str(cell[key]), choices)}")
    if type(cell.get("places", 2)) is not int or cell.get("places", 2) < 0:
        raise ConfigError(f"{where}: places = {cell['places']!r} must be a whole number from 0.")
    if type(cell.get("per", 1)) not in (int, float) or cell.get("per", 1) <= 0:
        raise ConfigError(f"{where}: per = {cell['per']!r} must be a positive number.")
    if not isinstance(cell.get("orders", []), list):
        raise ConfigError(f"{where}: orders = {cell['orders']!r} must be a list.")


def _require_known(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: there is no {key!r} here. {nearest(key, known)}")
