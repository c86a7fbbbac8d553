"""A source: labelled examples that are read one at a time, when they are needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from evertune.errors import DataError, nearest

IntArray = NDArray[np.int64]
Example = Image.Image | str
Modality = Literal["image", "text"]


class Source(ABC):
    """N labelled examples. Labels are positions in ``classes``, domains positions in ``domain_names``.

    A source knows its labels from the start and reads an example only in :meth:`load`.
    """

    modality: Modality = "image"
    name: str
    classes: tuple[str, ...]
    labels: IntArray  # [N]
    domains: IntArray | None = None  # [N]
    domain_names: tuple[str, ...] = ()
    times: NDArray[np.float64] | None = None  # [N], when each example was made, for data that says so: rows ascend
    skipped: tuple[str, ...] = ()  # files and rows left out by skip_bad, each with its reason
    key: str = ""  # what names of identify() begin with: "train/" where two parts count their rows alike

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int) -> Example:
        """The text of one row, or its image, always in mode RGB.

        Grey is repeated over the channels, transparency is laid on white, 16 bits are scaled to 8.
        Raises DataError naming the row or file if it cannot be read.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where one row comes from, for messages: "photos/cat/3.png" or "train row 17"."""

    def identify(self, index: int) -> str:
        """The name of one row within its data set, the same wherever the data lies: "cat/3.png" or "train/17"."""
        return f"{self.key}{index}"

    def content(self, index: int) -> bytes:
        """One row as bytes, to tell whether two are the same: those of its file, its pixels, or its text in UTF-8.

        Raises DataError naming the row or file if it cannot be read.
        """
        example = self.load(index)
        if isinstance(example, str):
            return example.encode()
        return f"{example.size}".encode() + example.tobytes()

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over images, labels and class names; reads everything, once, when first asked for."""
        return self._digest()

    @abstractmethod
    def _digest(self) -> str: ...

    def select(self, rows: ArrayLike) -> Subset:
        """A view of some rows (positions, or a mask of length N). Classes and labels keep their meaning."""
        return Subset(self, rows)

    def counts(self) -> IntArray:
        """Examples per class, in the order of ``classes``."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def present(self) -> tuple[str, ...]:
        """The classes that have at least one example, in the order of ``classes``."""
        return tuple(self.classes[i] for i in np.flatnonzero(self.counts()))

    def rows_of(self, names: Sequence[str]) -> IntArray:
        """Rows that carry one of these class names, in file order; names the source does not know have no rows."""
        asked = set(names)
        order, starts = self._by_class
        groups = [order[starts[i] : starts[i + 1]] for i, name in enumerate(self.classes) if name in asked]
        return np.sort(np.concatenate(groups)) if groups else np.zeros(0, np.int64)

    @cached_property
    def _by_class(self) -> tuple[IntArray, IntArray]:
        """All rows, class after class, and where each class begins: looked up, a group costs its own rows only."""
        return np.argsort(self.labels, kind="stable"), np.concatenate([[0], np.cumsum(self.counts())])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} {self.modality}s, {len(self.present())} classes>"


class Subset(Source):
    """Some rows of another source; a subset of a subset refers to the first source directly."""

    def __init__(self, source: Source, rows: ArrayLike) -> None:
        chosen = positions(rows, source)
        self.modality = source.modality
        self.name = source.name
        self.classes = source.classes
        self.domain_names = source.domain_names
        self.labels = source.labels[chosen]
        self.domains = None if source.domains is None else source.domains[chosen]
        self.times = None if source.times is None else source.times[chosen]
        self.source: Source = source.source if isinstance(source, Subset) else source
        self.rows: IntArray = source.rows[chosen] if isinstance(source, Subset) else chosen

    def load(self, index: int) -> Example:
        return self.source.load(int(self.rows[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.rows[index]))

    def identify(self, index: int) -> str:
        return self.key + self.source.identify(int(self.rows[index]))

    def content(self, index: int) -> bytes:
        return self.source.content(int(self.rows[index]))

    def _digest(self) -> str:
        return hashlib.sha256(self.source.digest.encode() + self.rows.astype("<i8").tobytes()).hexdigest()


def positions(rows: ArrayLike, source: Source) -> IntArray:
    """Rows of a source, given as positions or as a mask; DataError if one does not exist."""
    given = np.asarray(rows)
    if given.dtype == bool:
        if given.shape != (len(source),):
            raise DataError(f"A mask over {source.name!r} has shape {given.shape}; it needs {len(source)} entries.")
        return np.flatnonzero(given)
    if given.size == 0:
        return np.zeros(0, np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise DataError(
            f"Rows of {source.name!r} are chosen by a list of integers or a mask, "
            f"not by {given.dtype} values of shape {given.shape}."
        )
    positions = given.astype(np.int64)
    outside = positions[(positions < 0) | (positions >= len(source))]
    if len(outside):
        raise DataError(f"Row {outside[0]} does not exist: {source.name!r} has rows 0 to {len(source) - 1}.")
    return positions


def encode(values: ArrayLike, names: Sequence[str] | None, where: str) -> tuple[IntArray, tuple[str, ...]]:
    """Turn labels into positions in a table of names.

    ``values`` [N] or [N, 1] are names, or whole numbers from 0. Without ``names`` the table holds the values that
    occur, sorted (numbers by size). Returns labels [N] and the table; DataError names the first row that fits neither.

    >>> encode(["dog", "cat", "dog"], None, "labels")
    (array([1, 0, 1]), ('cat', 'dog'))
    """
    given = _one_kind(values, where)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1 or not (given.dtype.kind in "iuU" or _names(given)):
        raise DataError(
            f"{where}: labels must be one name or one whole number per row, not {given.dtype} of shape {given.shape}."
        )
    table = None if names is None else check_names(names, where)
    if given.dtype.kind in "UO":
        if table is None:
            table = tuple(sorted({str(value) for value in given}))
        position = {name: i for i, name in enumerate(table)}
        labels = np.fromiter((position.get(value, -1) for value in given), np.int64, len(given))
        unknown = np.flatnonzero(labels < 0)
        if len(unknown):
            value = str(given[unknown[0]])
            raise DataError(f"{where} row {unknown[0]}: {value!r} is not a class name. {nearest(value, table)}")
        return labels, table
    negative = np.flatnonzero(given < 0)
    if len(negative):
        raise DataError(
            f"{where} row {negative[0]}: label {given[negative[0]]} is negative; leave unlabelled rows out."
        )
    if table is None:
        unique, labels = np.unique(given, return_inverse=True)
        return labels.astype(np.int64), tuple(str(value) for value in unique)
    beyond = np.flatnonzero(given >= len(table))
    if len(beyond):
        raise DataError(
            f"{where} row {beyond[0]}: label {given[beyond[0]]} has no name; {len(table)} class names were given, "
            f"so labels go from 0 to {len(table) - 1}."
        )
    return given.astype(np.int64), table


def _one_kind(values: ArrayLike, where: str) -> NDArray[Any]:
    """The values as an array; DataError naming two rows if some are names and some are numbers.

    A list of names stays a list of pointers: numpy's own would give each row the room of the longest.
    """
    if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.dtype == object):
        named = [isinstance(value, str) for value in values]
        if named and all(named):
            given = np.empty(len(named), dtype=object)
            given[:] = values
            return given
        if any(named):
            one, other = named.index(True), named.index(False)
            raise DataError(
                f"{where} mix names and numbers: row {one} has {values[one]!r}, row {other} has {values[other]!r}. "
                f"Write all of them as names, or all as whole numbers."
            )
    return np.asarray(values)


def _names(given: NDArray[Any]) -> bool:
    return given.dtype == object and all(isinstance(value, str) for value in given.flat)


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as plain strings; DataError if one is empty or stands twice."""
    table = tuple(str(name) for name in names)
    if "" in table:
        raise DataError(f"{where}: class name {table.index('')} is empty; every class needs a name.")
    twice = sorted({name for name in table if table.count(name) > 1}) if len(set(table)) < len(table) else []
    if twice:
        raise DataError(f"{where}: these class names stand twice: {', '.join(twice)}. Names must be unique.")
    return table
