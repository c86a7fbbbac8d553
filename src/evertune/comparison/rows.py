"""Rows of a comparison: which folders hold runs, which of them belong together, and what they are called."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evertune.comparison.kept import KeptRun, completed_options, is_run
from evertune.errors import ConfigError, RunError, nearest
from evertune.evaluation import accuracy_curve

By = Literal["method", "run"]
NAMED, LONGEST = 4, 24
"""So many of the settings in which rows differ stand in their names, each with so many characters of its value."""


@dataclass(frozen=True, eq=False)
class Row:
    """Finished runs of one method with the same settings; they differ in class order and seeds."""

    name: str
    runs: tuple[KeptRun, ...]
    part: str

    def values(self, metric: str) -> NDArray[np.float64]:
        """The metric [n] of every run, in percent."""
        return np.array([run.value(metric, self.part) for run in self.runs])

    def curves(self) -> NDArray[np.float64]:
        """Accuracy over all test examples seen [n, T] after each stage."""
        return np.array([accuracy_curve(*run.matrix.counts(self.part), weight="sample") for run in self.runs])


def run_folders(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The folders, those of run folders replaced by what they hold."""
    found: list[Path] = []
    for folder in map(Path, folders):
        inner = [] if is_run(folder) or not folder.is_dir() else sorted(p for p in folder.iterdir() if is_run(p))
        found += inner or [folder]
    places: dict[Path, Path] = {}
    for folder in found:
        same = places.setdefault(folder.resolve(), folder)
        if same is not folder:
            raise RunError(f"{folder} is named twice: leave one out.")
    return found


def read_runs(folders: Iterable[Path]) -> tuple[list[KeptRun], list[str]]:
    """The finished runs, and what is said of the others."""
    runs = [KeptRun.read(folder) for folder in folders]
    unfinished = [f"{run.folder} (unfinished: {run.stages} of {run.tasks} tasks)" for run in runs if not run.finished]
    return [run for run in runs if run.finished], unfinished


def with_part(runs: list[KeptRun], part: str | None, left_out: list[str]) -> list[KeptRun]:
    if part is None:
        return runs
    parts = {name for run in runs for name in run.matrix.parts}
    if runs and part not in parts:
        raise ConfigError(f"No run has a part {part!r}. {nearest(part, parts)}")
    left_out += [f"{run.folder} (no part {part!r})" for run in runs if part not in run.matrix.parts]
    return [run for run in runs if part in run.matrix.parts]


def grouped(runs: Sequence[KeptRun]) -> tuple[list[list[KeptRun]], list[str]]:
    """Runs with the same settings and condition, each group in the order of its draws; and what was taken as given.

    An option that came later than a run has its default, which is what was done before.
    """
    options = {id(run): dict(run.config["options"]) for run in runs}
    older: dict[str, list[str]] = {}
    for method in dict.fromkeys(run.config["method"] for run in runs):
        mine = [run for run in runs if run.config["method"] == method]
        known = set().union(*(run.config["options"] for run in mine))
        for run in mine:
            lacking = sorted(known - set(run.config["options"]))
            if lacking:
                options[id(run)] = completed_options(run)
                older.setdefault(f"{method}'s {', '.join(lacking)}", []).append(str(run.folder))
    notes = [
        f"taken at its default where a run is older than it: {what} in {', '.join(of)}" for what, of in older.items()
    ]
    groups: dict[str, list[KeptRun]] = {}
    for run in runs:
        key = json.dumps([{**run.settings, "options": options[id(run)]}, run.condition.hash], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: run.drawn) for group in groups.values()], notes


def require_distinct(group: Sequence[KeptRun]) -> None:
    seen: dict[tuple[str, str], KeptRun] = {}
    for run in group:
        same = seen.setdefault(run.draw, run)
        if same is not run:
            raise RunError(
                f"{same.folder} and {run.folder} are the same run ({run.drawn}), which must not count twice: leave one "
                "out."
            )


def row_names(groups: Sequence[Sequence[KeptRun]], by: By) -> list[str]:
    """Method and preset, with the options and settings in which groups of the same name differ."""
    if by == "run":
        return [str(group[0].folder) for group in groups]
    plain = [f"{group[0].config['method']} ({group[0].config['preset']})" for group in groups]
    told = [_flat({**group[0].settings, "condition": dict(group[0].condition)}) for group in groups]
    names: list[str] = []
    for own, name in zip(told, plain, strict=True):
        alike = [other for other, called in zip(told, plain, strict=True) if called == name]
        keys = sorted({key for other in alike for key in own.keys() | other.keys() if own.get(key) != other.get(key)})
        shown = [f"{key.rpartition('.')[2]}={own.get(key, 'none')[:LONGEST]}" for key in keys[:NAMED]]
        full = ", ".join([name, *shown])
        times = sum(other == full or other.startswith(f"{full} #") for other in names)
        names.append(f"{full} #{times + 1}" if times else full)
    return names


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Every leaf of nested mappings by its dotted path."""
    if not isinstance(value, Mapping):
        return {path: value if isinstance(value, str) else json.dumps(value)}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in _flat(item, f"{path}.{name}" if path else name).items()
    }
