"""Views: what of an image the backbone gets to see, while training and at test time.

Both give uint8 pixels; the division by 255 and any normalisation happen on the device. Resizing is Pillow's, through
torchvision, so that features equal those of the field's transforms to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import functional

from evertune.errors import ConfigError, nearest

F: Any = functional  # annotated for tensors only, though it serves Pillow images too
_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


class View(Protocol):
    """From an RGB image to uint8 pixels [3, size, size]; random views draw from the generator alone."""

    @property
    def size(self) -> int: ...

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TestView:
    """The whole image resized to (size, size); or its short side to ``resize``, then the centre square of ``size``."""

    __test__: ClassVar[bool] = False  # pytest: not a test

    size: int
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

    def describe(self) -> dict[str, Any]:
        """All parameters, ready for JSON."""
        return {"view": "test", **asdict(self)}


@dataclass(frozen=True)
class TrainView:
    """A random crop resized to (size, size), mirrored with probability ``flip``.

    The crop's share of the area is uniform in ``scale`` and the logarithm of width over height is uniform in that of
    ``ratio``: the law of torchvision's RandomResizedCrop, drawn from an explicit generator.
    """

    size: int
    scale: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check(self.size, self.interpolation)
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
        return _pixels(image)

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
        return {"view": "train", **asdict(self), "scale": list(self.scale), "ratio": list(self.ratio)}


def _check(size: int, interpolation: str) -> None:
    if size < 1:
        raise ConfigError(f"size is {size}; a view has at least one pixel.")
    if interpolation not in _INTERPOLATIONS:
        raise ConfigError(f"Unknown interpolation {interpolation!r}. {nearest(interpolation, _INTERPOLATIONS)}")


def _pixels(image: Image.Image) -> Tensor:
    return cast(Tensor, F.pil_to_tensor(image)).contiguous()
