"""The file of a bench: streams, backbones and methods by name, the runs that combine them, and tables."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from evertune.bench.cells import OPTIONS, REFERENCES, Cell, fill
from evertune.bench.tables import Table, read_table
from evertune.errors import ConfigError, nearest
from evertune.streams.make import KINDS, default_settings

PARTS = ("stream", "backbone", "method")
"""What a run is combined from: an entry of ``[streams.*]``, of ``[backbones.*]`` and of ``[methods.*]``."""

TOP = ("out", "records", "vars", *(f"{part}s" for part in PARTS), "runs", "tables")
OF_RUNS = (*PARTS, "name", "orders", "seeds", REFERENCES)
OWN = ("out", "quiet", "settings", "stream_settings", "no_references", "order_seed", "seed")
"""Options of ``evertune run`` that an entry does not give: the bench does, or says them otherwise."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What a file asks for: its cells in their order, its tables by name, and where its records are, if it has any."""

    out: Path
    cells: tuple[Cell, ...]
    tables: Mapping[str, Table]
    records: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The entries, each with one cell per order and seed."""
        return tuple(dict.fromkeys(cell.name for cell in self.cells))

    def of(self, name: str) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.name == name)


def read_bench(
    file: Path, known: Collection[str], variables: Mapping[str, str] | None = None, out: Path | None = None
) -> Bench:
    """Read the TOML ``file``; docs/benchmarks.md describes it.

    Parameters
    ----------
    known : the names of the options of ``evertune run``; entries may give these and the settings of streams.
    variables : values that take the place of those in ``[vars]``.
    out : where the run folders are, in place of what the file says.

    Raises
    ------
    ConfigError
        The file is missing or no TOML, or holds something unknown or contradictory; the message names the table.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a TOMLDecodeError and a UnicodeDecodeError are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file} cannot be read as a bench file: {reason}.") from error
    return _Reader(file, content, _allowed(known), dict(variables or {})).read(out)


