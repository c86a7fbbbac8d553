"""Streams of kind "mixed", few shots and long tails: which example arrives when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import DataError, StreamError
from evertune.streams import ArraySource, Stream, Task, long_tailed
from evertune.streams.joined import Joined, joined
from evertune.streams.longtail import tail_counts


def source(
    labels: Sequence[int], names: Sequence[str] | None = None, domains: Sequence[str] | None = None, name: str = "toy"
) -> ArraySource:
    """Row i is one shade: i in red, i // 256 in green."""
    x = np.zeros((len(labels), 2, 2, 3), np.uint8)
    x[..., 0] = (np.arange(len(labels)) % 256)[:, None, None]
    x[..., 1] = (np.arange(len(labels)) // 256)[:, None, None]
    return ArraySource(x, list(labels), names, domains=domains, name=name)


def pair(n: int, per_class: int = 20, tests: int = 2) -> tuple[ArraySource, ArraySource]:
    names = [f"c{i}" for i in range(n)]
    return source(list(range(n)) * per_class, names), source(list(range(n)) * tests, names, name="tests")


def rows(part: Any) -> list[int]:
    return [] if part is None else part.rows.tolist()


def counts(task: Task) -> dict[str, int]:
    return {name: len(task.train.rows_of([name])) for name in task.classes}


def require_each_once(stream: Stream, train: ArraySource, test: ArraySource | None) -> None:
    assert sorted(row for task in stream for row in rows(task.train)) == list(range(len(train)))
    if test is not None:
        assert sorted(row for task in stream for row in rows(task.test)) == list(range(len(test)))


# -- mixed -------------------------------------------------------------------------------------------------------------


def test_a_mixed_stream_takes_what_the_others_refuse() -> None:
    first = Task(0, "monday", source([0, 1], ["cat", "dog"]), kind="mixed")
    more = Task(1, "tuesday", source([0, 0], ["cat"]), kind="mixed")
    both = Task(2, "wednesday", source([0, 1], ["dog", "emu"]), source([0, 1], ["cat", "emu"]), kind="mixed")
    stream = Stream([first, more, both])
    assert (stream.kind, stream.classes) == ("mixed", ("cat", "dog", "emu"))
    assert repr(stream) == "<Stream of 3 tasks, mixed, 3 classes>"
    early = Task(1, "tuesday", source([0], ["cat"]), source([0], ["emu"]), kind="mixed")
    with pytest.raises(StreamError, match=r"Task 'tuesday': 1 test .* never saw: emu"):
        Stream([first, early, both])
    with pytest.raises(StreamError, match="kind 'mixed' may bring more of it"):
        Stream([Task(0, "a", source([0, 1], ["cat", "dog"])), Task(1, "b", source([0, 1], ["cat", "emu"]))])
    with pytest.raises(StreamError, match="is of kind 'mixed': its classes come again"):
        Stream.chain({"days": stream})


# -- new classes and new domains ---------------------------------------------------------------------------------------


def seasons() -> tuple[ArraySource, ArraySource]:
    """Four classes in three domains, two images of each to learn from and one to test on."""
    names = ["ant", "bee", "cat", "dog"]
    cells = [(c, d) for d in ("rain", "snow", "sun") for c in range(4)]

    def make(times: int, name: str) -> ArraySource:
        return source([c for c, _ in cells * times], names, [d for _, d in cells * times], name)

    return make(2, "toy"), make(1, "tests")


def test_classes_and_domains_come_along_the_diagonals() -> None:
    train, test = seasons()
    stream = Stream.class_and_domain(train, test, increment=2, order_seed=None)
    assert [task.name for task in stream] == ["rain 1", "rain 2", "snow 1", "snow 2", "sun 1", "sun 2"]
    assert [task.classes for task in stream[:3]] == [("ant", "bee"), ("cat", "dog"), ("ant", "bee")]
    require_each_once(stream, train, test)
    for task in stream:
        assert task.test is not None
        assert task.test.present() == task.classes
        assert {task.test.domain_names[d] for d in task.test.domains} == {task.name[:-2]}
    ones = Stream.class_and_domain(train, test, increment=1, order_seed=None, domain_order=["sun", "snow", "rain"])
    assert [task.name for task in ones][:6] == ["sun 1", "sun 2", "snow 1", "sun 3", "snow 2", "rain 1"]


def test_classes_and_domains_in_any_order() -> None:
    train, test = seasons()
    options: dict[str, Any] = {"increment": 2, "arrival": "shuffled"}
    streams = [Stream.class_and_domain(train, test, **options, arrival_seed=seed) for seed in (0, 0, 1)]
    names = [[task.name for task in stream] for stream in streams]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2])
    require_each_once(streams[2], train, test)


