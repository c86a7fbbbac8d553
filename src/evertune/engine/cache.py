"""Features of frozen passes, so that each image is passed once per frozen branch: test data during a run, and the views
of a training phase that repeats them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


class FeatureCache:
    """Features by (frozen branch, data digest), up to ``limit`` bytes; beyond, features are computed again.

    It is no replay memory: no method can read it, it is never written to disk, and for training, where a phase asks for
    it, it lasts as long as that phase. A branch may be known for some rows of a data set and not for others.
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

    def keep(self, branches: Collection[str]) -> None:
        """Drop what belongs to branches that are no more."""
        self._stored = {key: rows for key, rows in self._stored.items() if key[0] in branches}

    def state(self) -> dict[str, Tensor]:
        """Everything known, by names that :meth:`load` understands."""
        return {
            f"{data}/{branch}/{part}": tensor
            for (branch, data), rows in self._stored.items()
            for part, tensor in (("place", rows.place), ("features", rows.joined))
        }

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Know what ``state`` tells, and nothing else."""
        self._stored = {}
        for name in state:
            data, branch, part = name.split("/")
            if part == "place":
                rows = self._stored[branch, data] = Rows(len(state[name]))
                rows.place, rows.parts = state[name].clone(), [state[f"{data}/{branch}/features"].to(device, copy=True)]

    def view(self, data: str, rows: Tensor, size: int) -> View:
        """The memory of ``rows`` [B] of the data set called ``data`` with ``size`` rows."""
        return View(self, data, rows.cpu(), size)


class Rows:
    """Features of those rows of a data set that are known: ``place`` [N] says where in ``parts``, or −1."""

    def __init__(self, size: int) -> None:
        self.place = torch.full((size,), -1)
        self.parts: list[Tensor] = []

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)

    def add(self, rows: Tensor, features: Tensor) -> None:
        fresh = self.place[rows] < 0
        rows, features = rows[fresh], features[fresh.to(features.device)]
        self.place[rows] = torch.arange(len(rows)) + sum(map(len, self.parts))
        self.parts.append(features.detach())

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, L] of ``rows`` [B], any for unknown ones, and which are known [B]."""
        place = self.place[rows]
        return self.joined[place.clamp_min(0)], place >= 0

    @property
    def joined(self) -> Tensor:
        """The features of all known rows, [n, L], in the order in which they became known."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        return self.parts[0]


class View:
    """What :class:`evertune.backbones.Passes` asks for one batch."""

    def __init__(self, cache: FeatureCache, data: str, rows: Tensor, size: int) -> None:
        self.cache, self.data, self.rows, self.size = cache, data, rows, size

    def get(self, branch: str) -> tuple[Tensor, Tensor] | None:
        """Features [B, L] of the batch and which of its rows are known [B], if any is."""
        stored = self.cache._stored.get((branch, self.data))
        if stored is None or not (stored.place[self.rows] >= 0).any():
            return None
        return stored.read(self.rows)

    def put(self, branch: str, features: Tensor, rows: Tensor) -> None:
        """Keep ``features`` [R, L] of the batch's ``rows`` [R], which were not known."""
        if self.cache.bytes + features.numel() * features.element_size() <= self.cache.limit:
            self.cache._stored.setdefault((branch, self.data), Rows(self.size)).add(self.rows[rows.cpu()], features)
