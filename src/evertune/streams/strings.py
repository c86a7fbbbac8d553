"""Very many strings in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Strings(Sequence[str]):
    """Strings in one block of UTF-8: their bytes and 16 more for each, where Python's own take 50 more and a pointer.

    What :meth:`take` chooses shares the block.
    """

    def __init__(self, block: bytearray, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self._block, self._starts, self._stops = block, starts, stops

    @classmethod
    def of(cls, items: Iterable[str]) -> Strings:
        """These strings; UnicodeEncodeError for one with half a surrogate pair, which no encoding holds."""
        writer = Writer()
        for item in items:
            writer.add(item)
        return writer.strings()

    def raw(self, index: int) -> bytes:
        """One string in UTF-8."""
        return bytes(self._block[self._starts[index] : self._stops[index]])

    def take(self, rows: NDArray[Any] | slice) -> Strings:
        """Some of them: positions, a mask, or a slice."""
        return Strings(self._block, self._starts[rows], self._stops[rows])

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | slice) -> str | Strings:
        if isinstance(index, slice):
            return self.take(index)
        return self._block[self._starts[index] : self._stops[index]].decode()

    def __iter__(self) -> Iterator[str]:
        for start, stop in zip(self._starts, self._stops, strict=True):
            yield self._block[start:stop].decode()


class Writer:
    """Makes :class:`Strings` one by one."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._ends = array("q")

    def add(self, item: str) -> None:
        self._block += item.encode()
        self._ends.append(len(self._block))

    def strings(self) -> Strings:
        stops = np.array(self._ends, dtype=np.int64)
        return Strings(self._block, np.concatenate([np.zeros(1, np.int64), stops])[:-1], stops)
