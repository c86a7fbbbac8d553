"""Images held in arrays, and .npz files of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from evertune.errors import DataError
from evertune.streams.decode import to_bytes, to_rgb
from evertune.streams.source import IntArray, Source, encode

_CHUNK = 1024  # rows looked at together, so that memory-mapped arrays are never in memory whole


class ArraySource(Source):
    """Images in one array.

    Parameters
    ----------
    x : uint8, uint16 or float array, [N, H, W], [N, H, W, 1|3|4] or [N, 1|3|4, H, W]; floats in [0, 1] or [0, 255].
        Four channels are red, green, blue and opacity. The array is not copied and may be memory-mapped.
    y : labels [N], names or whole numbers.
    classes : name of each number; without it the labels name themselves.
    domains : one domain per row, names or whole numbers.
    name : what messages call this array.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        classes: Sequence[str] | None = None,
        *,
        domains: ArrayLike | None = None,
        domain_names: Sequence[str] | None = None,
        name: str = "array",
    ) -> None:
        self.name = name
        self.x, self._channels_first = _check_shape(np.asanyarray(x), name)
        self._scale = _check_values(self.x, name)
        self.labels, self.classes = encode(y, classes, f"{name} labels")
        _check_length(self.labels, self.x, f"{name} labels")
        if domains is not None:
            self.domains, self.domain_names = encode(domains, domain_names, f"{name} domains")
            _check_length(self.domains, self.x, f"{name} domains")

    def load(self, index: int) -> Image.Image:
        pixels = to_bytes(np.asarray(self.x[index]), self._scale)
        if self._channels_first:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))

    def describe(self, index: int) -> str:
        return f"{self.name} row {index}"

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.x.dtype.newbyteorder('<').str} {self.x.shape}".encode())
        little = self.x.dtype.newbyteorder("<")
        for start in range(0, len(self.x), _CHUNK):
            digest.update(np.ascontiguousarray(self.x[start : start + _CHUNK], dtype=little).data)
        for labels, names in ((self.labels, self.classes), (self.domains, self.domain_names)):
            if labels is not None:
                digest.update(labels.astype("<i8").tobytes() + "\0".join(names).encode())
        return digest.hexdigest()


def _check_shape(x: NDArray[Any], name: str) -> tuple[NDArray[Any], bool]:
    """The array, and whether its channels come before height and width."""
    channels = (1, 3, 4)
    channels_last = x.ndim == 3 or (x.ndim == 4 and x.shape[3] in channels)
    channels_first = not channels_last and x.ndim == 4 and x.shape[1] in channels
    if not (channels_last or channels_first):
        raise DataError(
            f"{name}: images of shape {x.shape} are not understood. Give [N, H, W], [N, H, W, C] or [N, C, H, W] "
            f"with C = 1, 3 or 4; flattened images need x.reshape(len(x), height, width)."
        )
    if len(x) == 0:
        raise DataError(f"{name} holds no images.")
    if 0 in x.shape:
        raise DataError(f"{name}: the images have no pixels (shape {x.shape}).")
    if not (x.dtype in (np.uint8, np.uint16) or x.dtype.kind == "f"):
        raise DataError(
            f"{name}: pixels of type {x.dtype} are not understood. Give uint8, uint16, or floats in [0, 1] "
            f"or [0, 255]; whole numbers from 0 to 255 of another type need x.astype('uint8')."
        )
    return x, channels_first


def _check_values(x: NDArray[Any], name: str) -> float:
    """The factor that takes float pixels to [0, 255]; DataError naming the first row with impossible values."""
    if x.dtype.kind != "f":
        return 1.0
    highest, highest_row = 0.0, 0
    for start in range(0, len(x), _CHUNK):
        chunk = np.asarray(x[start : start + _CHUNK]).reshape(len(x[start : start + _CHUNK]), -1)
        low, high = chunk.min(axis=1), chunk.max(axis=1)  # NaN wins both
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if len(bad):
            raise DataError(f"{name} row {start + bad[0]} holds NaN or infinite values; repair or remove that row.")
        bad = np.flatnonzero((low < 0) | (high > 255))
        if len(bad):
            row = bad[0]
            raise DataError(
                f"{name} row {start + row} holds values from {low[row]:.4g} to {high[row]:.4g}; pixels must lie in "
                f"[0, 1] or [0, 255]. Give images before any normalisation: the backbone applies its own."
            )
        if high.max() > highest:
            highest, highest_row = float(high.max()), start + int(high.argmax())
    if 1 < highest < 2:  # read as [0, 255] such an image would be black
        raise DataError(
            f"{name} row {highest_row} reaches {highest:.6g}: slightly more than [0, 1], far less than [0, 255]. "
            f"Clip the images to [0, 1]."
        )
    return 255.0 if highest <= 1 else 1.0


def _check_length(labels: IntArray, x: NDArray[Any], where: str) -> None:
    if len(labels) != len(x):
        raise DataError(f"{where}: {len(labels)} for {len(x)} images; there must be one per image.")


def open_npz(path: Path) -> tuple[ArraySource, ArraySource]:
    """Train and test of an .npz file with x_train, y_train, x_test, y_test.

    Optional: classes (names of the numbers), domain_train and domain_test (names or numbers). Nothing is unpickled.
    """
    arrays = _read_npz(path)
    needed = ("x_train", "y_train", "x_test", "y_test")
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}.")
    names = [str(name) for name in np.atleast_1d(arrays["classes"])] if "classes" in arrays else None
    y_train, y_test, classes = _encode_both(arrays["y_train"], arrays["y_test"], names, f"{path.name} labels")
    unpaired = {"domain_train", "domain_test"} & arrays.keys()
    if len(unpaired) == 1:
        have = unpaired.pop()
        lack = "domain_test" if have == "domain_train" else "domain_train"
        raise DataError(f"{path} holds {have} without {lack}; give both or neither.")
    domains: list[IntArray | None] = [None, None]
    domain_names: tuple[str, ...] | None = None
    if "domain_train" in arrays:
        *domains, domain_names = _encode_both(
            arrays["domain_train"], arrays["domain_test"], None, f"{path.name} domains"
        )
    train, test = (
        ArraySource(x, y, classes, domains=d, domain_names=domain_names, name=f"{path.name} {part}")
        for x, y, d, part in (
            (arrays["x_train"], y_train, domains[0], "x_train"),
            (arrays["x_test"], y_test, domains[1], "x_test"),
        )
    )
    return train, test


def _encode_both(
    train: NDArray[Any], test: NDArray[Any], names: Sequence[str] | None, where: str
) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Both label arrays over one common table of names."""
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise DataError(f"{where} are names in one part and numbers in the other; use the same in both.")
    _, table = encode(np.concatenate([np.ravel(train), np.ravel(test)]), names, where)
    if names is None and train.dtype.kind in "iu":  # numbers name themselves: look them up as names
        train, test = train.astype(str), test.astype(str)
    return encode(train, table, f"{where} (train)")[0], encode(test, table, f"{where} (test)")[0], table


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one unnamed array; save x_train, y_train, x_test, y_test with np.savez.")
        with content:
            return {key: content[key] for key in content.files}
    except DataError:
        raise
    except Exception as error:  # broken zip, broken header, pickled objects: numpy raises a different type for each
        pickled = "pickle" in str(error).lower()
        reason = "it holds Python objects, which are never unpickled" if pickled else f"it is damaged ({error})"
        raise DataError(f"{path} cannot be read: {reason}. Save plain arrays with np.savez.") from error
