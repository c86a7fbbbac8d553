"""Images decoded once: the learner is the same to the last bit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evertune import Learner, Stream
from evertune.backbones import TimmViT
from evertune.engine.feed import PIXELS, Feed
from evertune.errors import ConfigError
from evertune.streams import ArraySource, Batches, TestView, TrainView
from evertune.streams.pixels import Pixels

Data = tuple[ArraySource, ArraySource]


class Counted(ArraySource):
    """How often each image was read."""

    read: Counter[int]

    def load(self, index: int) -> Image.Image:
        self.read[index] += 1
        return super().load(index)


def learned(tiny: TimmViT, blobs: Data, pixels: str, **settings: Any) -> tuple[dict[str, torch.Tensor], Counter[int]]:
    """State and scores of a learner of one task, and how often its images were read."""
    train = Counted(blobs[0].x, blobs[0].labels, blobs[0].classes)
    train.read = Counter()
    learner = Learner("safe", tiny, pixels=pixels, epochs=3, features=64, progress=False, **settings)
    (task,) = Stream.class_incremental(train, blobs[1], first=6, increment=6)
    train.read.clear()
    learner.learn(task)
    return {**learner.method.state_dict(), "scores": learner.scores(blobs[1])}, train.read


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fast_pixels_give_the_same_learner_and_read_each_image_once(tiny: TimmViT, blobs: Data) -> None:
    exact, often = learned(tiny, blobs, "exact")
    fast, once = learned(tiny, blobs, "fast")
    assert equal(exact, fast)
    assert set(once.values()) == {1} and min(often.values()) > 3 and once.keys() == often.keys()


def test_views_made_at_once_give_the_same_learner(tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator; the device is the CPU."""
    exact, _ = learned(tiny, blobs, "exact")
    monkeypatch.setattr(Feed, "decoded", lambda self, source, kept=0: Pixels(source, kept=kept, batched=True))
    batched, often = learned(tiny, blobs, "fast")
    assert equal(exact, batched) and min(often.values()) > 3  # nothing was kept


@pytest.mark.parametrize("view", [TrainView(8), TestView(8)])
def test_batches_are_the_same_from_kept_pixels(blobs: Data, view: TrainView | TestView) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": (3, 1), "world": 2, "rank": 1}
    pixels = Pixels(blobs[0])
    for epoch in range(2):
        exact = Batches(blobs[0], view, 7, epoch=epoch, **options)
        kept = Batches(blobs[0], view, 7, epoch=epoch, pixels=pixels, **options)
        for one, other in zip(exact, kept, strict=True):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_a_view_of_ones_own_is_left_to_itself(blobs: Data) -> None:
    class Corner(TestView):
        def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
            return torch.from_numpy(np.asarray(image)[:4, :4].transpose(2, 0, 1).copy())

    exact = Batches(blobs[0], Corner(4), 9, shuffle=False, seed=(0,), epoch=0)
    kept = Batches(blobs[0], Corner(4), 9, shuffle=False, seed=(0,), epoch=0, pixels=Pixels(blobs[0], batched=True))
    for (_, one, _), (_, other, _) in zip(exact, kept, strict=True):
        assert torch.equal(one, other)


def test_unknown_pixels_are_named(tiny: TimmViT) -> None:
    with pytest.raises(ConfigError, match="pixels is 'quick'"):
        Learner("simple_cil", tiny, pixels="quick")
    assert PIXELS[0] == "exact"
