from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import StreamError
from evertune.streams import ArraySource, Stream, Task
from evertune.streams.online import arrival


def source(labels: list[int], names: list[str], domains: list[str] | None = None) -> ArraySource:
    return ArraySource(np.zeros((len(labels), 2, 2), np.uint8), labels, names, domains=domains, name="toy")


def pair(n: int, per_class: int) -> tuple[ArraySource, ArraySource]:
    names = [f"c{i}" for i in range(n)]
    return source(sorted(list(range(n)) * per_class), names), source(list(range(n)) * 2, names)


@given(st.integers(2, 6), st.integers(1, 20), st.integers(1, 50), st.sampled_from([None, 0, 3]), st.floats(0, 0.5))
def test_every_example_arrives_once(n: int, per_class: int, chunk: int, seed: int | None, boundary: float) -> None:
    train, test = pair(n, per_class)
    whole = Stream.class_incremental(train, test, first=min(2, n), increment=1)
    stream = Stream.online(whole, chunk=chunk, seed=seed, boundary=boundary)
    for part, data in (("train", train), ("test", test)):
        arrived = [row for t in stream if getattr(t, part) is not None for row in getattr(t, part).rows.tolist()]
        assert sorted(arrived) == list(range(len(data)))
    sizes = [len(task.train) for task in stream]
    assert sizes[0] >= min(chunk, len(train)) and len(stream[0].classes) >= 2
    assert all(size == chunk for size in sizes[1:-1]) and sizes[-1] <= max(chunk, sizes[0])
    seen: set[str] = set()
    for task in stream:
        assert (set() if task.test is None else set(task.test.present())) == set(task.classes) - seen
        seen |= set(task.classes)


def test_chunks_in_the_order_of_the_rows() -> None:
    whole = Stream.class_incremental(*pair(3, 5), first=1, increment=1, order_seed=None)
    stream = Stream.online(whole, chunk=4, seed=None)
    assert [task.name for task in stream] == ["1-6", "7-10", "11-14", "15-15"]  # the first until two classes were seen
    assert [task.train.rows.tolist() for task in stream[:2]] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]  # type: ignore[attr-defined]
    assert [task.classes for task in stream] == [("c0", "c1"), ("c1",), ("c2",), ("c2",)]
    assert [None if task.test is None else task.test.present() for task in stream] == [
        ("c0", "c1"), None, ("c2",), None,
    ]  # fmt: skip


def test_shuffled_within_tasks_by_seed() -> None:
    whole = Stream.class_incremental(*pair(4, 30), first=2, increment=2, order_seed=None)

    def order(seed: int) -> list[int]:
        return [row for task in Stream.online(whole, chunk=10, seed=seed) for row in task.train.rows]  # type: ignore[attr-defined]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)[:60]) == list(range(60))
    assert order(0)[:60] != list(range(60))


def test_a_class_is_tested_again_where_it_appears_in_a_new_domain() -> None:
    names, domains = ["cat", "dog"], ["rain"] * 4 + ["sun"] * 4
    train = source([0, 1, 0, 1, 0, 0, 1, 1], names, domains)
    test = source([0, 1, 0, 1], names, ["rain", "rain", "sun", "sun"])
    stream = Stream.online(Stream.domain_incremental(train, test), chunk=2, seed=None)
    assert [None if t.test is None else t.test.rows.tolist() for t in stream] == [[0, 1], None, [2], [3]]  # type: ignore[attr-defined]


def test_chunks_across_sources() -> None:
    one, two = source([0, 1, 0], ["cat", "dog"]), source([0, 1], ["dog", "emu"])
    tested = source([1, 0, 0], ["emu", "cat"])  # cat, known from the first task, is tested in the second
    stream = Stream.online(
        Stream([Task(0, "a", one, kind="mixed"), Task(1, "b", two, tested, kind="mixed")]), chunk=2, seed=None
    )
    assert [task.classes for task in stream] == [("cat", "dog"), ("cat", "dog"), ("emu",)]
    assert [None if t.test is None else t.test.present() for t in stream] == [None, ("cat",), ("emu",)]


def test_a_linear_border() -> None:
    """Over many borders, how many examples changed sides falls with the distance from one half to nothing."""
    lengths, width = [200] * 400, 40
    owner, rows = arrival(lengths, 0, width / 200)
    assert Counter(zip(owner.tolist(), rows.tolist(), strict=True)).most_common(1)[0][1] == 1
    assert np.bincount(owner).tolist() == lengths
    changed = owner.reshape(400, 200) != np.arange(400)[:, None]
    after = changed[1:, :width].mean(0)
    expected = 0.5 * (1 - (np.arange(width) + 0.5) / width)
    np.testing.assert_allclose(after, expected, atol=0.1)
    assert np.abs(after - expected).mean() < 0.03
    assert not changed[:, width : 200 - width].any()
    assert not changed[0, :width].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk is 0"),
        ({"boundary": 0.6}, "boundary is 0.6; it is a share of a task, from 0 to 0.5"),
        ({"seed": -1}, "online_seed is -1"),
    ],
)
def test_impossible_chunks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream.online(Stream.class_incremental(*pair(3, 2), first=1, increment=1), **options)
