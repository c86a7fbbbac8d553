"""Colour jitter of the training view: torchvision's law from an explicit generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter

from evertune.errors import ConfigError
from evertune.streams import TrainView

WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}


def picture(colour: tuple[int, int, int] = (120, 100, 60)) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def test_without_jitter_nothing_is_drawn_or_described() -> None:
    """Runs and learners from before there was any are described, and see the same pixels, as ever."""
    assert TrainView(32).describe() == {
        "view": "train",
        "size": 32,
        "scale": [0.05, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": 0.5,
        "interpolation": "bilinear",
    }
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    view = TrainView(8, **WHOLE)
    view.crop(8, 8, same), same.random()
    view(picture(), rng)
    assert rng.random() == same.random()


def test_brightness_has_the_law_of_color_jitter() -> None:
    """Over many draws the brightness of a grey picture has torchvision's mean and spread."""
    view, rng = TrainView(8, **WHOLE, jitter=(63 / 255, 0, 0, 0)), np.random.default_rng(0)
    ours = np.array([int(view(picture((100, 100, 100)), rng)[0, 0, 0]) for _ in range(600)])
    torch.manual_seed(0)
    other = ColorJitter(brightness=63 / 255)
    theirs = np.array([np.asarray(other(picture((100, 100, 100))))[0, 0, 0] for _ in range(600)])
    assert ours.min() >= 75 and ours.max() <= 125
    assert abs(ours.mean() - theirs.mean()) < 2.5 and abs(ours.std() - theirs.std()) < 1.5


@pytest.mark.parametrize("place", range(4))
def test_each_strength_changes_the_picture_and_is_reproducible(place: int) -> None:
    strengths = tuple(0.4 if i == place else 0.0 for i in range(4))
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    view = TrainView(8, **WHOLE, jitter=strengths)
    shown = view(image, np.random.default_rng(5))
    assert torch.equal(shown, view(image, np.random.default_rng(5)))
    assert not torch.equal(shown, TrainView(8, **WHOLE)(image, np.random.default_rng(5)))
    assert TrainView(**{k: v for k, v in view.describe().items() if k != "view"}).describe() == view.describe()


@pytest.mark.parametrize("jitter", [(0.1,), (-0.1, 0, 0, 0), (0, 0, 0, 0.6)])
def test_impossible_strengths(jitter: Any) -> None:
    with pytest.raises(ConfigError, match=r"jitter is .* four strengths from 0"):
        TrainView(8, jitter=jitter)
