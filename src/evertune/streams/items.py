"""Images that another library hands out one at a time."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence

from numpy.typing import ArrayLike
from PIL import Image

from evertune.errors import DataError
from evertune.streams.decode import MAX_PIXELS, decode, to_rgb
from evertune.streams.source import Source, encode


class Items(Source):
    """Images by a function that gives one of them: the bytes of its file, or a PIL image.

    Parameters
    ----------
    read : called with a row when its image is needed.
    labels, classes, domains : as of :class:`evertune.streams.ArraySource`.
    """

    def __init__(
        self,
        read: Callable[[int], bytes | Image.Image],
        labels: ArrayLike,
        classes: Sequence[str] | None = None,
        *,
        domains: ArrayLike | None = None,
        domain_names: Sequence[str] | None = None,
        max_pixels: int = MAX_PIXELS,
        name: str = "images",
    ) -> None:
        self.name = name
        self.read = read
        self.max_pixels = max_pixels
        self.labels, self.classes = encode(labels, classes, f"{name} labels")
        if domains is not None:
            self.domains, self.domain_names = encode(domains, domain_names, f"{name} domains")

    def load(self, index: int) -> Image.Image:
        item = self._item(index)
        if isinstance(item, bytes):
            return decode(io.BytesIO(item), self.describe(index), self.max_pixels)
        try:
            return to_rgb(item)
        except (DataError, ValueError) as error:
            raise DataError(f"{self.describe(index)} cannot be used: {error}") from error

    def describe(self, index: int) -> str:
        return f"{self.name} row {index}"

    def content(self, index: int) -> bytes:
        item = self._item(index)
        return item if isinstance(item, bytes) else super().content(index)

    def _item(self, index: int) -> bytes | Image.Image:
        try:
            item = self.read(index)
        except Exception as error:  # another library's code: whatever it raises, the row cannot be had
            raise DataError(f"{self.describe(index)} cannot be read ({error}).") from error
        if not isinstance(item, bytes | Image.Image):
            raise DataError(
                f"{self.describe(index)} is of type {type(item).__name__}, not an image: make the data set without a "
                f"transform, since views make their own."
            )
        return item

    def _digest(self) -> str:
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for row, label in enumerate(self.labels):
            domain = "" if self.domains is None else self.domain_names[self.domains[row]]
            content = hashlib.sha256(self.content(row)).hexdigest()
            digest.update("\0".join(("", content, self.classes[label], domain)).encode())
        return digest.hexdigest()
