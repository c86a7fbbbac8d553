"""Features of frozen passes over test data, so that each image is passed once per run and frozen branch."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureCache:
    """Features by (frozen branch, data digest), up to ``limit`` bytes; beyond, features are computed again.

    It serves evaluation only. It is no replay memory: no method can read it, and it is never written to disk.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.bytes = 0
        self._stored: dict[tuple[str, str], Tensor] = {}

    def holds(self, branch: str, data: str) -> bool:
        return (branch, data) in self._stored

    def view(self, data: str, start: int, stop: int) -> View:
        """The memory of rows ``start`` to ``stop`` of the data set with digest ``data``."""
        return View(self, data, start, stop)

    def writer(self, data: str) -> Writer:
        return Writer(self, data)

    def _keep(self, branch: str, data: str, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if self.bytes + size <= self.limit and not self.holds(branch, data):
            self._stored[branch, data] = features
            self.bytes += size


class View:
    """What :class:`evertune.backbones.Passes` asks for one batch."""

    def __init__(self, cache: FeatureCache, data: str, start: int, stop: int) -> None:
        self.cache, self.data, self.start, self.stop = cache, data, start, stop
        self.fresh: dict[str, Tensor] = {}

    def get(self, branch: str) -> Tensor | None:
        stored = self.cache._stored.get((branch, self.data))
        return None if stored is None else stored[self.start : self.stop]

    def put(self, branch: str, features: Tensor) -> None:
        self.fresh[branch] = features


class Writer:
    """Joins the fresh features of all batches of a data set and hands them to the cache at the end."""

    def __init__(self, cache: FeatureCache, data: str) -> None:
        self.cache, self.data = cache, data
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, view: View) -> None:
        for branch, features in view.fresh.items():
            self.parts.setdefault(branch, []).append(features)

    def close(self, rows: int) -> None:
        for branch, parts in self.parts.items():
            whole = torch.cat(parts)
            if len(whole) == rows:
                self.cache._keep(branch, self.data, whole)
