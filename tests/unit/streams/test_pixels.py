from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evertune.errors import DataError
from evertune.streams import ArraySource, TestView, TrainView, open_data
from evertune.streams.pixels import Pixels

View = TestView | TrainView
ROWS = [[3, 0, 7], [1, 2, 8], [5, 4, 6]]
VIEWS = {
    "train": TrainView(6),
    "test": TestView(6, resize=7),
    "lanczos": TrainView(6, interpolation="lanczos"),
    "jitter": TrainView(6, jitter=(0.4, 0.0, 0.0, 0.0)),
}


class Counted(ArraySource):
    """Nine images, and how often each was read."""

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), np.arange(9) % 2)
        self.read: Counter[int] = Counter()

    def load(self, index: int) -> Image.Image:
        self.read[index] += 1
        return super().load(index)


def exact(view: View, entropy: tuple[int, ...], rows: list[list[int]] = ROWS) -> list[torch.Tensor]:
    source = Counted()
    return [torch.stack([view(source.load(row), np.random.default_rng((*entropy, row))) for row in r]) for r in rows]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_are_those_of_the_images_themselves(view: View, batched: bool) -> None:
    pixels = Pixels(Counted(), batched=batched)
    for epoch in range(3):
        assert same(list(pixels.batches(view, ROWS, (1, epoch))), exact(view, (1, epoch)))


def test_every_image_is_read_once() -> None:
    source = Counted()
    pixels = Pixels(source)
    for epoch in range(3):
        list(pixels.batches(TrainView(6), ROWS, (1, epoch)))
    assert source.read == Counter(range(9)) and len(pixels) == 9


def test_what_does_not_fit_is_read_again() -> None:
    source = Counted()
    pixels = Pixels(source, kept=4 * 8 * 8 * 3 + 100)
    for epoch in range(3):
        assert same(list(pixels.batches(TrainView(6), ROWS, (1, epoch))), exact(TrainView(6), (1, epoch)))
    assert len(pixels) == 4 and pixels.free == 100
    assert sorted(source.read.values()) == [1] * 4 + [3] * 5
    nothing = Pixels(source, kept=0)
    assert same(list(nothing.batches(TrainView(6), ROWS, (1, 0))), exact(TrainView(6), (1, 0))) and len(nothing) == 0


def test_loader_processes_read_what_is_kept_here() -> None:
    source = Counted()
    pixels = Pixels(source)
    first = list(pixels.batches(TrainView(6), ROWS, (1, 0), workers=2))
    assert same(first, exact(TrainView(6), (1, 0))) and len(pixels) == 9
    again = list(pixels.batches(TrainView(6), ROWS, (1, 1), workers=2))
    assert same(again, exact(TrainView(6), (1, 1)))
    assert not source.read  # others read, once, and nobody the second time


def test_images_of_different_sizes_and_batches_without_rows(make_images: Callable[..., Path]) -> None:
    """Ranks of a last short batch have none."""
    root = make_images({"a": 3}, size=(12, 10))
    make_images({"b": 3}, size=(40, 7))
    source = open_data(root)[0]
    rows = [[0, 3], [], list(range(len(source)))]
    view = TrainView(9)
    for batched in (False, True):
        found = list(Pixels(source, batched=batched).batches(view, rows, (4,)))
        assert [len(images) for images in found] == [2, 0, len(source)]
        for images, chosen in zip(found, rows, strict=True):
            for image, row in zip(images, chosen, strict=True):
                assert torch.equal(image, view(source.load(row), np.random.default_rng((4, row))))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named(make_images: Callable[..., Path], workers: int) -> None:
    root = make_images({"train/a": 3, "train/b": 3, "test/a": 1})
    train, _ = open_data(root)
    (root / "train/b/1.png").write_bytes(b"broken meanwhile")
    with pytest.raises(DataError) as caught:
        list(Pixels(train).batches(TestView(8), [[0, 1], [2, 3, 4, 5]], (0,), workers))
    assert str(caught.value).startswith(f"{root}/train/b/1.png cannot be read as an image")
    assert "Traceback" not in str(caught.value)


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(Pixels(Counted()).batches(TrainView(6), ROWS, (1,), workers=1))
    assert torch.equal(torch.get_rng_state(), state)
