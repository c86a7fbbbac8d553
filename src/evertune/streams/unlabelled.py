"""Images or texts to predict: a source without labels that mean anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evertune.errors import DataError
from evertune.streams.arrays import ArraySource
from evertune.streams.decode import decode, to_rgb
from evertune.streams.source import Source
from evertune.streams.texts import TextSource

Images = Sequence[str | os.PathLike[str]] | Sequence[Image.Image] | np.ndarray | Source


def unlabelled(images: Images, modality: str = "image") -> Source:
    """Paths, PIL images, an array of images, or a source, as a source; of the modality "text", texts or a source.

    Raises DataError if ``images`` is none of these; a file that cannot be read is named when it is loaded.
    """
    if isinstance(images, Source):
        return images
    if modality == "text":
        return _texts(images)
    if isinstance(images, np.ndarray):
        if images.dtype.kind == "f" and images.size and images.max() > 1:
            raise DataError("Images of floating-point numbers must lie in [0, 1] here; divide by 255, or give uint8.")
        return ArraySource(images, np.zeros(len(images), dtype=np.int64), name="images")
    if isinstance(images, str | os.PathLike | Image.Image):
        raise DataError(f"One image is a list of one: give [{images!r}].")
    items = list(images)
    if all(isinstance(item, Image.Image | str | os.PathLike) for item in items):
        return Pictures(items)
    kinds = sorted({type(item).__name__ for item in items})
    raise DataError(f"Images are given as paths, PIL images or one array, not as a list of {', '.join(kinds)}.")


def _texts(texts: Any) -> Source:
    if isinstance(texts, str):
        raise DataError(f"One text is a list of one: give [{texts!r}].")
    items = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
    kinds = sorted({type(item).__name__ for item in items if not isinstance(item, str)})
    if kinds:
        raise DataError(f"This learner reads texts: give a list of strings, not of {', '.join(kinds)}.")
    return TextSource(items, np.zeros(len(items), dtype=np.int64), name="texts")


class Pictures(Source):
    """Image files or PIL images in a list."""

    def __init__(self, items: Sequence[Image.Image | str | os.PathLike[str]]) -> None:
        self.items = items
        self.name = "images"
        self.classes = ("",)
        self.labels = np.zeros(len(items), dtype=np.int64)

    def load(self, index: int) -> Image.Image:
        item = self.items[index]
        if isinstance(item, Image.Image):
            if 0 in item.size:
                raise DataError(f"image {index} has no pixels (its size is {item.width} x {item.height}).")
            try:
                return to_rgb(item)
            except (DataError, ValueError) as error:
                raise DataError(f"image {index} cannot be used: {error}") from error
        try:
            with Path(item).open("rb") as file:
                return decode(file, str(item))
        except OSError as error:
            raise DataError(f"{item} cannot be opened ({error.strerror}).") from error

    def describe(self, index: int) -> str:
        item = self.items[index]
        return f"image {index}" if isinstance(item, Image.Image) else str(item)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self.items)):
            image = self.load(index)
            digest.update(f"{image.size}".encode() + image.tobytes())
        return digest.hexdigest()
