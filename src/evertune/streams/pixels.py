"""Decoded images of a source, kept while a task is learned, and their views made in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evertune.errors import DataError
from evertune.streams.resample import resample
from evertune.streams.source import Source
from evertune.streams.views import TestView, TrainView

KEPT = 2 << 30
"""Bytes of decoded images kept, unless told: 14 000 photographs of 256 × 192 pixels, 700 000 images of CIFAR's."""


class Pixels:
    """The images of one source: each is decoded once, kept as uint8 [H, W, 3], and shown in batches on a device.

    Views come out to the last bit as from the images themselves; only the work is saved. Images that no longer fit
    into ``kept`` bytes are decoded again whenever they are shown. Meant to live as long as a task is learned: this is
    no replay.

    ``batched``: whether all views of a batch are made at once on the device; if not, Pillow makes one after the other.
    By default everywhere but on a CPU, where Pillow is faster: its filters skip the zeros that a product multiplies.
    """

    def __init__(
        self,
        source: Source,
        device: torch.device | str = "cpu",
        *,
        kept: int = KEPT,
        batched: bool | None = None,
    ) -> None:
        self.source = source
        self.device = torch.device(device)
        self.free = kept
        self.batched = self.device.type != "cpu" if batched is None else batched
        self._images: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        """Images kept."""
        return len(self._images)

    def batches(
        self, view: TrainView | TestView, rows: Sequence[list[int]], entropy: tuple[int, ...], workers: int = 0
    ) -> Iterator[Tensor]:
        """uint8 [B, 3, size, size] on the device for each list of rows; an example draws from (*entropy, row).

        Only images that are not kept are read, by ``workers`` loader processes; they come into this one as they are,
        so that none need be read in the next epoch. Raises DataError if one cannot be read.
        """
        for batch, images in zip(rows, self._decoded(rows, workers), strict=True):
            generators = [np.random.default_rng((*entropy, row)) for row in batch]
            yield self._shown(view, images, generators)

    def _shown(
        self,
        view: TrainView | TestView,
        images: Sequence[NDArray[np.uint8]],
        generators: Sequence[np.random.Generator],
    ) -> Tensor:
        drawn = list(zip(images, generators, strict=True))
        if self.batched and view.windowed:
            windows = [view.window(image.shape[0], image.shape[1], rng) for image, rng in drawn]
            return resample(images, windows, view.size, view.interpolation, self.device)
        shown = torch.empty(len(images), 3, view.size, view.size, dtype=torch.uint8)
        for place, (image, rng) in zip(shown, drawn, strict=True):
            place.copy_(view(Image.fromarray(image), rng))
        return shown.to(self.device)

    def _decoded(self, rows: Sequence[list[int]], workers: int) -> Iterator[list[NDArray[np.uint8]]]:
        absent = [[row for row in batch if row not in self._images] for batch in rows]
        loader = DataLoader(
            _Reader(self.source),
            batch_sampler=absent,
            num_workers=workers if any(absent) else 0,
            collate_fn=_as_is,
            generator=torch.Generator(),  # without its own, a loader draws from the global generator
        )
        for batch, new, read in zip(rows, absent, loader, strict=True):
            if isinstance(read, DataError):
                raise read
            fresh = dict(zip(new, _split(*read), strict=True))
            for row, image in fresh.items():
                if image.nbytes <= self.free:
                    self._images[row] = image.copy()  # of its own, not a part of what the process sent
                    self.free -= image.nbytes
            yield [fresh[row] if row in fresh else self._images[row] for row in batch]


class _Reader(Dataset[Any]):
    """What a loader process holds: it decodes the images of a batch into one tensor, or gives the error it met.

    One tensor, since each that is passed between processes takes a file descriptor.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return np.asarray(self.source.load(row))

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, list[tuple[int, ...]]] | DataError:
        try:
            images = [self[row] for row in rows]
        except DataError as error:
            return error
        flat = [np.zeros(0, np.uint8), *(image.ravel() for image in images)]
        return torch.from_numpy(np.concatenate(flat)), [image.shape for image in images]


def _split(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.uint8]]:
    ends = np.cumsum([np.prod(shape, dtype=np.int64) for shape in shapes], dtype=np.int64)
    parts = np.split(flat.numpy(), ends[:-1]) if shapes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _as_is(batch: Any) -> Any:
    return batch
