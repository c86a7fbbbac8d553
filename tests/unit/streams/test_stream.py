from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import StreamError
from evertune.streams import ArraySource, Stream, Task, open_data

FIELD_ORDER = (68, 56, 78, 8, 23, 84)  # how class orders of 100 classes begin with seed 1993


def source(
    labels: Sequence[int], classes: Sequence[str] | None = None, domains: Sequence[str] | None = None
) -> ArraySource:
    x = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ArraySource(x, list(labels), classes, domains=domains, name="toy")


def pair(n: int, per_class: int = 3) -> tuple[ArraySource, ArraySource]:
    names = [f"c{i}" for i in range(n)]
    return source(list(range(n)) * per_class, names), source(list(range(n)) * 2, names)


def test_the_class_order_of_the_field() -> None:
    stream = Stream.class_incremental(*pair(100, 2), first=10, increment=10)
    assert stream.classes[:6] == tuple(f"c{i}" for i in FIELD_ORDER)
    legacy = np.random.RandomState(1993).permutation(100)
    assert stream.classes == tuple(f"c{i}" for i in legacy)
    assert stream[0].classes == stream.classes[:10]
    assert [task.classes for task in stream] == [stream.classes[i : i + 10] for i in range(0, 100, 10)]


@pytest.mark.parametrize(
    ("classes", "first", "increment", "sizes"),
    [(37, 7, 5, [7, *[5] * 6]), (8, 2, 2, [2] * 4), (345, 23, 23, [23] * 15), (10, 4, 4, [4, 4, 2])],
)
def test_sizes_of_sessions(classes: int, first: int, increment: int, sizes: list[int]) -> None:
    """Pets, Kvasir and DomainNet of NTK-CL (spec §9.1), and a remainder."""
    stream = Stream.class_incremental(*pair(classes, 1), first=first, increment=increment)
    assert [len(task.classes) for task in stream] == sizes


@pytest.mark.parametrize("seed", range(5))
def test_class_orders_are_the_legacy_permutations(seed: int) -> None:
    stream = Stream.class_incremental(*pair(37, 1), first=7, increment=5, order_seed=seed)
    np.random.seed(seed)
    assert stream.classes == tuple(f"c{i}" for i in np.random.permutation(37))


def test_natural_and_named_orders() -> None:
    data = pair(4)
    assert Stream.class_incremental(*data, first=2, increment=2, order_seed=None).classes == ("c0", "c1", "c2", "c3")
    named = Stream.class_incremental(*data, first=1, increment=3, order=["c3", "c1", "c0", "c2"])
    assert [task.classes for task in named] == [("c3",), ("c1", "c0", "c2")]
    assert named.description()["order_seed"] is None


@given(st.data(), st.integers(2, 12))
def test_every_example_arrives_once_in_the_task_of_its_class(data: st.DataObject, n: int) -> None:
    first, increment = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    train, test = pair(n)
    stream = Stream.class_incremental(train, test, first=first, increment=increment, order_seed=n)
    sizes = [len(task.classes) for task in stream]
    assert sizes[0] == first
    assert all(size == increment for size in sizes[1:-1])
    assert sum(sizes) == n and (len(sizes) == 1 or sizes[-1] <= increment)
    seen = np.concatenate([task.train.rows for task in stream])  # type: ignore[attr-defined]
    assert sorted(seen) == list(range(len(train)))
    for task in stream:
        assert set(task.train.present()) == set(task.classes)
        assert task.test is not None
        assert set(task.test.present()) == set(task.classes)


def test_the_first_examples_of_each_class_in_file_order() -> None:
    train = source([1, 0, 1, 1, 0, 1, 0, 2], ["a", "b", "c"])
    with pytest.warns(UserWarning, match="1 class has a single"):
        stream = Stream.class_incremental(train, None, first=3, increment=1, order_seed=None, train_per_class=2)
    rows = [np.asarray(stream[0].train.load(i))[0, 0, 0] for i in range(len(stream[0].train))]
    assert rows == [0, 1, 2, 4, 7]


def test_classes_without_training_examples_do_not_count() -> None:
    train = source([0, 2, 0, 2], ["a", "never", "c"])
    stream = Stream.class_incremental(train, source([0, 2], ["a", "never", "c"]), first=1, increment=1)
    assert sorted(stream.classes) == ["a", "c"]


def test_train_and_test_meet_by_name_not_by_number() -> None:
    train, test = source([0, 1, 0, 1], ["a", "b"]), source([0, 1, 1], ["b", "a"])
    stream = Stream.class_incremental(train, test, first=1, increment=1, order_seed=None)
    assert [len(task.test or ()) for task in stream] == [2, 1]


def test_a_class_without_test_images_leaves_its_task_untested() -> None:
    train, test = source([0, 1, 0, 1], ["a", "b"]), source([0], ["a", "b"])
    stream = Stream.class_incremental(train, test, first=1, increment=1, order_seed=None)
    assert stream[0].test is not None
    assert stream[1].test is None


