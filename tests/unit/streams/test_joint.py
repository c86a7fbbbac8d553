"""All tasks of a stream as one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evertune.errors import StreamError
from evertune.streams import ArraySource, Source, Stream, Task, TextSource

NAMES = list("abcdef")


def data(per_class: int, name: str) -> ArraySource:
    """Six classes in two domains, with times; every example is a shade of its own."""
    rows = 6 * per_class
    x = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None], (rows, 2, 2))
    labels, domains = np.arange(rows) % 6, np.where(np.arange(rows) % 12 < 6, "rain", "sun")
    made = ArraySource(np.ascontiguousarray(x), labels, NAMES, domains=domains, name=name)
    made.times = np.arange(rows, dtype=np.float64)
    return made


TRAIN, TEST = data(8, "toy"), data(2, "tests")
STREAMS: dict[str, Callable[[], Stream]] = {
    "class": lambda: Stream.class_incremental(TRAIN, TEST, increment=2),
    "few": lambda: Stream.class_incremental(TRAIN, TEST, increment=2, shots=3),
    "domain": lambda: Stream.domain_incremental(TRAIN, TEST),
    "mixed": lambda: Stream.class_and_domain(TRAIN, TEST, increment=3),
    "data": lambda: Stream.more_data(TRAIN, TEST),
    "time": lambda: Stream.by_time(TRAIN, TEST, tasks=3),
    "blurry": lambda: Stream.blurry(TRAIN, TEST, tasks=3),
}


def examples(source: Source | None) -> list[tuple[int, str]]:
    """Shade and class of every example."""
    if source is None:
        return []
    return [(int(np.asarray(source.load(i)).flat[0]), source.classes[source.labels[i]]) for i in range(len(source))]


@pytest.mark.parametrize("kind", STREAMS)
def test_the_one_task_has_what_all_tasks_had(kind: str) -> None:
    stream = STREAMS[kind]()
    joint = stream.joint()
    (task,) = joint
    assert examples(task.train) == [one for part in stream for one in examples(part.train)]
    assert examples(task.test) == [one for part in stream for one in examples(part.test)]
    assert (joint.kind, joint.classes, task.classes) == (stream.kind, stream.classes, stream.classes)
    assert joint.merged == stream.tasks and not stream.merged
    assert joint.joint() is joint
    assert repr(joint) == f"<Stream of {len(stream)} tasks as one, 6 classes>"


def test_it_says_what_it_is() -> None:
    stream = STREAMS["class"]()
    said, joint = stream.description(), stream.joint().description()
    assert joint["joint"] is True and "joint" not in said
    assert {name: joint[name] for name in said if name != "tasks"} == {n: v for n, v in said.items() if n != "tasks"}
    assert [task["name"] for task in joint["tasks"]] == ["joint"]
    assert joint["tasks"][0]["train"]["size"] == len(TRAIN)


def test_of_texts_and_of_tasks_by_hand() -> None:
    first = TextSource(["one cat", "one dog"], np.array([0, 1]), ["cat", "dog"], name="first")
    second = TextSource(["another cat", "an emu"], np.array([0, 1]), ["cat", "emu"], name="second")
    tested = TextSource(["some emu"], np.array([0]), ["emu"], name="tests")
    stream = Stream.of(Task(0, "monday", first, kind="mixed"), Task(1, "tuesday", second, tested, kind="mixed"))
    (task,) = stream.joint()
    assert task.classes == ("cat", "dog", "emu")
    assert [task.train.load(i) for i in range(4)] == ["one cat", "one dog", "another cat", "an emu"]
    assert task.train.counts().tolist() == [2, 1, 1]
    assert task.test is tested
    assert stream.joint().description()["joint"] is True


def test_without_tests() -> None:
    assert Stream.class_incremental(TRAIN, None, increment=2).joint()[0].test is None


def test_chunks_are_cut_after_and_not_before() -> None:
    """One pass over everything in a drawn order, or nothing."""
    stream = STREAMS["class"]()
    chunks = Stream.online(stream.joint(), chunk=12)
    assert len(chunks) == 4 and sum(len(task.train) for task in chunks) == 48
    assert len(chunks[0].classes) > 2  # of several of the tasks
    with pytest.raises(StreamError, match="cut into chunks: put its tasks together first"):
        Stream.online(stream, chunk=12).joint()
