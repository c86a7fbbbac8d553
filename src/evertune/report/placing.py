"""Names beside what they name, so that none covers anything else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

DIRECTIONS = 24
DISTANCES = (3.0, 8.0, 16.0, 28.0, 44.0, 64.0, 90.0)
"""From the edge of the thing to its name, in pixels."""

SPARE = 2.0
"""Pixels that stay free around a name."""


@dataclass(frozen=True)
class Box:
    """A rectangle, left, bottom, right and top."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def size(self) -> tuple[float, float]:
        return self.x1 - self.x0, self.y1 - self.y0

    def meets(self, other: Box) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def grown(self, by: float) -> Box:
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)

    def holds(self, other: Box) -> bool:
        return self.x0 <= other.x0 and other.x1 <= self.x1 and self.y0 <= other.y0 and other.y1 <= self.y1

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """The point of the rectangle that is nearest to ``point``."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

    def distance(self, other: Box) -> float:
        """From edge to edge."""
        across, up = (max(self.x0 - other.x1, other.x0 - self.x1, 0), max(self.y0 - other.y1, other.y0 - self.y1, 0))
        return math.hypot(across, up)


def place_beside(things: Sequence[Box], names: Sequence[Box], taken: Sequence[Box], within: Box) -> list[Box]:
    """Where the names go: each near its thing and on nothing of ``things``, of ``taken`` and of the names before it.

    Those with the most neighbours choose first. A name for which there is no place stands to the right of its thing.
    """
    occupied = [*things, *taken]
    found: dict[int, Box] = {}
    for index in sorted(range(len(things)), key=lambda i: -_crowd(things[i], things)):
        around = [box for box in _around(things[index], names[index]) if within.holds(box)]
        free = (box for box in around if not any(box.grown(SPARE).meets(other) for other in occupied))
        found[index] = next(free, next(_around(things[index], names[index])))
        occupied.append(found[index])
    return [found[index] for index in range(len(things))]


def _around(thing: Box, name: Box) -> Iterator[Box]:
    """Places for a name, the nearest first, of these the right before the left before above and below."""
    (x, y), (wide, high), radius = thing.centre, name.size, thing.size[0] / 2
    turns = [2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    turns.sort(key=lambda turn: (round(abs(math.sin(turn)), 6), -math.cos(turn)))
    for gap, turn in product(DISTANCES, turns):
        across, up = math.cos(turn), math.sin(turn)
        cx = x + (radius + gap) * across + wide / 2 * max(-1.0, min(1.0, 3 * across))
        cy = y + (radius + gap) * up + high / 2 * max(-1.0, min(1.0, 3 * up))
        yield Box(cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2)


def _crowd(thing: Box, things: Sequence[Box]) -> float:
    x, y = thing.centre
    return sum(math.exp(-math.hypot(x - other.centre[0], y - other.centre[1]) / 80) for other in things)
