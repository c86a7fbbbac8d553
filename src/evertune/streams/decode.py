"""From the bytes of an image file, or an array of pixels, to an RGB image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from evertune.errors import DataError

# Formats decoded inside the process. Pillow knows others, left out on purpose: EPS, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"}
)
MAX_PIXELS = 89_478_485
"""Width times height of the largest image that is decoded unless told otherwise: Pillow's number, 256 MiB in RGB."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def find_problem(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why this file cannot be used, from its header and checksums only; None if nothing is wrong so far.

    Pixels are not decoded, so a JPEG cut off in its middle passes here and is refused by :func:`decode`.
    """
    if not file.read(1):
        return "the file is empty (0 bytes)"
    file.seek(0)
    try:
        with _opened(file, max_pixels) as image:
            if image.mode == "F":
                return "its pixels are floating-point numbers; convert it to 8 or 16 bits"
            image.verify()
    except _TooLarge as error:
        return str(error)
    except UnidentifiedImageError:
        return "it is not an image of a known format, or one without pixels"
    except Exception as error:  # whatever a decoder raises on broken bytes, it means the same
        return f"it is damaged ({error})"
    return None


def decode(file: BinaryIO, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file, in RGB. Raises DataError naming ``where`` if the bytes do not make an image.

    The orientation tag of cameras (EXIF) is not applied, as in torchvision's image folders.
    """
    try:
        with _opened(file, max_pixels) as image:
            image.load()
            return to_rgb(image)
    except Exception as error:  # as above: hostile or broken bytes can raise nearly anything
        raise DataError(
            f"{where} cannot be read as an image ({error}). Repair or remove the file, then run again."
        ) from error


class _TooLarge(Exception):
    pass


@contextmanager
def _opened(file: BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """The image of a file, its header read; the bound on its pixels is ours instead of Pillow's."""
    theirs = Image.MAX_IMAGE_PIXELS
    raised = theirs is not None and theirs < max_pixels
    if raised:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(file, formats=_formats())
        if image.width * image.height > max_pixels:
            raise _TooLarge(_too_large(max_pixels))
        yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _TooLarge(_too_large(max_pixels)) from error
    finally:
        if raised:
            Image.MAX_IMAGE_PIXELS = theirs


def _too_large(max_pixels: int) -> str:
    return f"it would unpack to more than {max_pixels} pixels; max_pixels (--max-pixels) sets a higher bound"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB: grey repeated, transparency laid on white, 16 bits scaled to 8; DataError for floats."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(to_bytes(_sixteen_bits(image))).convert("RGB")
    if image.mode == "F":
        raise DataError("its pixels are floating-point numbers; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError("its grey values lie outside 0 to 65535")
    return pixels.astype(np.uint16)


def to_bytes(pixels: NDArray[Any], scale: float = 1.0) -> NDArray[np.uint8]:
    """Pixels as uint8: uint8 as they are, uint16 scaled by 255/65535, floats by ``scale``; rounded to nearest."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.rint(pixels.astype(np.float64) * scale).astype(np.uint8)
