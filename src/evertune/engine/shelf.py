"""The part of the feature cache that one pass over one source may see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evertune.backbones.passes import Memory
from evertune.engine.entry import Entry
from evertune.streams import Source, Subset
from evertune.streams.batches import Batch
from evertune.streams.chain import Renamed
from evertune.streams.source import IntArray

if TYPE_CHECKING:
    from evertune.engine.disk_cache import DiskCache


SEGMENT = 64 << 20
"""Bytes of features after which a long pass writes what it has."""


class Shelf:
    """What is known of one source: read and added to batch by batch during a pass, written when it ends.

    ``known`` [N] is settled when the pass begins, whatever other processes write meanwhile.
    """

    def __init__(self, cache: DiskCache, entry: Entry, rows: IntArray) -> None:
        self.cache, self.entry, self.rows = cache, entry, rows
        self.known = torch.from_numpy(entry.holds(rows))
        self._new: list[tuple[IntArray, Tensor]] = []

    @property
    def complete(self) -> bool:
        """Whether no example need be looked at."""
        return bool(self.known.all())

    def view(self, rows: Tensor, device: torch.device, others: Memory | None = None) -> ShelfView:
        """The memory of a batch: ``rows`` [B] of the source for plain features, ``others`` for all other branches."""
        return ShelfView(self, rows.cpu(), device, others)

    def read(self, rows: Tensor) -> Tensor:
        return self.entry.read(self.rows[rows.numpy()])

    def add(self, rows: Tensor, features: Tensor) -> None:
        self._new.append((self.rows[rows.numpy()], features.detach().cpu()))
        if sum(part.numel() * part.element_size() for _, part in self._new) >= SEGMENT:
            self.close()

    def close(self) -> None:
        """Write what was added."""
        if self._new:
            rows, features = zip(*self._new, strict=True)
            self._new = []
            self.cache.keep(self.entry, np.concatenate(rows), torch.cat(features))


class ShelfView:
    """What :class:`evertune.backbones.Passes` asks for one batch."""

    def __init__(self, shelf: Shelf, rows: Tensor, device: torch.device, others: Memory | None) -> None:
        self.shelf, self.rows, self.device, self.others = shelf, rows, device, others

    def get(self, branch: str) -> tuple[Tensor, Tensor] | None:
        """Features [B, L] of the batch and which of its rows are known [B], if any is."""
        if branch != "plain":
            return None if self.others is None else self.others.get(branch)
        known = self.shelf.known[self.rows]
        if not known.any():
            return None
        found = self.shelf.read(self.rows[known]).to(self.device)
        features = found.new_zeros(len(known), found.shape[1])
        features[known.to(self.device)] = found
        return features, known

    def put(self, branch: str, features: Tensor, rows: Tensor) -> None:
        """Keep ``features`` [R, L] of the batch's ``rows`` [R], which were not known."""
        if branch == "plain":
            self.shelf.add(self.rows[rows.cpu()], features)
        elif self.others is not None:
            self.others.put(branch, features, rows)


def rooted(source: Source) -> tuple[Source, IntArray]:
    """The data set a source was cut from, and its rows there [N]. Class names play no part in a feature."""
    rows = np.arange(len(source))
    while isinstance(source, Subset | Renamed):
        if isinstance(source, Subset):
            rows = source.rows[rows]
        source = source.source
    return source, rows


def when_asked(
    source: Source,
    size: int,
    read: Callable[[IntArray], Iterable[Batch]],
    rank: int,
    world: int,
    order: IntArray | None = None,
) -> Iterator[tuple[Tensor, Tensor | Callable[[], Tensor], Tensor]]:
    """Batches of ``size`` in ``order``, or the source's own, as :class:`evertune.streams.Batches` gives them, but read
    only if asked for.

    Who asks for one will ask for the others: these are then read ahead as usual.
    """
    order = np.arange(len(source)) if order is None else order
    for start in range(0, len(order), size):
        whole = order[start : start + size]
        asked: list[IntArray] = []

        def inputs(whole: IntArray = whole, asked: list[IntArray] = asked) -> Tensor:
            asked.append(whole)
            return next(iter(read(whole)))[1]

        rows = np.array_split(whole, world)[rank]
        yield torch.from_numpy(rows), inputs, torch.from_numpy(source.labels[rows])
        if asked:
            rest = order[start + size :]
            yield from read(rest) if len(rest) else ()
            return
