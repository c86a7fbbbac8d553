"""A source: labelled examples that are read one at a time, when they are needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

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
    skipped: tuple[str, ...] = ()  # files left out by skip_bad, each with its reason

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
        wanted = np.array([name in asked for name in self.classes], dtype=bool)
        return np.flatnonzero(wanted[self.labels])

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
        self.source: Source = source.source if isinstance(source, Subset) else source
        self.rows: IntArray = source.rows[chosen] if isinstance(source, Subset) else chosen

    def load(self, index: int) -> Example:
        return self.source.load(int(self.rows[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.rows[index]))

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
    given = np.asarray(values)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.dtype == object and all(isinstance(value, str) for value in given.flat):
        given = given.astype(str)
    if given.ndim != 1 or given.dtype.kind not in "iuU":
        raise DataError(
            f"{where}: labels must be one name or one whole number per row, not {given.dtype} of shape {given.shape}."
        )
    table = None if names is None else check_names(names, where)
    if given.dtype.kind == "U":
        table = tuple(str(value) for value in np.unique(given)) if table is None else table
        position = {name: i for i, name in enumerate(table)}
        for row, value in enumerate(given):
            if value not in position:
                raise DataError(f"{where} row {row}: {str(value)!r} is not a class name. {nearest(str(value), table)}")
        return np.array([position[value] for value in given], dtype=np.int64), table
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


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as plain strings; DataError if one is empty or stands twice."""
    table = tuple(str(name) for name in names)
    if "" in table:
        raise DataError(f"{where}: class name {table.index('')} is empty; every class needs a name.")
    twice = sorted({name for name in table if table.count(name) > 1}) if len(set(table)) < len(table) else []
    if twice:
        raise DataError(f"{where}: these class names stand twice: {', '.join(twice)}. Names must be unique.")
    return table