def test_a_domain_may_lack_a_group_but_then_tests_of_it_have_no_task() -> None:
    train, test = seasons()
    snow, late = train.domain_names.index("snow"), train.rows_of(["cat", "dog"])
    kept = [i for i in range(len(train)) if not (i in set(late) and train.domains[i] == snow)]
    less = train.select(kept)
    with pytest.raises(StreamError, match=r"tests: 2 test examples .* no training example in their domain"):
        Stream.class_and_domain(less, test, increment=2, order_seed=None)
    stream = Stream.class_and_domain(less, None, increment=2, order_seed=None)
    assert [task.name for task in stream] == ["rain 1", "rain 2", "snow 1", "sun 1", "sun 2"]
    with pytest.raises(StreamError, match=r"in the order 'diagonl'\. Did you mean 'diagonal'"):
        Stream.class_and_domain(train, None, arrival="diagonl")  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="toy has no domains"):
        Stream.class_and_domain(*pair(3))


# -- more of the same classes ------------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.integers(1, 30), st.integers(2, 6), st.integers(0, 3))
def test_more_data_deals_every_example_once(n: int, per_class: int, tasks: int, seed: int) -> None:
    train, test = pair(n, per_class)
    if per_class < 2 * tasks:
        tasks = 2
    if per_class < 2:
        with pytest.raises(StreamError, match="no examples are left for task 2"):
            Stream.more_data(train, test, tasks=tasks, seed=seed)
        return
    stream = Stream.more_data(train, test, tasks=tasks, seed=seed)
    require_each_once(stream, train, test)
    assert set(stream[0].classes) == set(train.classes)
    assert rows(stream[0].test) == list(range(len(test)))
    for task in stream:
        assert all(abs(count - per_class / tasks) <= 1 for count in counts(task).values())


def test_more_data_by_fractions() -> None:
    train, _ = pair(3, 20)
    stream = Stream.more_data(train, None, fractions=[0.5, 0.3, 0.2])
    assert [set(counts(task).values()) for task in stream] == [{10}, {6}, {4}]
    for fractions in ([1.0], [0.5, 0.6], [0.5, 0.5, 0.0], [0.5, float("nan")]):
        with pytest.raises(StreamError, match="at least two are needed, all above 0"):
            Stream.more_data(train, None, fractions=fractions)
    with pytest.raises(StreamError, match="tasks and fractions"):
        Stream.more_data(train, None, tasks=2, fractions=[0.5, 0.5])


def timed(times: Sequence[float], labels: Sequence[int]) -> ArraySource:
    data = source(labels, ["cat", "dog", "emu"])
    data.times = np.asarray(times, np.float64)
    return data


def test_periods() -> None:
    train = timed([5, 1, 2, 2, 2, 9, 7, 8], [0, 0, 1, 0, 1, 2, 1, 2])
    test = source([0, 1, 2], ["cat", "dog", "emu"])
    stream = Stream.by_time(train, test, edges=[3, 8])
    assert [rows(task.train) for task in stream] == [[1, 2, 3, 4], [0, 6], [7, 5]]
    assert [rows(task.test) for task in stream] == [[0, 1], [], [2]]
    assert [task.name for task in stream] == ["before 3", "from 3", "from 8"]
    halves = Stream.by_time(train, test, tasks=2)
    assert [rows(task.train) for task in halves] == [[1, 2, 3, 4], [0, 6, 7, 5]]
    thirds = Stream.by_time(train.select([1, 2, 3, 4, 0, 6]), None, tasks=3)  # 2 of 6 would part the three of time 2
    assert [rows(task.train) for task in thirds] == [[1, 2, 3, 4], [0], [6]]


