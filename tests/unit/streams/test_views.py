from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as v1f

from evertune.errors import ConfigError
from evertune.streams import TestView, TrainView


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (40, 31), (200, 130), (96, 96)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_the_plain_test_view_is_torchvisions_resize(size: tuple[int, int], name: str) -> None:
    image = noise(*size)
    expected = v1f.pil_to_tensor(v1.Resize((96, 96), InterpolationMode(name))(image))
    assert torch.equal(TestView(96, interpolation=name)(image), expected)


@pytest.mark.parametrize("size", [(32, 32), (40, 31), (301, 130), (130, 301)])
def test_the_cropped_test_view_is_torchvisions_resize_and_crop(size: tuple[int, int]) -> None:
    image = noise(*size)
    resize = v1.Resize(110, InterpolationMode.BICUBIC)
    expected = v1f.pil_to_tensor(v1.CenterCrop(96)(resize(image)))
    assert torch.equal(TestView(96, resize=110)(image), expected)


def test_the_test_view_ignores_the_generator() -> None:
    image = noise(20, 30)
    view = TestView(8)
    assert torch.equal(view(image, np.random.default_rng(0)), view(image, np.random.default_rng(1)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 10_000))
def test_crops_lie_inside_the_image(height: int, width: int, seed: int) -> None:
    top, left, h, w = TrainView(8).crop(height, width, np.random.default_rng(seed))
    assert min(top, left) >= 0 and min(h, w) > 0
    assert top + h <= height and left + w <= width


def test_the_train_view_is_torchvisions_crop_resize_and_flip() -> None:
    image = noise(50, 40)
    for seed in range(20):
        view = TrainView(24)
        rng = np.random.default_rng(seed)
        crop = view.crop(40, 50, rng)
        expected = v1f.resized_crop(image, *crop, [24, 24], InterpolationMode.BILINEAR)
        if rng.random() < 0.5:
            expected = v1f.hflip(expected)
        assert torch.equal(view(image, np.random.default_rng(seed)), v1f.pil_to_tensor(expected))


def test_the_law_of_the_crops_is_torchvisions() -> None:
    """Means of area, ratio and position over many draws, beside torchvision's own sampler."""
    view, image = TrainView(24), noise(320, 200)
    rng = np.random.default_rng(0)
    ours = np.array([view.crop(200, 320, rng) for _ in range(6000)], float)
    torch.manual_seed(0)
    theirs = np.array([v1.RandomResizedCrop.get_params(image, [0.05, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)], float)

    def moments(crops: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        top, left, h, w = crops.T
        values = np.stack([h * w / 64000, np.log(w / h), top / 200, left / 320])
        return np.concatenate([values.mean(1), values.std(1)])

    assert np.abs(moments(ours) - moments(theirs)).max() < 0.02


@pytest.mark.parametrize(("width", "height"), [(400, 10), (10, 400)])
def test_the_fallback_is_torchvisions_central_crop(width: int, height: int) -> None:
    view = TrainView(8, scale=(1.0, 1.0))  # never fits so long an image
    torch.manual_seed(0)
    expected = v1.RandomResizedCrop.get_params(noise(width, height), [1.0, 1.0], [3 / 4, 4 / 3])
    assert view.crop(height, width, np.random.default_rng(0)) == expected


def test_flips_follow_their_probability() -> None:
    image = noise(16, 16)
    whole: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    straight = TestView(16, interpolation="bilinear")(image)
    for flip, expected in ((0.0, 0), (1.0, 200), (0.3, 60)):
        view = TrainView(16, flip=flip, **whole)
        flipped = sum(not torch.equal(view(image, np.random.default_rng(i)), straight) for i in range(200))
        assert abs(flipped - expected) <= (25 if 0 < flip < 1 else 0)


def test_views_give_bytes_of_one_shape() -> None:
    for view in (TestView(9), TestView(9, resize=12), TrainView(9)):
        for size in ((1, 1), (7, 30), (64, 64)):
            out = view(noise(*size), np.random.default_rng(0))
            assert (out.shape, out.dtype, out.is_contiguous()) == ((3, 9, 9), torch.uint8, True)


def test_descriptions_are_json() -> None:
    assert json.loads(json.dumps(TestView(96).describe())) == TestView(96).describe()
    described = TrainView(96, scale=(0.08, 1.0)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["scale"] == [0.08, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TestView(0), "size is 0"),
        (lambda: TestView(96, resize=64), "resize is 64, smaller than size 96"),
        (lambda: TestView(96, interpolation="bicubik"), "Unknown interpolation 'bicubik'. Did you mean 'bicubic'"),
        (lambda: TrainView(96, scale=(0.5, 0.1)), r"scale is \(0.5, 0.1\)"),
        (lambda: TrainView(96, scale=(0.0, 1.0)), "scale is"),
        (lambda: TrainView(96, scale=(0.1, 1.5)), "scale is"),
        (lambda: TrainView(96, ratio=(0.0, 1.0)), "ratio is"),
        (lambda: TrainView(96, flip=1.5), "flip is 1.5"),
    ],
)
def test_wrong_parameters_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
