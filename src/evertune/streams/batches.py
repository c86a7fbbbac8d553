"""Mini-batches of a source, the same whoever computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evertune.errors import ConfigError, DataError
from evertune.streams.pixels import Pixels
from evertune.streams.source import Source, positions
from evertune.streams.views import TestView, TrainView, View

Batch = tuple[Tensor, Tensor, Tensor]


class Batches:
    """One epoch of mini-batches: rows int64 [B] in the source, inputs, labels int64 [B].

    The inputs are what the view makes of a batch: images uint8 [B, 3, size, size], or token ids int64 [B, N].

    The order is drawn from (seed, epoch) and the view of an example from (seed, epoch, row), so batches depend neither
    on the number of loader processes nor on that of ranks: the rows of a batch are divided contiguously over ``world``
    ranks, and the ranks' parts put together are the batch. When a last batch has fewer rows than there are ranks, some
    ranks get an empty part, so that all make the same number of steps.

    Parameters
    ----------
    seed : whole numbers from 0 that, with ``epoch``, decide everything random.
    workers : loader processes; 0 reads in this one.
    rank, world : which part of every batch, of how many.
    drop_last : leave out a last batch that is not full.
    rows : only these rows of the source.
    view_epoch : the views of another epoch than that of the order.
    pixels : where the source's decoded images are kept; the views are then made there, the same, on its device.
    start : the first batch to give; those before it are not read.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        batch_size: int,
        *,
        shuffle: bool,
        seed: Sequence[int],
        epoch: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        rows: ArrayLike | None = None,
        view_epoch: int | None = None,
        pixels: Pixels | None = None,
        start: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
        if workers < 0:
            raise ConfigError(f"workers is {workers}; it is a number of processes, 0 for none besides this one.")
        if not 0 <= rank < world:
            raise ConfigError(f"rank is {rank} of world {world}; ranks go from 0 to world - 1.")
        if start < 0:
            raise ConfigError(f"start is {start}; batches are counted from 0.")
        if min(*seed, epoch, 0) < 0:
            raise ConfigError(f"seed {tuple(seed)} and epoch {epoch} must hold no negative number.")
        order = np.arange(len(source)) if rows is None else positions(rows, source)
        if len(order) == 0:
            raise DataError(f"{source.name}: there are no examples to make batches of.")
        if drop_last and len(order) < batch_size:
            raise ConfigError(
                f"drop_last leaves nothing: {len(order)} examples do not fill a batch of {batch_size}. "
                f"Lower batch_size or keep the last batch."
            )
        if shuffle:
            order = np.random.default_rng((*seed, epoch)).permutation(order)
        self.source = source
        self.view = view
        self.workers = workers
        self.pixels = pixels
        self._entropy = (*seed, epoch if view_epoch is None else view_epoch)
        whole = len(order) - len(order) % batch_size if drop_last else len(order)
        batches = (order[at : at + batch_size] for at in range(start * batch_size, whole, batch_size))
        self._rows = [np.array_split(batch, world)[rank].tolist() for batch in batches]

    def __len__(self) -> int:
        """Mini-batches in the epoch from the first one given, the same on every rank."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        if self.pixels is not None and isinstance(self.view, TrainView | TestView):
            shown = self.pixels.batches(self.view, self._rows, self._entropy, self.workers)
            for chosen, images in zip(self._rows, shown, strict=True):
                yield torch.tensor(chosen, dtype=torch.int64), images, torch.from_numpy(self.source.labels[chosen])
            return
        loader = DataLoader(
            _Examples(self.source, self.view, self._entropy),
            batch_sampler=self._rows,
            num_workers=self.workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # without its own, a loader draws from the global generator
        )
        for rows, inputs in loader:
            if isinstance(inputs, DataError):
                raise inputs
            yield rows, inputs, torch.from_numpy(self.source.labels[rows.numpy()])


class _Examples(Dataset[Tensor]):
    """What a loader process holds: it makes the inputs of a whole batch, or the error that stopped it.

    An error travels as a value: raised in a loader process, it would reach the user as a wall of traceback.
    """

    def __init__(self, source: Source, view: View, entropy: tuple[int, ...]) -> None:
        self.source = source
        self.view = view
        self.entropy = entropy

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        return self.view(self.source.load(row), np.random.default_rng((*self.entropy, row)))

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor | DataError]:
        try:
            inputs = self.view.collate([self[row] for row in rows])
        except DataError as error:
            return torch.tensor(rows, dtype=torch.int64), error
        return torch.tensor(rows, dtype=torch.int64), inputs


def _as_is(batch: Any) -> Any:
    return batch