def test_periods_by_date() -> None:
    days = [np.datetime64(f"2024-05-0{day}").astype("datetime64[s]").astype(float) for day in (1, 2, 3, 4)]
    stream = Stream.by_time(timed(days, [0, 1, 0, 2]), None, edges=["2024-05-02T12:00", "2024-05-04T02:00+02:00"])
    assert [rows(task.train) for task in stream] == [[0, 1], [2], [3]]
    assert stream[1].name == "from 2024-05-02T12:00"
    with pytest.raises(StreamError, match="The edge 'May' is neither a number nor a date"):
        Stream.by_time(timed(days, [0, 1, 0, 2]), None, edges=["May"])


def test_wrong_periods() -> None:
    train = timed([1, 1, 1, 2], [0, 1, 0, 2])
    with pytest.raises(StreamError, match="toy has no times"):
        Stream.by_time(*pair(3), tasks=2)
    with pytest.raises(StreamError, match="no training example falls into period 3 of 3; its times run from 1 to 2"):
        Stream.by_time(train, None, tasks=3)
    with pytest.raises(StreamError, match="one of the two"):
        Stream.by_time(train, None)
    with pytest.raises(StreamError, match="edges are 2, 1; give at least one, rising"):
        Stream.by_time(train, None, edges=[2, 1])
    with pytest.raises(StreamError, match="tasks is 9; toy has 4 examples"):
        Stream.by_time(train, None, tasks=9)


# -- few shots ---------------------------------------------------------------------------------------------------------


def shades(part: Any) -> set[tuple[int, int]]:
    pixels = [np.asarray(part.load(i))[0, 0] for i in range(len(part))]
    return {(int(p[0]), int(p[1])) for p in pixels}


def test_few_shots_after_the_first_task() -> None:
    train, test = pair(6)
    stream = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None, shots=5)
    assert [set(counts(task).values()) for task in stream] == [{20}, {5}, {5}]
    more = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None, shots=7)
    assert set(rows(stream[1].train)) < set(rows(more[1].train))
    other = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None, shots=5, shot_seed=1)
    assert rows(stream[1].train) != rows(other[1].train)
    assert rows(stream[1].test) == rows(other[1].test)


def test_the_shots_of_a_class_do_not_depend_on_other_classes() -> None:
    train, _ = pair(6)
    fewer = train.select(train.rows_of(["c0", "c1", "c3", "c5"]))
    options: dict[str, Any] = {"first": 2, "increment": 1, "order_seed": None, "shots": 4}
    all_of_them = Stream.class_incremental(train, None, **options)
    some_of_them = Stream.class_incremental(fewer, None, **options)
    assert shades(all_of_them[2].train) == shades(some_of_them[1].train)  # c3 of both
    assert shades(all_of_them[4].train) == shades(some_of_them[2].train)  # c5 of both


def test_too_few_shots() -> None:
    train = source([0, 0, 0, 1, 1, 1, 2, 2], ["cat", "dog", "emu"])
    with pytest.raises(StreamError, match="class 'emu' has 2 training examples, but shots=3"):
        Stream.class_incremental(train, None, first=1, increment=1, order_seed=None, shots=3)
    Stream.class_incremental(train, None, first=1, increment=1, order=["emu", "cat", "dog"], shots=3)
    with pytest.raises(StreamError, match="shots is 0"):
        Stream.class_incremental(train, None, first=1, increment=1, shots=0)
    with pytest.raises(StreamError, match="the seed is -1"):
        Stream.class_incremental(train, None, first=1, increment=1, shots=1, shot_seed=-1)
    with pytest.raises(StreamError, match="shots and imbalance"):
        Stream.class_incremental(train, None, first=1, increment=1, shots=1, imbalance=2)


# -- long tails --------------------------------------------------------------------------------------------------------


def test_the_long_tail_of_cifar100() -> None:
    """10847 training images at imbalance factor 100, the size of CIFAR-100-LT in the literature."""
    assert sum(tail_counts(500, 100, 100)) == 10847
    assert tail_counts(5000, 10, 100)[0] == 5000
    assert tail_counts(5000, 10, 100)[-1] == 50
    assert tail_counts(3, 2, 100) == [3, 1]


@given(st.integers(2, 8), st.floats(1, 50), st.integers(0, 4))
def test_a_long_tail_has_the_counts_of_its_profile(n: int, factor: float, seed: int) -> None:
    train, _ = pair(n)
    expected = tail_counts(20, n, factor)
    ordered = long_tailed(train, factor, seed=seed, order="descending")
    assert ordered.counts().tolist() == expected
    shuffled = long_tailed(train, factor, seed=seed)
    assert sorted(shuffled.counts(), reverse=True) == expected
    assert rows(shuffled) == rows(long_tailed(train, factor, seed=seed))
    assert set(rows(ordered)) <= set(range(len(train)))


