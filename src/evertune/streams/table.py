"""Tables of texts or of image files: which column is what, and what the cells may hold."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from evertune.errors import DataError, nearest
from evertune.streams.files import Folder, Store, check_path
from evertune.streams.labels import arranged, is_number, require_one_kind, tabulate
from evertune.streams.listing import SPELLED, Listing, Skipped
from evertune.streams.reading import ROLES, Reading
from evertune.streams.rows import Rows, open_rows
from evertune.streams.strings import Writer

_EXAMPLES = ("text", "file")


def read_table(path: Path, reading: Reading) -> Listing:
    """The rows of a .csv, .tsv, .json or .jsonl file; paths in it are relative to its folder, or to the root told."""
    store = Folder(reading.root or path.parent, files=(), follow_links=reading.follow_links)
    try:
        with path.open("rb") as file:
            rows = open_rows(file, path.name, str(path), reading.encoding)
            columns = find_columns(rows.columns, reading.columns, str(path))
            return _Table(rows, columns, str(path), reading).listing(path.name, store if "file" in columns else None)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def read_index(store: Store, index: str, reading: Reading) -> Listing:
    """The rows of a table of files that lies in a store beside them; each file stands in it once."""
    where = store.describe(index)
    with store.open(index) as file:
        rows = open_rows(file, index, where, reading.encoding)
        columns = find_columns(rows.columns, reading.columns, where, ("file",))
        listing = _Table(rows, columns, where, reading).listing(store.path.name, store)
    seen: set[str] = set()
    for name in listing.values:
        if name in seen:
            raise DataError(f"{where} lists {name} twice.")
        seen.add(name)
    return listing


def find_columns(
    columns: Sequence[str], told: Mapping[str, str], where: str, examples: Sequence[str] = _EXAMPLES
) -> dict[str, str]:
    """The column of each role that has one, as told or by its name; "number" is one of label numbers beside names.

    Raises
    ------
    DataError
        A column that was told and does not exist, none for the examples or their classes, or more than one.
    """
    for role, column in told.items():
        if column not in columns:
            raise DataError(f"{where} has no column {column!r}, told for {role}. {nearest(column, columns)}")
    roles = dict(told)
    free = {column.lower(): column for column in columns if column not in told.values()}
    for role, names in ROLES.items():
        found = [free[name] for name in names if name in free]
        if role in told or not found or (role in _EXAMPLES and (role not in examples or set(_EXAMPLES) & set(told))):
            continue
        if role == "label" and len(found) == 2 and found[1].lower() == "label":
            roles["number"] = found.pop()
        if len(found) > 1:
            raise DataError(
                f"{where} has {' and '.join(found)}, any of which may be the {role}: say which with "
                f"columns={{{role!r}: {found[0]!r}}} (--column {role}={found[0]})."
            )
        roles[role] = found[0]
    if "text" in roles and "file" in roles:
        raise DataError(
            f"{where} has texts ({roles['text']}) and image files ({roles['file']}): say which is meant with "
            f"columns={{'text': {roles['text']!r}}} (--column text={roles['text']})."
        )
    if "label" not in roles or not set(_EXAMPLES) & set(roles):
        missing = {role: _likely(role, columns) for role in (examples[0], "label") if role not in roles}
        if set(_EXAMPLES) & set(roles):
            missing.pop(examples[0], None)
        raise DataError(
            f"{where} needs the columns {' or '.join(examples)} and class (or label); it has "
            f"{', '.join(columns) or 'nothing'}. Name others with columns={missing} "
            f"({' '.join(f'--column {role}={name}' for role, name in missing.items())})."
        )
    return roles


def _likely(role: str, columns: Sequence[str]) -> str:
    """The column whose name is nearest to those of the role, or an ellipsis."""
    named = {column.lower(): column for column in columns}
    close = (get_close_matches(name, named, n=1, cutoff=0.75) for name in ROLES[role])
    return next((named[found[0]] for found in close if found), "…")


class _Table:
    """Cells on their way into columns."""

    def __init__(self, rows: Rows, columns: Mapping[str, str], where: str, reading: Reading) -> None:
        self.rows, self.columns, self.where, self.reading = rows, columns, where, reading
        self.values, self.numbers = Writer(), array("q")
        self.first: dict[Hashable, str] = {}  # where each label was first seen
        self.codes: dict[str, dict[Any, int]] = {role: {} for role in ("label", "domain", "split")}
        self.column: dict[str, array[int]] = {role: array("q") for role in self.codes}
        self.times = array("d")
        self.dated: bool | None = None
        self.number_of: dict[str, int] = {}
        self.name_of: dict[int, str] = {}
        self.blank: list[Skipped] = []

    def listing(self, name: str, store: Store | None) -> Listing:
        text = store is None
        roles = list(self.columns)
        example = roles.index("text" if text else "file")
        wanted = [(role, roles.index(role)) for role in self.codes if role in self.columns]
        time, number = (roles.index(role) if role in roles else None for role in ("time", "number"))
        for place, cells in self.rows.read([self.columns[role] for role in roles]):
            value = cells[example]
            if not isinstance(value, str):
                raise self._wrong(place, "text" if text else "file", value, "a text")
            if not value.strip():
                self._leave_out(place, text)
                continue
            if not text:
                check_path(value, f"{self.where} {self.rows.unit} {place}: the file")
            try:
                self.values.add(value)
            except UnicodeEncodeError as error:
                raise self._wrong(place, "text" if text else "file", value, "whole characters") from error
            for role, at in wanted:
                codes = self.codes[role]
                cell = cells[at]
                if type(cell) is not str or cell not in codes:
                    cell = self._name(role, cell, place)
                self.column[role].append(codes.setdefault(cell, len(codes)))
            if number is not None:
                self._note_number(str(cells[roles.index("label")]), cells[number], place)
            if time is not None:
                self.times.append(self._time(cells[time], place))
            self.numbers.append(place)
        return self._finish(name, store)

    def _name(self, role: str, cell: Any, place: int) -> Any:
        """A cell seen for the first time, or no text: refused if it is no name."""
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise DataError(
                f"{self.where} {self.rows.unit} {place}: the column {self.columns[role]} is empty. Give every row a "
                f"value, or leave the row out."
            )
        if isinstance(cell, bool) or not isinstance(cell, str | int):
            raise self._wrong(place, role, cell, "a name or a whole number")
        if role == "split" and str(cell).strip().lower() not in SPELLED:
            raise DataError(
                f"{self.where} {self.rows.unit} {place}: unknown split {cell!r}; use train and test (or val)."
            )
        if role == "label":
            self.first.setdefault(cell, f"{self.rows.unit} {place}")
        return cell

    def _leave_out(self, place: int, text: bool) -> None:
        column = self.columns["text" if text else "file"]
        self.blank.append(Skipped(None, f"{self.where} {self.rows.unit} {place}: the column {column} is empty"))

    def _wrong(self, place: int, role: str, cell: object, wanted: str) -> DataError:
        return DataError(
            f"{self.where} {self.rows.unit} {place}: the column {self.columns[role]} holds {cell!r}, not {wanted}."
        )

    def _note_number(self, name: str, cell: Any, place: int) -> None:
        """A label number and a class name belong together, one to one."""
        where = f"{self.where} {self.rows.unit} {place}"
        if cell == "":
            raise DataError(f"{where}: the column {self.columns['number']} is empty.")
        if not is_number(str(cell)):
            raise DataError(
                f"{where}: the label {cell!r} is not a whole number from 0. If it names the class, say so with "
                f"columns={{'label': {self.columns['number']!r}}} (--column label={self.columns['number']})."
            )
        number = int(cell)
        if self.number_of.setdefault(name, number) != number:
            raise DataError(f"{where}: class {name!r} has label {number} here and {self.number_of[name]} before.")
        if self.name_of.setdefault(number, name) != name:
            raise DataError(f"{where}: label {number} means {name!r} here and {self.name_of[number]!r} before.")

    def _time(self, cell: Any, place: int) -> float:
        """Seconds of a date and time in ISO 8601 (UTC unless it says), or a number as it is."""
        found = self._number_or_date(cell)
        dated, seconds = found or (False, math.nan)
        if not math.isfinite(seconds):
            raise self._wrong(place, "time", cell, "a number or a date such as 2024-05-01 or 2024-05-01T12:30")
        if self.dated not in (None, dated):
            raise self._wrong(place, "time", cell, f"a {'date' if self.dated else 'number'} as in the rows before")
        self.dated = dated
        return seconds

    @staticmethod
    def _number_or_date(cell: Any) -> tuple[bool, float] | None:
        try:
            return False, float(cell)
        except (TypeError, ValueError):
            pass
        try:
            moment = datetime.fromisoformat(cell)
        except (TypeError, ValueError):
            return None
        return True, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _finish(self, name: str, store: Store | None) -> Listing:
        if self.blank and not self.reading.skip_bad:
            listed = "".join(f"\n  {skipped.reason}" for skipped in self.blank[:10])
            more = f"\n  and {len(self.blank) - 10} more" if len(self.blank) > 10 else ""
            raise DataError(
                f"{len(self.blank)} rows of {self.where} cannot be used:{listed}{more}\n"
                f"Fill or remove them, or leave them out with skip_bad (--skip-bad)."
            )
        if not len(self.numbers):
            raise DataError(f"{self.where} lists no {'texts' if store is None else 'files'}.")
        if not self.reading.numbers_as_names:
            require_one_kind(self.first, self.where, written=self.rows.written)
        names = [str(label) for label in self.codes["label"]]
        classes = arranged(tuple(dict.fromkeys(names)), self.number_of)
        domains = tuple(str(domain) for domain in self.codes["domain"])
        parts = np.array([SPELLED[str(split).strip().lower()] for split in self.codes["split"]], dtype=np.int8)
        listing = Listing(
            name,
            self.where,
            self.values.strings(),
            tabulate(names, self.column["label"], classes),
            classes,
            store,
            parts=parts[np.asarray(self.column["split"])] if len(parts) else None,
            domains=np.array(self.column["domain"], dtype=np.int64) if domains else None,
            domain_names=domains,
            times=np.array(self.times) if self.times else None,
            numbers=np.array(self.numbers, dtype=np.int64),
            unit=self.rows.unit,
            class_numbers=self.number_of,
            skipped=tuple(self.blank),
            max_pixels=self.reading.max_pixels,
        )
        return listing if listing.times is None else listing.take(np.argsort(listing.times, kind="stable"))
