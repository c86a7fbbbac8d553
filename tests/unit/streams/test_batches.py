from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evertune.errors import ConfigError, DataError
from evertune.streams import ArraySource, Batches, TestView, TrainView, open_data
from evertune.streams.pixels import Pixels


def source(n: int = 23) -> ArraySource:
    x = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return ArraySource(x, np.arange(n) % 5)


def batches(n: int = 23, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    settings: dict[str, Any] = {"shuffle": True, "seed": (7, 1), "epoch": 2, "batch_size": 5}
    return list(Batches(source(n), TrainView(6), **settings | options))


def by_row(found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[int, bytes]:
    return {
        int(row): image.numpy().tobytes() for rows, images, _ in found for row, image in zip(rows, images, strict=True)
    }


def test_shapes_types_and_labels() -> None:
    found = batches()
    assert [len(rows) for rows, _, _ in found] == [5, 5, 5, 5, 3]
    for rows, images, labels in found:
        assert (rows.dtype, images.dtype, labels.dtype) == (torch.int64, torch.uint8, torch.int64)
        assert images.shape == (len(rows), 3, 6, 6)
        assert torch.equal(labels, rows % 5)
    assert sorted(by_row(found)) == list(range(23))


def test_the_order_is_the_named_law() -> None:
    order = torch.cat([rows for rows, _, _ in batches()])
    assert order.tolist() == np.random.default_rng((7, 1, 2)).permutation(23).tolist()
    assert torch.cat([rows for rows, _, _ in batches(shuffle=False)]).tolist() == list(range(23))


def test_the_view_of_an_example_depends_on_seed_epoch_and_row_only() -> None:
    reference = by_row(batches())
    assert by_row(batches(batch_size=7)) == reference
    assert by_row(batches(shuffle=False)) == reference
    assert by_row(batches(workers=2)) == reference
    part = by_row(batches(rows=[3, 20, 4]))
    assert part == {row: reference[row] for row in (3, 20, 4)}
    assert by_row(batches(epoch=3)) != reference
    assert by_row(batches(seed=(7, 2))) != reference
    expected = TrainView(6)(source().load(4), np.random.default_rng((7, 1, 2, 4)))
    assert reference[4] == expected.numpy().tobytes()


def test_views_may_be_those_of_another_epoch_in_the_order_of_this_one() -> None:
    first, third = batches(epoch=0), batches(epoch=2, view_epoch=0)
    assert by_row(third) == by_row(first) != by_row(batches(epoch=2))
    for found, epoch in ((first, 0), (third, 2)):
        order = torch.cat([rows for rows, _, _ in found])
        assert order.tolist() == np.random.default_rng((7, 1, epoch)).permutation(23).tolist()
    assert by_row(batches(epoch=2, view_epoch=2)) == by_row(batches(epoch=2))


def test_the_same_epoch_can_be_walked_again() -> None:
    epoch = Batches(source(), TrainView(6), 5, shuffle=True, seed=(1,), epoch=0)
    assert len(epoch) == 5
    for one, other in zip(epoch, epoch, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 5), st.booleans())
def test_the_ranks_parts_make_the_batch(n: int, batch_size: int, world: int, drop_last: bool) -> None:
    if drop_last and n < batch_size:
        return
    options: dict[str, Any] = {"n": n, "batch_size": batch_size, "drop_last": drop_last}
    whole = batches(**options)
    parts = [batches(**options, rank=rank, world=world) for rank in range(world)]
    assert all(len(part) == len(whole) for part in parts)
    for k, batch in enumerate(whole):
        for i in range(3):
            assert torch.equal(torch.cat([part[k][i] for part in parts]), batch[i])


def test_drop_last() -> None:
    assert [len(rows) for rows, _, _ in batches(drop_last=True)] == [5, 5, 5, 5]
    assert len(batches(n=20, drop_last=True)) == len(batches(n=20)) == 4


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    batches(workers=1)
    batches()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_subset_counts_its_own_rows() -> None:
    part = source().select([10, 11, 13])
    (rows, images, labels), *_ = Batches(part, TestView(8), 8, shuffle=False, seed=(0,), epoch=0)
    assert rows.tolist() == [0, 1, 2]
    assert labels.tolist() == [0, 1, 3]
    assert torch.equal(images[1], torch.from_numpy(np.asarray(source().load(11)).transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_also_from_a_loader_process(
    make_images: Callable[..., Path], workers: int
) -> None:
    root = make_images({"train/a": 3, "train/b": 3, "test/a": 1})
    train, _ = open_data(root)
    (root / "train/b/1.png").write_bytes(b"broken meanwhile")
    with pytest.raises(DataError) as caught:
        list(Batches(train, TestView(8), 2, shuffle=False, seed=(0,), epoch=0, workers=workers))
    assert str(caught.value).startswith(f"{root}/train/b/1.png cannot be read as an image")
    assert "Traceback" not in str(caught.value)


def test_loader_processes_read_zips(make_images: Callable[..., Path], zip_folder: Callable[..., Path]) -> None:
    train, _ = open_data(zip_folder(make_images({"a": 12, "b": 12})))
    options: dict[str, Any] = {"shuffle": True, "seed": (0,), "epoch": 0}
    alone = list(Batches(train, TrainView(8), 4, **options))
    shared = list(Batches(train, TrainView(8), 4, workers=2, **options))
    assert by_row(alone) == by_row(shared)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"workers": -1}, ConfigError, "workers is -1"),
        ({"rank": 2, "world": 2}, ConfigError, "rank is 2 of world 2"),
        ({"seed": (-1,)}, ConfigError, "must hold no negative number"),
        ({"epoch": -1}, ConfigError, "must hold no negative number"),
        ({"rows": []}, DataError, "no examples to make batches of"),
        ({"rows": [99]}, DataError, "Row 99 does not exist"),
        ({"batch_size": 24, "drop_last": True}, ConfigError, "23 examples do not fill a batch of 24"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batches(**options)


def test_a_later_start_gives_the_same_batches_and_reads_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read = batches(), []
    load = ArraySource.load
    monkeypatch.setattr(ArraySource, "load", lambda self, row: read.append(row) or load(self, row))
    for pixels in (None, Pixels(source())):
        read.clear()
        rest = batches(start=3, pixels=pixels)
        assert len(rest) == 2
        for one, two in zip(rest, whole[3:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert sorted(read) == sorted(row for rows, _, _ in whole[3:] for row in rows.tolist())
    assert batches(start=5) == [] == batches(start=9)
    with pytest.raises(ConfigError, match="counted from 0"):
        batches(start=-1)