class _Reader:
    def __init__(self, file: Path, content: dict[str, Any], known: frozenset[str], variables: dict[str, str]) -> None:
        self.file, self.content, self.known = file, content, known
        self.require_known(content, TOP, "the file")
        given = self.table(content.get("vars", {}), "[vars]")
        for name in variables:
            if name not in given:
                raise self.error("[vars]", f"no variable is called {name!r}. {nearest(name, given)}")
        self.variables: dict[str, str] = {}
        for name, value in (given | variables).items():  # a later one may hold those before it
            self.variables[name] = str(self.filled(value, "[vars]"))

    def read(self, out: Path | None) -> Bench:
        parts = {part: self.entries(f"{part}s") for part in PARTS}
        runs = self.content.get("runs", [])
        if not isinstance(runs, list) or not runs:
            raise self.error("[[runs]]", "there are none; give at least one.")
        place = out or Path(self.filled(str(self.content.get("out", "runs")), "out"))
        cells: list[Cell] = []
        for number, run in enumerate(runs, 1):
            where = f"[[runs]] number {number}"
            for cell in self.cells(self.table(run, where), parts, place, where):
                if any(cell.folder == other.folder for other in cells):
                    raise self.error(where, f"{cell.folder} is made twice; give the entry another name.")
                cells.append(cell)
        names = list(dict.fromkeys(cell.name for cell in cells))
        tables = {
            name: read_table(self.table(table, f"[tables.{name}]"), names, f"{self.file}, [tables.{name}]")
            for name, table in self.table(self.content.get("tables", {}), "[tables]").items()
        }
        records = self.content.get("records")
        beside = None if records is None else self.file.parent / self.filled(str(records), "records")
        return Bench(place, tuple(cells), tables, beside)

    def entries(self, section: str) -> dict[str, dict[str, Any]]:
        """The entries of a section, each with what it takes over from the one it is ``like``."""
        given = self.table(self.content.get(section, {}), f"[{section}]")
        return {name: self.entry(section, given, name, ()) for name in given}

    def entry(self, section: str, given: Mapping[str, Any], name: str, before: tuple[str, ...]) -> dict[str, Any]:
        where = f"[{section}.{name}]"
        if name in before:
            raise self.error(where, f"is like itself, by way of {' and '.join(before)}.")
        own = dict(self.table(given[name], where))
        self.require_known(own, ("like", OPTIONS, *self.known), where)
        own[OPTIONS] = self.table(own.get(OPTIONS, {}), f"{where} {OPTIONS}")
        own = {key: self.filled(value, where) for key, value in own.items()}
        like = own.pop("like", None)
        if like is None:
            return own
        if like not in given:
            raise self.error(where, f"there is no {like!r} to be like. {nearest(str(like), given)}")
        model = self.entry(section, given, like, (*before, name))
        return {**model, **own, OPTIONS: {**model[OPTIONS], **own[OPTIONS]}}

    def cells(
        self, run: dict[str, Any], parts: Mapping[str, Mapping[str, dict[str, Any]]], out: Path, where: str
    ) -> Iterator[Cell]:
        """Every method on every backbone and stream of an entry, in every order and with every seed."""
        self.require_known(run, OF_RUNS, where)
        chosen = {part: self.several(run, part, parts[part], where) for part in PARTS}
        orders = self.numbers(run.get("orders", [1993]), "orders", where, also=("none",))
        seeds = self.numbers(run.get("seeds", [0]), "seeds", where)
        references = run.get(REFERENCES, True)
        if not isinstance(references, bool):
            raise self.error(where, f"{REFERENCES} = {references!r} must be true or false.")
        for combined in product(*(chosen[part] for part in PARTS)):
            names = dict(zip(PARTS, combined, strict=True))
            name = fill(run.get("name", "{stream}-{method}"), names, lambda text: self.error(where, text))
            if not name.strip(".") or set(name) & set("/\\\0"):
                raise self.error(where, f"{name!r} is no name of a folder: leave slashes out.")
            settings = self.combined({part: parts[part][names[part]] for part in PARTS}, names, where)
            for order, seed in product(orders, seeds):
                # An entry's first seed is not told, so that seeds added later leave its folders where they are.
                last = str(order) if seed == seeds[0] else f"{order}-seed{seed}"
                asked = {"order_seed": order, "seed": seed, REFERENCES: references}
                yield Cell(name, out / name / last, settings | asked)

    def combined(self, entries: Mapping[str, dict[str, Any]], names: Mapping[str, str], where: str) -> dict[str, Any]:
        settings: dict[str, Any] = {"method": "safe"}
        owner: dict[str, str] = {}
        options: dict[str, Any] = {}
        for part in ("method", "stream", "backbone"):
            for key, value in entries[part].items():
                if key == OPTIONS:
                    options |= value
                    continue
                if key in owner:
                    raise self.error(where, f"{owner[key]} and [{part}s.{names[part]}] both say {key!r}; one must not.")
                settings[key], owner[key] = value, f"[{part}s.{names[part]}]"
        if "data" not in settings:
            raise self.error(f"[streams.{names['stream']}]", "lacks 'data': a path, or the name of a data set.")
        return settings | {OPTIONS: options}

    def several(self, run: Mapping[str, Any], part: str, known: Mapping[str, Any], where: str) -> list[str]:
        """One name or a list of names."""
        given = run.get(part)
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise self.error(where, f"lacks {part!r}: the name of an entry of [{part}s.*], or a list of names.")
        for name in names:
            if name not in known:
                raise self.error(where, f"there is no [{part}s.{name}]. {nearest(name, known)}")
        return names

    def numbers(self, values: Any, key: str, where: str, also: tuple[str, ...] = ()) -> list[Any]:
        whole = isinstance(values, list) and bool(values)
        if not whole or any(value not in also and (type(value) is not int or value < 0) for value in values):
            words = " or ".join(["whole numbers from 0", *map(repr, also)])
            raise self.error(where, f"{key} = {values!r} must be a list of {words}.")
        if len(set(values)) < len(values):
            raise self.error(where, f"{key} = {values!r} names one twice.")
        return list(values)

    def table(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(where, f"must be a table, not {value!r}.")
        return value

    def require_known(self, given: Iterable[str], known: Collection[str], where: str) -> None:
        for key in given:
            if key not in known:
                raise self.error(where, f"there is no {key!r} here. {nearest(key, known)}")

    def filled(self, value: Any, where: str) -> Any:
        """A text with its variables in place; other values as they are."""
        return fill(value, self.variables, lambda text: self.error(where, text)) if isinstance(value, str) else value

    def error(self, where: str, text: str) -> ConfigError:
        return ConfigError(f"{self.file}, {where}: {text}")


def _allowed(known: Collection[str]) -> frozenset[str]:
    settings = {name for kind in KINDS for name in default_settings(kind)}
    return (frozenset(known) | settings) - set(OWN)
