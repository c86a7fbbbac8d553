"""Images or texts as they are at hand: to predict, without labels that mean anything; or labelled, to learn from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from evertune.errors import DataError
from evertune.streams.arrays import ArraySource
from evertune.streams.decode import decode, to_rgb
from evertune.streams.source import Source, encode
from evertune.streams.texts import TextSource

Images = Sequence[str | os.PathLike[str]] | Sequence[Image.Image] | np.ndarray | Source


def unlabelled(images: Images, modality: str = "image") -> Source:
    """Paths, PIL images, an array of images, or a source, as a source; of the modality "text", texts or a source.

    Paths and texts may stand in an array too. Raises DataError if ``images`` is none of these; a file that cannot be
    read is named when it is loaded.
    """
    if isinstance(images, Source):
        return images
    if modality == "text":
        return _texts(images)
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
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


def labelled(images: Images, labels: ArrayLike, modality: str = "image") -> Source:
    """``images`` as for :func:`unlabelled`, each of a class: names, or whole numbers from 0, whose names they are.

    Raises DataError where a label is missing or is neither, or where there are more of one than of the other.
    """
    if isinstance(images, Source):
        raise DataError(f"{images.name} has labels of its own: give it to learn() or evaluate(), without others.")
    source = unlabelled(images, modality)
    given = [labels] if isinstance(labels, str) else list(np.asarray(labels, dtype=object))
    if len(given) != len(source):
        raise DataError(f"There are {len(source)} {modality}s and {len(given)} labels: give one label for each.")
    missing = [row for row, label in enumerate(given) if _nothing(label)]
    if missing:
        row = missing[0]
        raise DataError(f"labels row {row} is missing ({given[row]!r}): leave such rows out, or label them.")
    source.labels, source.classes = encode(labels, None, "labels")
    return source


def _nothing(label: Any) -> bool:
    """Whether this is how a missing value is written: None, NaN, nothing, or what pandas has for it."""
    return str(label) in ("", "<NA>", "NaT") or (not isinstance(label, str) and str(label) in ("None", "nan"))


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
        digest = hashlib.sha256("\0".join(self.classes).encode() + self.labels.astype("<i8").tobytes())
        for index in range(len(self.items)):
            image = self.load(index)
            digest.update(f"{image.size}".encode() + image.tobytes())
        return digest.hexdigest()