def test_a_long_tailed_stream() -> None:
    train, test = pair(4)
    options: dict[str, Any] = {"increment": 2, "order_seed": 3, "imbalance": 8}
    falling = Stream.class_incremental(train, test, **options, imbalance_order="descending")
    assert [count for task in falling for count in counts(task).values()] == [20, 10, 5, 2]
    assert all(len(task.test.rows_of([name])) == 2 for task in falling for name in task.classes)  # type: ignore[union-attr]
    mixed = [Stream.class_incremental(train, test, **options, imbalance_seed=seed) for seed in (0, 1, 2)]
    assert all(sorted(c for t in s for c in counts(t).values()) == [2, 5, 10, 20] for s in mixed)
    assert len({str([counts(task) for task in stream]) for stream in mixed}) > 1


def test_impossible_tails() -> None:
    train, _ = pair(3)
    for factor in (0.5, float("nan"), float("inf")):
        with pytest.raises(StreamError, match="it must be a number of at least 1"):
            long_tailed(train, factor)
    with pytest.raises(StreamError, match=r"cannot be 'falling'\. .*Known: descending, shuffled"):
        long_tailed(train, 2, order="falling")  # type: ignore[arg-type]
    few = source([0, 0, 0, 0, 1, 2, 2], ["cat", "dog", "emu"])
    assert long_tailed(few, 2, order="descending").counts().tolist() == [4, 1, 2]  # dog has fewer than its share


# -- blurry ------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 10), st.data())
def test_i_blurry_moves_a_share_of_the_blurry_classes(n: int, data: st.DataObject) -> None:
    tasks = data.draw(st.integers(2, n))
    disjoint, blur = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 0.95))
    train, test = pair(n)
    stream = Stream.blurry(train, test, tasks=tasks, disjoint=disjoint, blur=blur, order_seed=n)
    require_each_once(stream, train, test)
    order = [f"c{i}" for i in np.random.RandomState(n).permutation(n)]
    alone = round(disjoint * n)
    for number, name in enumerate(order):
        major = number % tasks
        here = [counts(task).get(name, 0) for task in stream]
        moved = 0 if number < alone else min(round(blur * 20), 19)
        assert here[major] == 20 - moved
        others = [count for t, count in enumerate(here) if t != major]
        assert max(others) - min(others) <= 1
        assert stream[major].test is not None
        assert name in stream[major].test.present()


def test_blurry_streams_have_seeds() -> None:
    train, test = pair(6)
    streams = [Stream.blurry(train, test, tasks=3, seed=seed, blur=0.3) for seed in (0, 0, 1)]
    parts = [[rows(task.train) for task in stream] for stream in streams]
    assert parts[0] == parts[1] != parts[2]
    assert streams[0][0].classes[:2] == streams[2][0].classes[:2]  # its own, in order of arrival


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 1}, "tasks is 1; toy has 6 classes, so it must be 2 to 6"),
        ({"tasks": 7}, "tasks is 7"),
        ({"disjoint": 1.1}, "disjoint is 1.1; it is a share, from 0 to 1"),
        ({"blur": 1.0}, "blur is 1.0; it is a share, from 0 to below 1"),
        ({"seed": -2}, "blur_seed is -2"),
    ],
)
def test_impossible_blurs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream.blurry(*pair(6), **options)


# -- uneven tasks ------------------------------------------------------------------------------------------------------


def test_sizes_and_groups() -> None:
    train, test = pair(6)
    uneven = Stream.class_incremental(train, test, sizes=[3, 1, 2], order_seed=None)
    assert [task.classes for task in uneven] == [("c0", "c1", "c2"), ("c3",), ("c4", "c5")]
    listed = Stream.class_incremental(train, test, groups=[["c5", "c0"], ["c1", "c2", "c3", "c4"]])
    assert [task.classes for task in listed] == [("c5", "c0"), ("c1", "c2", "c3", "c4")]
    tenth = Stream.class_incremental(*pair(30), order_seed=None)
    assert [len(task.classes) for task in tenth] == [3] * 10


