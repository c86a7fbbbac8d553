"""Features of frozen passes over test data, so that each image is passed once per run and frozen branch."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureCache:
    """Features by (frozen branch, data digest), up to ``limit`` bytes; beyond, features are computed again.

    It serves evaluation only. It is no replay memory: no method can read it, and it is never written to disk. A branch
    may be known for some rows of a data set and not for others.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self._stored: dict[tuple[str, str], Rows] = {}

    @property
    def bytes(self) -> int:
        return sum(rows.bytes for rows in self._stored.values())

    def holds(self, branch: str, data: str) -> bool:
        """Whether the features of all rows are known."""
        return (branch, data) in self._stored and bool((self._stored[branch, data].place >= 0).all())

    def view(self, data: str, start: int, stop: int, size: int) -> View:
        """The memory of rows ``start`` to ``stop`` of the data set with digest ``data`` and ``size`` rows."""
        return View(self, data, start, stop, size)


class Rows:
    """Features of those rows of a data set that are known: ``place`` [N] says where in ``parts``, or −1."""

    def __init__(self, size: int) -> None:
        self.place = torch.full((size,), -1)
        self.parts: list[Tensor] = []

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)

    def add(self, rows: Tensor, features: Tensor) -> None:
        self.place[rows] = torch.arange(len(rows)) + sum(map(len, self.parts))
        self.parts.append(features.detach())

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Features [n, L] of rows ``start`` to ``stop``, any for unknown ones, and which are known [n]."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        place = self.place[start:stop]
        return self.parts[0][place.clamp_min(0)], place >= 0


class View:
    """What :class:`evertune.backbones.Passes` asks for one batch."""

    def __init__(self, cache: FeatureCache, data: str, start: int, stop: int, size: int) -> None:
        self.cache, self.data, self.start, self.stop, self.size = cache, data, start, stop, size

    def get(self, branch: str) -> tuple[Tensor, Tensor] | None:
        """Features [B, L] of the batch and which of its rows are known [B], if any is."""
        stored = self.cache._stored.get((branch, self.data))
        if stored is None or not (stored.place[self.start : self.stop] >= 0).any():
            return None
        return stored.read(self.start, self.stop)

    def put(self, branch: str, features: Tensor, rows: Tensor) -> None:
        """Keep ``features`` [R, L] of the batch's ``rows`` [R], which were not known."""
        if self.cache.bytes + features.numel() * features.element_size() <= self.cache.limit:
            self.cache._stored.setdefault((branch, self.data), Rows(self.size)).add(rows + self.start, features)
