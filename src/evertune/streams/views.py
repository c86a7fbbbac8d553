"""Views: what of an example the backbone gets to see, while training and at test time.

Those of images, here, give uint8 pixels; the division by 255 and any normalisation happen on the device. Resizing is
Pillow's, through torchvision, so that features equal those of the field's transforms to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional

from evertune.errors import ConfigError, nearest
from evertune.streams.source import IntArray, Source

F: Any = functional  # annotated for tensors only, though it serves Pillow images too
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
FILTERS = ("bilinear", "bicubic")  # those that can also resize many images at once
NO_JITTER = (0.0, 0.0, 0.0, 0.0)


class Window(NamedTuple):
    """What a view shows of an image: the crop [top : top + height, left : left + width], resized to ``scaled``
    (height, width), of which the square at ``corner`` (y, x) is seen, mirrored or not."""

    top: int
    left: int
    height: int
    width: int
    scaled: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False


class View(Protocol):
    """From an example to a tensor; random views draw from the generator alone.

    Those of images give uint8 pixels [3, size, size], that of texts (:class:`evertune.streams.TextView`) token ids [L].
    """

    def __call__(self, example: Any, rng: np.random.Generator, /) -> Tensor: ...

    def collate(self, examples: Sequence[Tensor]) -> Tensor:
        """What of a batch is given to the backbone."""

    def order(self, source: Source) -> IntArray | None:
        """All rows in the order in which a pass over them costs least; None if their own is as good."""

    def check(self, source: Source) -> None:
        """DataError if some examples can be seen beforehand to be beyond what is read."""

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ImageView:
    """What the views of images share."""

    size: int

    def collate(self, examples: Sequence[Tensor]) -> Tensor:
        """uint8 [B, 3, size, size]."""
        if not examples:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.stack(tuple(examples))

    def order(self, source: Source) -> None:
        """Every image costs the same."""

    def check(self, source: Source) -> None:
        """Of an image nothing is known before it is decoded."""


@dataclass(frozen=True)
class TestView(ImageView):
    """The whole image resized to (size, size); or its short side to ``resize``, then the centre square of ``size``."""

    __test__: ClassVar[bool] = False  # pytest: not a test

    resize: int | None = None
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _check(self.size, self.interpolation)
        if self.resize is not None and self.resize < self.size:
            raise ConfigError(
                f"resize is {self.resize}, smaller than size {self.size}: the crop would reach beyond the image. "
                f"Use resize of at least {self.size}, or None."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        mode = InterpolationMode(self.interpolation)
        if self.resize is None:
            image = F.resize(image, [self.size, self.size], interpolation=mode)
        else:
            image = F.center_crop(F.resize(image, [self.resize], interpolation=mode), [self.size, self.size])
        return _pixels(image)

    @property
    def windowed(self) -> bool:
        """Whether the view is its :meth:`window`, resized by a filter that :mod:`~evertune.streams.resample` knows."""
        return type(self) is TestView and self.interpolation in FILTERS

    def window(self, height: int, width: int, rng: np.random.Generator | None = None) -> Window:
        """What :meth:`__call__` shows of an image of this size."""
        if self.resize is None:
            return Window(0, 0, height, width, (self.size, self.size))
        short = min(height, width)
        h, w = int(self.resize * height / short), int(self.resize * width / short)  # rounded as torchvision does
        corner = round((h - self.size) / 2), round((w - self.size) / 2)
        return Window(0, 0, height, width, (h, w), corner)

    def describe(self) -> dict[str, Any]:
        """All parameters, ready for JSON."""
        return {"view": "test", **asdict(self)}


@dataclass(frozen=True)
class TrainView(ImageView):
    """A random crop resized to (size, size), mirrored with probability ``flip``.

    The crop's share of the area is uniform in ``scale`` and the logarithm of width over height is uniform in that of
    ``ratio``: the law of torchvision's RandomResizedCrop, drawn from an explicit generator. ``jitter`` holds the
    strengths of brightness, contrast, saturation and hue, changed by that of ColorJitter.
    """

    scale: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bilinear"
    jitter: tuple[float, float, float, float] = NO_JITTER

    def __post_init__(self) -> None:
        _check(self.size, self.interpolation)
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ConfigError(
                f"jitter is {self.jitter}; it is four strengths from 0 (brightness, contrast, saturation, hue), hue up "
                "to 0.5."
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale is {self.scale}; it must be (least, most) shares of the area within (0, 1].")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio is {self.ratio}; it must be (least, most) width over height, both positive.")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip is {self.flip}; it is a probability from 0 to 1.")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        top, left, height, width = self.crop(image.height, image.width, rng)
        image = F.resized_crop(
            image, top, left, height, width, [self.size, self.size], interpolation=InterpolationMode(self.interpolation)
        )
        if rng.random() < self.flip:
            image = F.horizontal_flip(image)
        if any(self.jitter):
            image = _jittered(image, self.jitter, rng)
        return _pixels(image)

    @property
    def windowed(self) -> bool:
        """Whether the view is its :meth:`window`, resized by a filter that :mod:`~evertune.streams.resample` knows."""
        return type(self) is TrainView and self.interpolation in FILTERS and not any(self.jitter)

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """What :meth:`__call__` shows of an image of this size, drawn alike."""
        crop = self.crop(height, width, rng)
        return Window(*crop, (self.size, self.size), mirrored=bool(rng.random() < self.flip))

    def crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a crop (top, left, height, width) in an image of this size.

        After ten draws that do not fit, the largest centred crop whose ratio is allowed.
        """
        least, most = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(least, most))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        w, h = width, height
        if width / height < self.ratio[0]:
            h = min(height, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w

    def describe(self) -> dict[str, Any]:
        """All parameters, ready for JSON."""
        said = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if not any(self.jitter):
            del said["jitter"]  # as before there was any: runs and learners of then are described alike
        return {"view": "train", **said}


def _check(size: int, interpolation: str) -> None:
    if size < 1:
        raise ConfigError(f"size is {size}; a view has at least one pixel.")
    if interpolation not in _INTERPOLATIONS:
        raise ConfigError(f"Unknown interpolation {interpolation!r}. {nearest(interpolation, _INTERPOLATIONS)}")


def _jittered(image: Image.Image, strengths: tuple[float, ...], rng: np.random.Generator) -> Image.Image:
    """Each property scaled by a factor uniform in 1 ± its strength (the hue shifted by ± it), in random order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for i in rng.permutation(4):
        if strengths[i]:
            least = -strengths[i] if i == 3 else max(0.0, 1 - strengths[i])
            image = changes[i](image, rng.uniform(least, strengths[i] if i == 3 else 1 + strengths[i]))
    return image


def _pixels(image: Image.Image) -> Tensor:
    return cast(Tensor, F.pil_to_tensor(image)).contiguous()