def test_alphabets_are_tasks() -> None:
    names = ["Greek/alpha", "Greek/beta", "Korean/giyeok", "Futurama/a", "Futurama/b", "Futurama/c"]
    train = source(list(range(6)) * 2, names)
    stream = Stream.class_incremental(train, None, group_by="prefix", order_seed=None)
    assert [(task.name, len(task.classes)) for task in stream] == [("Greek", 2), ("Korean", 1), ("Futurama", 3)]
    seeded = Stream.class_incremental(train, None, group_by="prefix", order_seed=5)
    known = ["Greek", "Korean", "Futurama"]
    assert [task.name for task in seeded] == [known[i] for i in np.random.RandomState(5).permutation(3)]
    named = Stream.class_incremental(train, None, group_by="prefix", order=["Korean", "Futurama", "Greek"])
    assert named[0].classes == ("Korean/giyeok",)
    with pytest.raises(StreamError, match="class names such as 'group/name', but there is c0, c1"):
        Stream.class_incremental(*pair(3), group_by="prefix")
    with pytest.raises(StreamError, match="cannot be grouped by 'suffix'"):
        Stream.class_incremental(train, None, group_by="suffix")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [3, 2]}, "sizes adds up to 5 classes, but toy has 6"),
        ({"sizes": [6, 0]}, "sizes holds 0"),
        ({"sizes": [6], "first": 3}, "first and increment and sizes all say"),
        ({"groups": [["c0"], ["c0", "c1", "c2", "c3", "c4", "c5"]]}, "names c0 more than once"),
        ({"groups": [["c0", "c1"]]}, "leaves out c2, c3, c4, c5"),
        ({"groups": [["c0", "c1", "c2"], [], ["c3", "c4", "c5"]]}, "Group 2 of toy is empty"),
        ({"groups": [["x", "c1", "c2"]]}, "names 'x'"),
    ],
)
def test_impossible_groups(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream.class_incremental(*pair(6), **options)


# -- open-ended --------------------------------------------------------------------------------------------------------


def test_tasks_of_any_sort_in_order(make_images: Any) -> None:
    folder: Path = make_images({"train/owl": 3, "test/owl": 1, "train/bee": 2}, root="monday")
    task = Task(9, "tuesday", source([0, 0], ["owl"]))
    stream = Stream.of(folder, task)
    assert [(t.index, t.name, t.kind) for t in stream] == [(0, "monday", "mixed"), (1, "tuesday", "mixed")]
    assert stream.classes == ("bee", "owl")
    with pytest.raises(StreamError, match="Two tasks are called tuesday"):
        Stream.of(folder, task, task)
    with pytest.raises(StreamError, match="'tuesday' brings no new class"):
        Stream.of(folder, task, kind="class")


# -- several sources as one --------------------------------------------------------------------------------------------


def test_sources_one_after_the_other() -> None:
    one = source([0, 1], ["cat", "dog"], ["sun", "rain"], "one")
    two = source([0, 1, 1], ["dog", "emu"], ["fog", "sun", "sun"], "two")
    both = joined([one, two.select([2, 0])])
    assert isinstance(both, Joined)
    assert both.classes == ("cat", "dog", "emu")
    assert [both.classes[i] for i in both.labels] == ["cat", "dog", "emu", "dog"]
    assert both.domains is not None
    assert [both.domain_names[i] for i in both.domains] == ["sun", "rain", "sun", "fog"]
    assert [both.describe(i) for i in range(4)] == [one.describe(0), one.describe(1), two.describe(2), two.describe(0)]
    assert [np.asarray(both.load(i))[0, 0, 0] for i in range(4)] == [0, 1, 2, 0]
    assert both.digest != joined([two, one]).digest
    assert (both.identify(2), both.content(2)) == (two.identify(2), two.content(2))


def test_parts_of_one_source_become_one_choice() -> None:
    data = source([0, 1, 2], ["a", "b", "c"])
    both = joined([data.select([2]), data.select([0])])
    assert rows(both) == [2, 0]
    assert Counter(both.present()) == Counter(("a", "c"))
    assert joined([data]) is data
    text = source([0], ["a"])
    text.modality = "text"
    with pytest.raises(DataError, match="images and texts"):
        joined([data, text])