def test_a_stream_is_a_sequence() -> None:
    stream = Stream.class_incremental(*pair(4), first=2, increment=1, order_seed=None)
    assert len(stream) == 3
    assert [task.index for task in stream] == [0, 1, 2]
    assert stream[-1].classes == ("c3",)
    assert stream[1:] == stream.tasks[1:]
    assert repr(stream) == "<Stream of 3 tasks, class-incremental, 4 classes>"


def test_the_description_is_json_and_tells_streams_apart() -> None:
    data = pair(4)
    make = Stream.class_incremental
    streams = [
        make(*data, first=2, increment=2),
        make(*data, first=2, increment=1),
        make(*data, first=2, increment=2, order_seed=1),
        make(*data, first=2, increment=2, train_per_class=2),
        make(data[0], None, first=2, increment=2),
    ]
    assert len({json.dumps(stream.description()) for stream in streams}) == 5
    description = streams[0].description()
    assert description == make(*pair(4), first=2, increment=2).description()
    assert description["data"] == {"train": data[0].digest, "test": data[1].digest}
    assert description["order_seed"] == 1993
    assert [task["train"]["size"] for task in description["tasks"]] == [6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 0, "increment": 1}, "first is 0; toy has 4 classes, so it must be 1 to 4"),
        ({"first": 5, "increment": 1}, "first is 5"),
        ({"first": 2, "increment": 0}, "increment is 0"),
        ({"first": 2, "increment": 5}, "increment is 5"),
        ({"first": 2, "increment": 2, "train_per_class": 0}, "train_per_class is 0; it must be at least 1"),
        ({"first": 2, "increment": 2, "order": ["c0", "c1", "c2", "d3"]}, "names 'd3'. Did you mean 'c3'"),
        ({"first": 2, "increment": 2, "order": ["c0", "c1", "c2", "c2"]}, "names c2 more than once"),
        ({"first": 2, "increment": 2, "order": ["c0", "c1"]}, "leaves out c2, c3"),
    ],
)
def test_wrong_sizes_and_orders(options: dict[str, object], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        Stream.class_incremental(*pair(4), **options)  # type: ignore[arg-type]


def test_labels_in_test_that_training_never_saw() -> None:
    train, test = source([0, 1, 0, 1], ["cat", "dog", "emu"]), source([0, 2, 2], ["cat", "dog", "emu"])
    with pytest.raises(StreamError, match="toy: 2 test images belong to classes that training never saw: emu"):
        Stream.class_incremental(train, test, first=1, increment=1)


def test_data_of_one_class() -> None:
    with pytest.raises(StreamError, match=r"toy has one class, 'cat', .*'other' will do.* Task.from_folder"):
        Stream.class_incremental(source([0, 0], ["cat"]), None, first=1, increment=1)
    with pytest.raises(StreamError, match="The whole stream has one class, 'cat'"):
        Stream([Task(0, "one", source([0, 0], ["cat"]))])


def test_no_data_and_no_tasks() -> None:
    with pytest.raises(StreamError, match="toy has no training examples"):
        Stream.class_incremental(pair(3)[0].select([]), None, first=1, increment=1)
    with pytest.raises(StreamError, match="at least one task"):
        Stream([])
    with pytest.raises(StreamError, match="Task 'empty' has no training examples, so no class to learn"):
        Task(0, "empty", pair(3)[0].select([]))


def test_a_class_with_one_sample_is_legal_but_warned_of() -> None:
    train = source([0, 0, 1], ["cat", "dog"])
    with pytest.warns(UserWarning, match=r"toy: 1 class has a single training image \(dog\)") as caught:
        stream = Stream.class_incremental(train, None, first=1, increment=1)
    assert caught[0].filename == __file__
    assert sorted(len(task.train) for task in stream) == [1, 2]


def test_the_same_class_in_two_tasks() -> None:
    first = Task(0, "monday", source([0, 1, 1], ["cat", "dog"]))
    second = Task(1, "tuesday", source([0, 1, 1], ["emu", "cat"]))
    with pytest.raises(StreamError, match="two tasks: cat of task 'tuesday' came before, in monday"):
        Stream([first, second])


def test_a_task_with_no_new_class() -> None:
    first = Task(0, "monday", source([0, 1, 1], ["cat", "dog"]))
    second = Task(1, "tuesday", source([0, 0], ["dog"]))
    with pytest.raises(StreamError, match=r"'tuesday' brings no new class: dog came before.*kind 'domain'"):
        Stream([first, second])


def test_tasks_of_two_kinds() -> None:
    first = Task(0, "monday", source([0, 1], ["cat", "dog"]))
    second = Task(1, "tuesday", source([0, 1], ["cat", "dog"]), kind="domain")
    with pytest.raises(StreamError, match="'tuesday' is of kind 'domain' in a stream of kind 'class'"):
        Stream([first, second])
    with pytest.raises(StreamError, match="kind is 'online'"):
        Task(0, "x", source([0, 1]), kind="online")  # type: ignore[arg-type]


def test_a_task_knows_its_classes() -> None:
    train = source([2, 0, 0], ["a", "b", "c"])
    assert Task(0, "x", train).classes == ("a", "c")
    assert Task(0, "x", train, classes=("c", "a")).classes == ("c", "a")
    with pytest.raises(StreamError, match="names the classes a, b, but its training data holds a, c"):
        Task(0, "x", train, classes=("a", "b"))
    with pytest.raises(StreamError, match="Task 'x': 1 test images belong to classes that training never saw: b"):
        Task(0, "x", train, source([1], ["a", "b", "c"]))


def weather(labels: Sequence[int], domains: Sequence[str]) -> ArraySource:
    return source(labels, ["car", "bus", "tram"], domains)


def test_domains_arrive_one_at_a_time() -> None:
    train = weather([0, 1, 0, 1, 2, 2], ["sun", "sun", "rain", "rain", "rain", "rain"])
    test = weather([0, 1, 2], ["rain", "sun", "rain"])
    stream = Stream.domain_incremental(train, test)
    assert stream.kind == "domain"
    assert [task.name for task in stream] == ["rain", "sun"]
    assert stream.classes == ("car", "bus", "tram")
    assert [(len(task.train), len(task.test or ())) for task in stream] == [(4, 2), (2, 1)]
    reverse = Stream.domain_incremental(train, test, order=["sun", "rain"])
    assert [task.classes for task in reverse] == [("car", "bus"), ("car", "bus", "tram")]
    assert reverse.classes == ("car", "bus", "tram")
    seeded = Stream.domain_incremental(train, test, order_seed=3)
    known = ["rain", "sun"]
    assert [task.name for task in seeded] == [known[i] for i in np.random.RandomState(3).permutation(2)]
    assert json.dumps(stream.description()) != json.dumps(reverse.description())


def test_wrong_domains() -> None:
    train = weather([0, 1, 0, 1], ["sun", "sun", "rain", "rain"])
    with pytest.raises(StreamError, match=r"toy has no domains.*a domain column.*--domain-level"):
        Stream.domain_incremental(source([0, 1]), None)
    with pytest.raises(StreamError, match="but its training data has; give both or neither"):
        Stream.domain_incremental(train, source([0, 1], ["car", "bus"]))
    with pytest.raises(StreamError, match=r"The order of domains names 'snow'. .*Known: rain, sun"):
        Stream.domain_incremental(train, None, order=["snow", "sun", "rain"])
    with pytest.raises(StreamError, match="leaves out rain"):
        Stream.domain_incremental(train, None, order=["sun"])
    with pytest.raises(StreamError, match="domains that training never saw: fog"):
        Stream.domain_incremental(train, weather([0, 1], ["fog", "sun"]))
    with pytest.raises(StreamError, match="classes that training never saw: tram"):
        Stream.domain_incremental(train, weather([2], ["sun"]))


def test_a_task_from_a_folder(make_images: Callable[..., Path]) -> None:
    task = Task.from_folder(make_images({"owl": 3, "bee": 2}, root="garden"))
    assert (task.name, task.classes, len(task.train), task.test) == ("garden", ("bee", "owl"), 5, None)
    split = Task.from_folder(make_images({"train/owl": 3, "test/owl": 2}, root="night"), name="owls", index=4)
    assert (split.index, split.name, split.classes, len(split.train)) == (4, "owls", ("owl",), 3)
    assert split.test is not None
    assert len(split.test) == 2
    assert repr(split) == "<Task 4 'owls': 1 classes, 3 images, 2 test images>"


def test_folders_become_a_stream(make_images: Callable[..., Path]) -> None:
    tasks = [
        Task.from_folder(make_images({"owl": 3, "bee": 2}, root="a")),
        Task.from_folder(make_images({"ant": 2}, root="b"), index=1),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = Stream(tasks)
    assert stream.classes == ("bee", "owl", "ant")
    assert stream.description()["tasks"][1]["train"]["size"] == 2


def test_classes_of_two_folders_that_look_alike_are_told(make_images: Callable[..., Path]) -> None:
    folders = [make_images({"owl": 2, "bee": 2}, root="a"), make_images({"Owl ": 2, "bee": 2}, root="b")]
    with pytest.warns(UserWarning, match="Task 'b': 'Owl ' and 'owl' differ only in case or blanks, and are two"):
        assert Stream.of(*folders).classes == ("bee", "owl", "Owl ")


def test_a_data_set_by_name_is_a_task() -> None:
    task = Task.from_folder("digits", name="numbers")
    assert task.name == "numbers" and task.test is not None and len(task.classes) == 10


def test_a_folder_task_with_one_image_or_bad_ones(make_images: Callable[..., Path]) -> None:
    root = make_images({"owl": 1, "bee": 2})
    (root / "bee" / "bad.png").touch()
    with pytest.warns(UserWarning, match="single training image"):
        task = Task.from_folder(root, skip_bad=True)
    assert task.train.skipped == (f"{root}/bee/bad.png: the file is empty (0 bytes)",)


def test_an_unsplit_folder_makes_a_stream(make_images: Callable[..., Path]) -> None:
    train, test = open_data(make_images({"a": 5, "b": 5, "c": 5}))
    stream = Stream.class_incremental(train, test, first=2, increment=1)
    assert [len(task.train) for task in stream] == [8, 4]
