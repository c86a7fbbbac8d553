"""Rows of a table, read one after the other: CSV, TSV, JSON and JSON lines."""

from __future__ import annotations

import codecs
import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from evertune.errors import DataError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


class Rows(ABC):
    """A table whose columns are known and whose rows are read once."""

    columns: tuple[str, ...]
    unit: str = "line"  # what a row's number counts
    written = True  # all cells are text: digits make a number

    @abstractmethod
    def read(self, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        """The number of each row, and its cells in the order of ``wanted``."""


def open_rows(file: BinaryIO, name: str, where: str, encoding: str) -> Rows:
    """The rows of a file, whose suffix tells what they are.

    Raises
    ------
    DataError
        Now or while reading: bytes that are not of this encoding (naming line and byte), or no such table.
    """
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    suffix = PurePosixPath(name).suffix.lower()
    text = io.TextIOWrapper(file, encoding=encoding, newline="" if suffix in (".csv", ".tsv") else None)
    source = _Text(file, text, where, encoding)
    if suffix in (".csv", ".tsv"):
        return _Csv(source, "\t" if suffix == ".tsv" else ",")
    start = next(iter(source.lines()), "").lstrip("\ufeff \t\r\n")
    text.seek(0)
    return _JsonList(source) if start.startswith("[") or not start else _JsonLines(source)


class _Text:
    """A file as text; what is not text of its encoding is said with its place."""

    def __init__(self, file: BinaryIO, text: io.TextIOWrapper, where: str, encoding: str) -> None:
        self.file, self.text, self.where, self.encoding = file, text, where, encoding

    def lines(self) -> Iterator[str]:
        try:
            for line in self.text:  # noqa: UP028  # to yield from a file would close it with the generator
                yield line
        except UnicodeError as error:
            raise self._undecodable() from error

    def _undecodable(self) -> DataError:
        self.file.seek(0)
        decoder = codecs.getincrementaldecoder(self.encoding)()
        before, byte, line = 0, 0, 0
        for line, content in enumerate(self.file, 1):  # noqa: B007
            try:
                decoder.decode(content)
            except UnicodeDecodeError as error:
                byte = before + error.start
                break
            except UnicodeError:
                byte = before
                break
            before += len(content)
        self.file.seek(0)
        wide = self.file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        shown = self.encoding.removesuffix("-sig")
        other = "utf-16" if wide else "latin-1" if shown == "utf-8" else "utf-8"
        return DataError(
            f"{self.where} is not text in {shown.upper()}: line {line}, byte {byte} of the file. Save it as UTF-8, or "
            f"name what it is written in with encoding={other!r} (--encoding {other})."
        )


class _Csv(Rows):
    def __init__(self, source: _Text, delimiter: str) -> None:
        self._where = source.where
        self._reader = csv.reader(source.lines(), delimiter=delimiter, strict=True)
        self.columns = tuple(column.strip() for column in self._next() or ())
        twice = [column for column in self.columns if self.columns.count(column) > 1]
        if twice:
            raise DataError(f"{source.where} has the column {twice[0]!r} twice; rename one.")

    def _next(self) -> list[str] | None:
        try:
            return next(self._reader, None)
        except csv.Error as error:
            raise DataError(
                f"{self._where} line {self._reader.line_num} is not a row of a readable CSV file ({error})."
            ) from error

    def read(self, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        places = [self.columns.index(column) for column in wanted]
        width = len(self.columns)
        while (row := self._next()) is not None:
            if len(row) != width:
                if not row:  # an empty line
                    continue
                raise DataError(
                    f"{self._where} line {self._reader.line_num} has {len(row)} cells, the header {width}. Put cells "
                    f"that hold a delimiter into quotes."
                )
            yield self._reader.line_num, [row[place] for place in places]


class _Json(Rows):
    written = False

    def __init__(self, source: _Text) -> None:
        self._source = source
        self._objects = self._each()
        self._first = next(self._objects, None)
        self.columns = () if self._first is None else tuple(self._first[1])

    @abstractmethod
    def _each(self) -> Iterator[tuple[int, dict[str, Any]]]: ...

    def _object(self, number: int, value: object) -> tuple[int, dict[str, Any]]:
        if not isinstance(value, dict):
            raise DataError(
                f"{self._source.where} {self.unit} {number} is {_shown(value)}, not an object with a key per column."
            )
        return number, value

    def read(self, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
        if self._first is not None:
            yield self._cells(*self._first, wanted)
        for number, row in self._objects:
            yield self._cells(number, row, wanted)

    def _cells(self, number: int, row: dict[str, Any], wanted: Sequence[str]) -> tuple[int, Sequence[Any]]:
        try:
            return number, [row[column] for column in wanted]
        except KeyError as error:
            raise DataError(f"{self._source.where} {self.unit} {number} has no key {error}.") from error


class _JsonLines(_Json):
    def _each(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(self._source.lines(), 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{self._source.where} line {number} is not JSON ({error}). Write one object per line, or one "
                        f"list of objects."
                    ) from error
                yield self._object(number, value)


class _JsonList(_Json):
    unit = "row"

    def _each(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            values = json.loads("".join(self._source.lines()) or "[]")
        except ValueError as error:
            raise DataError(f"{self._source.where} is not JSON ({error}).") from error
        for number, value in enumerate(values):
            yield self._object(number, value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 40 else text[:37] + "..."
