"""What a method sees of a source, batch by batch on the device: to train, to collect statistics, to be asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evertune.backbones import Backbone, Passes
from evertune.backbones.passes import Memory
from evertune.engine.cache import FeatureCache
from evertune.engine.runtime import Runtime
from evertune.engine.shelf import Shelf, when_asked
from evertune.errors import ConfigError, nearest
from evertune.methods import Batch, Recipe
from evertune.streams import Batches, Source
from evertune.streams.pixels import KEPT, Pixels
from evertune.streams.source import IntArray
from evertune.streams.views import View

PIXELS = ("exact", "fast")


class Feed:
    """Batches for one backbone, through the views that go with it. All of a process's batches come from here.

    Parameters
    ----------
    eval_batch
        Examples in a batch of the test view.
    workers
        Loader processes.
    pixels
        ``"exact"`` or ``"fast"``, see :class:`evertune.Learner`.
    """

    def __init__(
        self,
        backbone: Backbone,
        runtime: Runtime,
        *,
        train_view: View,
        test_view: View,
        eval_batch: int,
        workers: int,
        pixels: str,
    ) -> None:
        if pixels not in PIXELS:
            raise ConfigError(f"pixels is {pixels!r}. {nearest(pixels, PIXELS)}")
        self.backbone, self.runtime = backbone, runtime
        self.train_view, self.test_view = train_view, test_view
        self.eval_batch, self.workers, self.pixels = eval_batch, workers, pixels

    def decoded(self, source: Source, kept: int = KEPT) -> Pixels | None:
        """Where images are decoded once and their views made on the device; None where each is read when shown."""
        fast = self.pixels == "fast" and source.modality == "image"
        return Pixels(source, self.runtime.device, kept=kept) if fast else None

    def training(
        self,
        source: Source,
        indices: np.ndarray,
        recipe: Recipe,
        seed: tuple[int, ...],
        epoch: int,
        *,
        decoded: Pixels | None,
        bank: FeatureCache | None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """An epoch in the training view, shuffled, from its batch ``start``; each process has its part of a batch.

        With so many ``recipe.views`` the epochs show them in turn, and a ``bank`` keeps features of frozen branches.
        """
        shown = epoch if recipe.views is None else epoch % recipe.views
        to_index = torch.as_tensor(indices)
        for rows, inputs, labels in self._read(
            source,
            self.train_view,
            recipe.batch_size,
            shuffle=True,
            seed=seed,
            epoch=epoch,
            view_epoch=shown,
            pixels=decoded,
            start=start,
        ):
            rows, labels = rows.to(self.runtime.device), to_index[labels].to(self.runtime.device)
            memory = None if bank is None else bank.view(str(shown), rows, len(source))
            yield Batch(self._passes(inputs, memory, by_length=self.by_length), labels, rows)

    def collecting(
        self, source: Source, indices: np.ndarray, *, decoded: Pixels | None, shelf: Shelf | None, start: int = 0
    ) -> Iterator[Batch]:
        """One pass in the test view, after its first ``start`` examples; features, labels and rows are those of all
        processes.

        What is on the ``shelf`` is not computed, and not even decoded if nothing but that is asked for.
        """
        order, runtime = self.order(source)[start:], self.runtime
        if not len(order):
            return
        read = functools.partial(self._tested, source, decoded)
        lazy = shelf is not None and shelf.complete
        to_index = torch.as_tensor(indices)
        for rows, inputs, labels in (
            when_asked(source, self.eval_batch, read, runtime.rank, runtime.world, order) if lazy else read(order)
        ):
            labels = runtime.gather(to_index[labels].to(runtime.device))
            rows = runtime.gather(rows.to(runtime.device))
            memory = None if shelf is None else shelf.view(rows, runtime.device)
            yield Batch(self._passes(inputs, memory, gather=self._gather, part=self._part), labels, rows)

    def asking(
        self,
        source: Source,
        order: IntArray,
        memory: Callable[[Tensor], Memory | None],
        *,
        decode: bool = True,
    ) -> Iterator[tuple[Tensor, Passes]]:
        """The rows [B] of each batch of ``order``, those of all processes, and their passes in the test view.

        ``memory`` gives what is known of such rows. Without ``decode`` no example is read: all that will be asked for
        is known.
        """
        device = self.runtime.device
        decoded = None if device.type == "cpu" else self.decoded(source, kept=0)  # each image is shown once
        inputs = (shown for _, shown, _ in self._tested(source, decoded, order)) if decode else repeat(torch.empty(0))
        for rows, shown in zip(torch.split(torch.from_numpy(order), self.eval_batch), inputs, strict=False):
            yield rows, self._passes(shown, memory(rows), gather=self._gather, part=self._part, rows=rows)

    def order(self, source: Source) -> IntArray:
        """The rows [N] as they are best passed in the test view."""
        order = self.test_view.order(source)
        return np.arange(len(source)) if order is None else order

    def _tested(self, source: Source, decoded: Pixels | None, rows: IntArray) -> Batches:
        return self._read(
            source, self.test_view, self.eval_batch, shuffle=False, seed=(0,), epoch=0, rows=rows, pixels=decoded
        )

    def _read(self, source: Source, view: View, size: int, **how: Any) -> Batches:
        """This process's part."""
        return Batches(
            source, view, size, workers=self.workers, rank=self.runtime.rank, world=self.runtime.world, **how
        )

    @property
    def by_length(self) -> bool:
        """Whether texts are trained on by their length: an accelerator would wait for small parts longer than it takes
        for the padding."""
        return self.runtime.device.type == "cpu"

    @property
    def _gather(self) -> Callable[[Tensor], Tensor] | None:
        return self.runtime.gather if self.runtime.world > 1 else None

    @property
    def _part(self) -> Callable[[Tensor], Tensor] | None:
        """From rows of all processes to this process's."""
        return self.runtime.part if self.runtime.world > 1 else None

    def _passes(self, inputs: Tensor | Callable[[], Tensor], memory: Memory | None, **how: Any) -> Passes:
        placed = functools.partial(_placed, self.runtime, inputs)
        return Passes(self.backbone, placed, precision=self.runtime.autocast, memory=memory, **how)


def _placed(runtime: Runtime, inputs: Tensor | Callable[[], Tensor]) -> Tensor:
    return runtime.inputs(inputs() if callable(inputs) else inputs)
