"""Windows of many decoded images at once, on a device, to the last bit what Pillow makes of each alone.

Pillow resizes in two passes, along the rows and along the columns, and rounds to bytes after each. A pass is a product
with one matrix per image, whose entries Pillow rounds to multiples of 2⁻²². Sums of such multiples of bytes fit float64
without rounding, in any order: neither the device nor the other images of a batch can change a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from evertune.streams.views import Window

_VALUES = 1 << 25  # values in float64 at a time: 256 MiB
_UNIT = 2.0**22  # Pillow's fixed point
_CHOOSES = int(PIL.__version__.split(".")[0]) >= 13  # which pass comes first; before, always that along the rows


def resample(
    images: Sequence[NDArray[np.uint8]],
    windows: Sequence[Window],
    size: int,
    interpolation: str,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One window of each image [H, W, 3] (sizes may differ): uint8 [B, 3, size, size] on the device."""
    shown = torch.empty(len(images), 3, size, size, dtype=torch.uint8, device=device)
    columns_first = [_columns_first(window) for window in windows]
    for first in (False, True):
        rows = [row for row, this in enumerate(columns_first) if this is first]
        height = max((windows[row].height for row in rows), default=1)
        width = max((windows[row].width for row in rows), default=1)
        step = max(1, _VALUES // (3 * height * width))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            crops = np.zeros((len(part), height, width, 3), dtype=np.uint8)
            for crop, row in zip(crops, part, strict=True):
                w = windows[row]
                crop[: w.height, : w.width] = images[row][w.top : w.top + w.height, w.left : w.left + w.width]
            made = _resize(torch.from_numpy(crops).to(device), [windows[row] for row in part], size, interpolation)
            shown[torch.tensor(part, device=device)] = made
    return shown


def _columns_first(window: Window) -> bool:
    """Whether Pillow resizes along the columns first: the height shrinks, by more than twice what the width does."""
    shorter = window.height - window.scaled[0]
    return _CHOOSES and shorter > max(0, 2 * (window.width - window.scaled[1]))


def _resize(crops: Tensor, windows: Sequence[Window], size: int, interpolation: str) -> Tensor:
    """Crops uint8 [B, H, W, 3], each in the upper left of its place, as uint8 [B, 3, size, size]."""
    axes = torch.tensor(
        [
            [(w.height, w.scaled[0], w.corner[0]) for w in windows],
            [(w.width, w.scaled[1], w.corner[1]) for w in windows],
        ],
        dtype=torch.float64,
        device=crops.device,
    )
    down = _weights(axes[0], size, crops.shape[1], interpolation)
    across = _weights(axes[1], size, crops.shape[2], interpolation)
    mirrored = torch.tensor([w.mirrored for w in windows], device=crops.device)
    across = torch.where(mirrored[:, None, None], across.flip(1), across)
    down, across = down[:, None], across[:, None].mT
    pixels = crops.permute(0, 3, 1, 2).double()
    if _columns_first(windows[0]):
        made = _rounded(_rounded(down @ pixels) @ across)
    else:
        made = _rounded(down @ _rounded(pixels @ across))
    return made.to(torch.uint8)


def _weights(axes: Tensor, size: int, longest: int, interpolation: str) -> Tensor:
    """What each pixel before a pass counts for each one after it: float64 [B, size, longest].

    ``axes`` [B, 3]: a side's length, the length it is resized to, and from where on ``size`` pixels of that are made.
    Where a side shrinks the filter widens by as much (antialiasing); what lies outside the crop counts nothing.
    """
    length, scaled, first = axes[:, :, None, None].unbind(1)
    after = first + torch.arange(size, dtype=torch.float64, device=axes.device)[:, None]
    before = torch.arange(longest, dtype=torch.float64, device=axes.device)
    scale = length / scaled
    distance = (before - (after + 0.5) * scale + 0.5) * (1 / scale.clamp(min=1))
    weight = _filter(distance.abs(), interpolation) * (before < length)
    weight = weight / weight.sum(2, keepdim=True)
    return (weight * _UNIT + 0.5 * weight.sign()).trunc() / _UNIT


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """The triangle, or Keys' cubic with a = −½, at distances x ≥ 0."""
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _rounded(values: Tensor) -> Tensor:
    """To whole numbers, half up, from 0 to 255: what Pillow does after each pass."""
    return values.add_(0.5).floor_().clamp_(0, 255)
