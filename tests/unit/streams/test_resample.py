"""Many windows at once are to the last bit what Pillow makes of each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from evertune.streams import TestView, TrainView, open_data, resample
from evertune.streams.resample import resample as windows_of
from evertune.streams.views import Window

Pictures = list[NDArray[np.uint8]]
View = TestView | TrainView


def pictures(count: int, rng: np.random.Generator, longest: int = 90) -> Pictures:
    """Noise of different sizes; a third is black and white, where a cubic overshoots most."""
    found = [rng.integers(0, 256, (*rng.integers(1, longest, 2), 3), dtype=np.uint8) for _ in range(count)]
    return [np.where(x > 128, 255, 0).astype(np.uint8) if i % 3 == 0 else x for i, x in enumerate(found)]


def by_pillow(view: View, images: Pictures, seed: int) -> torch.Tensor:
    return torch.stack([view(Image.fromarray(x), np.random.default_rng((seed, i))) for i, x in enumerate(images)])


def at_once(view: View, images: Pictures, seed: int) -> torch.Tensor:
    windows = [view.window(*x.shape[:2], np.random.default_rng((seed, i))) for i, x in enumerate(images)]
    return windows_of(images, windows, view.size, view.interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_pixel_is_pillows(interpolation: str) -> None:
    """1500 crops and whole images of 1 to 89 pixels a side, enlarged, reduced and both at once."""
    rng = np.random.default_rng(0)
    orders = set()
    for seed in range(60):
        size, images = int(rng.integers(1, 110)), pictures(9, rng)
        views: tuple[View, ...] = (
            TrainView(size, interpolation=interpolation),
            TestView(size, interpolation=interpolation),
            TestView(size, resize=size + int(rng.integers(0, 40)), interpolation=interpolation),
        )
        for view in views:
            found = at_once(view, images, seed)
            assert (found.dtype, found.shape) == (torch.uint8, (9, 3, size, size))
            assert torch.equal(found, by_pillow(view, images, seed)), (view, [x.shape for x in images])
        orders |= {resample._columns_first(views[1].window(*x.shape[:2])) for x in images}
    assert orders == ({True, False} if resample._CHOOSES else {False})


@pytest.mark.parametrize(("height", "columns_first"), [(6, False), (5, True)])
def test_the_pass_that_pillow_makes_first(height: int, columns_first: bool) -> None:
    """10 x 3 pixels to 6 x 1: the height shrinks by no more than twice what the width does; to 5 x 1 it does."""
    image = (np.random.default_rng(1).integers(0, 2, (10, 3, 3)) * 255).astype(np.uint8)
    whole = np.asarray(Image.fromarray(image).resize((1, height), Image.Resampling.BICUBIC))
    windows = [Window(0, 0, 10, 3, (height, 1), corner=(y, 0)) for y in range(height)]
    found = windows_of([image] * height, windows, 1, "bicubic")
    assert found[:, :, 0, 0].tolist() == whole[:, 0].tolist()
    assert resample._columns_first(windows[0]) is (columns_first and resample._CHOOSES)


@pytest.mark.real
@pytest.mark.parametrize("data", ["cifar100_sub.npz", "caltech101_sub.zip"])
def test_real_images_are_pillows(shared: Path, data: str) -> None:
    train, _ = open_data(shared / "data" / "images" / data)
    images = [np.asarray(train.load(row)) for row in range(0, len(train), len(train) // 12)]
    views: tuple[View, ...] = (TrainView(96), TrainView(224, interpolation="bicubic"), TestView(96))
    for view in views:
        assert torch.equal(at_once(view, images, 3), by_pillow(view, images, 3))


def test_companions_and_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(10, np.random.default_rng(2))
    view = TrainView(20)
    whole = at_once(view, images, 5)
    windows = [view.window(*x.shape[:2], np.random.default_rng((5, i))) for i, x in enumerate(images)]
    for i, one in enumerate(images):
        assert torch.equal(windows_of([one], [windows[i]], 20, "bilinear")[0], whole[i])
    monkeypatch.setattr(resample, "_VALUES", 1)  # one image at a time
    assert torch.equal(windows_of(images, windows, 20, "bilinear"), whole)


def test_an_empty_batch_is_empty() -> None:
    assert windows_of([], [], 8, "bicubic").shape == (0, 3, 8, 8)
