"""Several sources as one, so that a task may hold examples of more than one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from evertune.errors import DataError
from evertune.streams.source import Example, IntArray, Source, Subset


def joined(parts: Sequence[Source]) -> Source:
    """The examples of all parts, one after the other; parts of one source become one choice of its rows."""
    if len(parts) == 1:
        return parts[0]
    bases = [part.source if isinstance(part, Subset) else part for part in parts]
    if all(base is bases[0] for base in bases):
        rows = [part.rows if isinstance(part, Subset) else np.arange(len(part)) for part in parts]
        return bases[0].select(np.concatenate(rows))
    return Joined(parts)


class Joined(Source):
    """Sources one after the other. Classes and domains meet by name; nothing is copied."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        modalities = {part.modality for part in self.parts}
        if len(modalities) > 1:
            raise DataError(f"{self.parts[0].name} and others hold images and texts: they cannot be one task's data.")
        (self.modality,) = modalities
        self.name = ", ".join(dict.fromkeys(part.name for part in self.parts))
        self.classes = tuple(dict.fromkeys(name for part in self.parts for name in part.classes))
        self.labels = _concatenate([_renumber(part.labels, part.classes, self.classes) for part in self.parts])
        if all(part.domains is not None for part in self.parts):
            self.domain_names = tuple(dict.fromkeys(name for part in self.parts for name in part.domain_names))
            numbers = [
                _renumber(part.domains, part.domain_names, self.domain_names)
                for part in self.parts
                if part.domains is not None
            ]
            self.domains = _concatenate(numbers)
        times = [part.times for part in self.parts if part.times is not None]
        self.times = np.concatenate(times) if len(times) == len(self.parts) else None
        self.skipped = tuple(dict.fromkeys(file for part in self.parts for file in part.skipped))
        self._ends = np.cumsum([len(part) for part in self.parts])

    def load(self, index: int) -> Example:
        part, row = self._place(index)
        return part.load(row)

    def describe(self, index: int) -> str:
        part, row = self._place(index)
        return part.describe(row)

    def identify(self, index: int) -> str:
        part, row = self._place(index)
        return part.identify(row)

    def content(self, index: int) -> bytes:
        part, row = self._place(index)
        return part.content(row)

    def _place(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - int(self._ends[number]) + len(self.parts[number])

    def _digest(self) -> str:
        return hashlib.sha256("\0".join(part.digest for part in self.parts).encode()).hexdigest()


def _renumber(values: IntArray, names: Sequence[str], table: Sequence[str]) -> IntArray:
    position = {name: i for i, name in enumerate(table)}
    return np.array([position[name] for name in names], dtype=np.int64)[values]


def _concatenate(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate(parts).astype(np.int64)
