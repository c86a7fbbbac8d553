"""Sources that count what is read of them, or stop."""

from __future__ import annotations

from collections.abc import Callable

from evertune.errors import DataError
from evertune.streams import Source
from evertune.streams.source import Example


class Stopped(Exception):
    """Thrown into the midst of learning, as a power cut is."""


class Watched(Source):
    """Another source, which calls ``on_load`` with the number of examples read so far before it reads one more."""

    def __init__(self, source: Source, on_load: Callable[[int], None] = lambda loads: None) -> None:
        self.source, self.on_load, self.loads = source, on_load, 0
        self.modality = source.modality
        self.name, self.classes, self.labels = source.name, source.classes, source.labels

    def load(self, index: int) -> Example:
        self.on_load(self.loads)
        self.loads += 1
        return self.source.load(index)

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def _digest(self) -> str:
        return self.source.digest


def failing(source: Source, good: int) -> Watched:
    """``source``, which cannot be read any more after ``good`` examples."""

    def refuse(loads: int) -> None:
        if loads >= good:
            raise DataError(f"{source.name} cannot be read.")

    return Watched(source, refuse)


def stopping(source: Source, after: int) -> Watched:
    """``source``, which is :class:`Stopped` at the example ``after``."""

    def stop(loads: int) -> None:
        if loads >= after:
            raise Stopped

    return Watched(source, stop)
