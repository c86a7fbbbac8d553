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
        self.bytes = 0
        self._stored: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def holds(self, branch: str, data: str) -> bool:
        """Whether the features of all rows are known."""
        return (branch, data) in self._stored and bool(self._stored[branch, data][1].all())

    def view(self, data: str, start: int, stop: int, size: int) -> View:
        """The memory of rows ``start`` to ``stop`` of the data set with digest ``data`` and ``size`` rows."""
        return View(self, data, start, stop, size)

    def _open(self, branch: str, data: str, like: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """Room for features [N, L], and which of them are known [N]; ``None`` beyond the limit."""
        if (branch, data) not in self._stored:
            needed = size * like.shape[1] * like.element_size()
            if self.bytes + needed > self.limit:
                return None
            self.bytes += needed
            self._stored[branch, data] = like.new_empty(size, like.shape[1]), torch.zeros(size, dtype=torch.bool)
        return self._stored[branch, data]


class View:
    """What :class:`evertune.backbones.Passes` asks for one batch."""

    def __init__(self, cache: FeatureCache, data: str, start: int, stop: int, size: int) -> None:
        self.cache, self.data, self.start, self.stop, self.size = cache, data, start, stop, size

    def get(self, branch: str) -> tuple[Tensor, Tensor] | None:
        """Features [B, L] of the batch and which of its rows are known [B], if any is."""
        stored = self.cache._stored.get((branch, self.data))
        if stored is None:
            return None
        features, known = (part[self.start : self.stop] for part in stored)
        return (features, known) if known.any() else None

    def put(self, branch: str, features: Tensor, rows: Tensor) -> None:
        """Keep ``features`` [R, L] of the batch's ``rows`` [R]."""
        stored = self.cache._open(branch, self.data, features, self.size)
        if stored is not None:
            stored[0][rows + self.start] = features.detach()
            stored[1][rows + self.start] = True
