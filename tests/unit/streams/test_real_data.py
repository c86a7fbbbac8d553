"""The data kit: real images, read as the field reads them."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evertune.streams import Batches, Stream, TestView, TrainView, open_data

pytestmark = pytest.mark.real


def test_cifar100_under_protocol_tiny_a(shared: Path) -> None:
    path = shared / "data/images/cifar100_sub.npz"
    train, test = open_data(path)
    stream = Stream.class_incremental(train, test, first=10, increment=10, train_per_class=100)
    assert [train.classes.index(name) for name in stream.classes[:6]] == [68, 56, 78, 8, 23, 84]
    assert [(len(task.train), len(task.test or ())) for task in stream] == [(1000, 500)] * 10

    with np.load(path) as arrays:  # an independent selection: the first 100 rows of each of the first ten classes
        first = [np.flatnonzero(arrays["y_train"] == train.classes.index(name))[:100] for name in stream[0].classes]
        rows = np.sort(np.concatenate(first))
        assert np.array_equal(stream[0].train.labels, arrays["y_train"][rows])
        for i in (0, 500, 999):
            assert np.array_equal(np.asarray(stream[0].train.load(i)), arrays["x_train"][rows[i]])


def test_a_train_view_of_a_small_image_is_cheap(shared: Path) -> None:
    train, _ = open_data(shared / "data/images/cifar100_sub.npz")
    epoch = Batches(train, TrainView(96), 48, shuffle=True, seed=(0,), epoch=0, rows=np.arange(960))
    costs = []
    for _ in range(3):
        start = time.process_time()
        assert sum(len(rows) for rows, _, _ in epoch) == 960
        costs.append((time.process_time() - start) / 960)
    assert min(costs) < 0.4e-3  # about 0.15 ms on the machine it was written on


@pytest.mark.parametrize(
    ("name", "classes", "train_size", "test_size"),
    [("cifar10_sub", 10, 2000, 1000), ("mnist_sub", 10, 5000, 1000), ("omniglot_small", 242, 3630, 1210)],
)
def test_arrays(shared: Path, name: str, classes: int, train_size: int, test_size: int) -> None:
    train, test = open_data(shared / f"data/images/{name}.npz")
    assert (len(train), len(test), len(train.present()), len(test.present())) == (
        train_size,
        test_size,
        classes,
        classes,
    )
    image = TestView(32)(train.load(0))
    assert image.shape == (3, 32, 32)
    if name != "cifar10_sub":
        assert torch.equal(image[0], image[2])


def test_pacs_is_a_stream_of_domains(shared: Path) -> None:
    train, test = open_data(shared / "data/images/pacs_sub.zip")
    stream = Stream.domain_incremental(train, test)
    assert [task.name for task in stream] == ["photo", "art_painting", "cartoon", "sketch"]
    assert [(len(task.train), len(task.test or ())) for task in stream] == [(280, 140)] * 4
    assert stream.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert all(task.classes == stream.classes for task in stream)
    assert "/sketch/train/dog/" in stream[3].train.describe(0)
    assert stream[0].train.load(0).size == (227, 227)


def test_caltech_has_its_classes_in_label_order_and_every_photo_opens(shared: Path) -> None:
    train, test = open_data(shared / "data/images/caltech101_sub.zip")
    assert (len(train), len(test), len(train.classes)) == (1515, 1010, 101)
    assert train.counts().tolist() == [15] * 101
    sizes = [len(images) for _, images, _ in Batches(test, TestView(32), 64, shuffle=False, seed=(0,), epoch=0)]
    assert sum(sizes) == 1010


def test_a_zip_unpacked_is_the_same_data(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/images/pacs_sub.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "pacs")
    for one, other in zip(open_data(path), open_data(tmp_path / "pacs"), strict=True):
        assert one.digest == other.digest
        assert one.classes == other.classes
