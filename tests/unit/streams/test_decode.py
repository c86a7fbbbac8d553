from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evertune.errors import DataError
from evertune.streams.decode import decode, find_problem


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def read(image: Image.Image, kind: str = "PNG", **options: Any) -> list[list[int]]:
    file = encoded(image, kind, **options)
    assert find_problem(file) is None
    file.seek(0)
    decoded = decode(file, "x.png")
    assert decoded.mode == "RGB"
    pixels: list[list[int]] = np.asarray(decoded)[0].tolist()
    return pixels


def test_grey_and_black_and_white() -> None:
    grey = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert read(grey) == [[0, 0, 0], [7, 7, 7], [255, 255, 255]]
    assert read(grey.point(lambda v: 255 * (v > 9)).convert("1")) == [[0, 0, 0], [0, 0, 0], [255, 255, 255]]


def test_transparency_lies_on_white_in_every_mode() -> None:
    rgba = Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], np.uint8))
    assert read(rgba) == [[255, 255, 255], [9, 8, 7]]
    assert read(rgba.convert("LA"))[0] == [255, 255, 255]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode=None).convert("P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    assert read(palette, transparency=0) == [[255, 255, 255], [4, 5, 6]]
    keyed = Image.fromarray(np.array([[[9, 8, 7], [1, 1, 1]]], np.uint8))
    assert read(keyed, transparency=(1, 1, 1)) == [[9, 8, 7], [255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    for kind in ("PNG", "TIFF"):
        assert read(wide, kind) == [[0] * 3, [100] * 3, [255] * 3]


def test_cmyk_and_gif() -> None:
    assert read(Image.new("CMYK", (2, 1), (0, 0, 0, 0)), "JPEG")[0] == [255, 255, 255]
    assert read(Image.new("P", (2, 1)), "GIF") == [[0, 0, 0], [0, 0, 0]]


def png() -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))).getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am a text", "it is not an image of a known format"),
        (png()[:60], "it is damaged"),
        (png()[:-30], "it is damaged"),
        (png()[:100] + b"\0\0\0\0" + png()[104:], "it is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF", "not an image of a known"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF").getvalue(), "floating-point"),
        (b"P6 0 4 255\n", "one without pixels"),
        (png()[:16] + b"\0\0\0\0" + png()[20:], "one without pixels|damaged"),
    ],
)
def test_what_is_wrong_is_found_in_the_header(content: bytes, reason: str) -> None:
    problem = find_problem(io.BytesIO(content))
    assert problem is not None
    assert re.search(reason, problem)
    with pytest.raises(DataError, match=r"photos/cat/3\.png cannot be read as an image"):
        decode(io.BytesIO(content), "photos/cat/3.png")


def test_a_jpeg_cut_off_in_its_middle_is_refused_when_it_is_read() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, "JPEG").getvalue()
    half = io.BytesIO(content[: len(content) // 2])
    assert find_problem(half) is None
    half.seek(0)
    with pytest.raises(DataError, match=r"cut\.jpg cannot be read as an image \(.*truncated"):
        decode(half, "cut.jpg")


def test_decompression_bombs_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (100, 100))).getvalue()
    for theirs in (None, 100, 9_999, 10**6):  # the bound is ours, whatever Pillow's is
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
        assert str(find_problem(io.BytesIO(content), 9_999)).startswith("it would unpack to more than 9999 pixels")
        with pytest.raises(DataError, match=r"bomb\.png cannot be read .* more than 9999 pixels"):
            decode(io.BytesIO(content), "bomb.png", 9_999)
        assert find_problem(io.BytesIO(content), 10_000) is None
        assert decode(io.BytesIO(content), "large.png", 10_000).size == (100, 100)
        assert theirs == Image.MAX_IMAGE_PIXELS
