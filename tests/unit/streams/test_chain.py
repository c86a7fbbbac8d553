from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from evertune.errors import DataError, StreamError
from evertune.streams import ArraySource, Source, Stream, Task
from evertune.streams.chain import Renamed


def source(names: Sequence[str], per_class: int, first_pixel: int = 0) -> ArraySource:
    """Every image is one shade, a different one for each row."""
    labels = list(range(len(names))) * per_class
    x = np.arange(first_pixel, first_pixel + len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ArraySource(x, labels, names, name=f"{names[0]} data")


def stream(names: str, first_pixel: int = 0, increment: int = 1) -> Stream:
    train, test = source(list(names), 3, first_pixel), source(list(names), 2, first_pixel + 100)
    return Stream.class_incremental(train, test, first=increment, increment=increment, order_seed=None)


class Closed(ArraySource):
    """A source that nobody may read an image of."""

    def load(self, index: int) -> Image.Image:
        raise DataError(f"{self.describe(index)} was read.")

    def _digest(self) -> str:
        raise DataError("the whole source was read.")


def shades(part: Source) -> list[int]:
    return [np.asarray(part.load(i))[0, 0, 0] for i in range(len(part))]


def test_one_after_the_other() -> None:
    chain = Stream.chain({"zoo": stream("ab"), "farm": stream("bcd", 50)})
    assert [task.name for task in chain] == ["zoo/task 1", "zoo/task 2", "farm/task 1", "farm/task 2", "farm/task 3"]
    assert [task.index for task in chain] == [0, 1, 2, 3, 4]
    assert chain.kind == "class"
    assert chain.classes == ("zoo/a", "zoo/b", "farm/b", "farm/c", "farm/d")  # b of both stay two classes


def test_in_turns() -> None:
    chain = Stream.chain(
        {"zoo": stream("ab"), "farm": stream("bcd", 50), "sea": stream("xy", 80, increment=2)}, interleave=True
    )
    assert [task.name for task in chain] == [
        "zoo/task 1", "farm/task 1", "sea/task 1", "zoo/task 2", "farm/task 2", "farm/task 3",
    ]  # fmt: skip
    assert [task.index for task in chain] == list(range(6))


def test_a_task_shows_the_images_of_its_stream_under_new_names() -> None:
    farm = stream("bcd", 50, increment=2)
    before = [task.classes for task in farm]
    chain = Stream.chain({"zoo": stream("ab"), "farm": farm}, interleave=True)
    for theirs, ours in zip(farm, (chain[1], chain[3]), strict=True):
        assert ours.classes == tuple(f"farm/{name}" for name in theirs.classes)
        for one, two in ((theirs.train, ours.train), (theirs.test, ours.test)):
            assert one is not None and two is not None
            assert shades(one) == shades(two)
            assert two.labels is one.labels
            assert two.present() == tuple(f"farm/{name}" for name in one.present())
            assert [two.describe(i) for i in range(len(two))] == [one.describe(i) for i in range(len(one))]
    assert [task.classes for task in farm] == before
    part = chain[1].train.select([2, 0])
    assert shades(part) == [shades(farm[0].train)[i] for i in (2, 0)]
    assert part.classes == ("farm/b", "farm/c", "farm/d")


def test_no_image_is_read() -> None:
    streams = {
        key: Stream.class_incremental(Closed(np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1]), None, first=1, increment=1)
        for key in ("zoo", "farm")
    }
    chain = Stream.chain(streams, interleave=True)
    with pytest.raises(DataError, match="was read"):
        chain[0].train.load(0)


def test_streams_of_tasks_and_chains_can_be_chained() -> None:
    night = Stream([Task(0, "owls", source(["owl"], 2)), Task(1, "bats", source(["bat"], 2))])
    inner = Stream.chain({"night": night, "day": stream("ab")})
    chain = Stream.chain({"wood": inner, "zoo": stream("ab", 30)})
    assert [task.name for task in chain][:2] == ["wood/night/owls", "wood/night/bats"]
    assert chain.classes[0] == "wood/night/owl"
    assert chain[0].test is None
    assert chain.description()["order_seed"] == {"wood": {"night": None, "day": None}, "zoo": None}


def test_the_description_is_json_and_tells_chains_apart() -> None:
    zoo, farm = stream("ab"), stream("bcd", 50)
    chains = [
        Stream.chain({"zoo": zoo, "farm": farm}),
        Stream.chain({"zoo": zoo, "farm": farm}, interleave=True),
        Stream.chain({"farm": farm, "zoo": zoo}),
        Stream.chain({"zoo": zoo, "barn": farm}),
        Stream.chain({"zoo": zoo}),
        Stream.chain({"zoo": zoo, "farm": stream("bcd", 51)}),
        Stream.chain({"zoo": zoo, "farm": stream("bcd", 50, increment=2)}),
    ]
    assert len({json.dumps(chain.description(), sort_keys=True) for chain in chains}) == 7
    description = chains[1].description()
    assert description == Stream.chain({"zoo": stream("ab"), "farm": stream("bcd", 50)}, interleave=True).description()
    assert json.loads(json.dumps(description)) == description
    train = farm.data["train"]
    assert train is not None
    assert description["data"]["farm/train"] == train.digest
    assert (description["interleave"], description["streams"]["farm"]["increment"]) == (True, 1)


def test_a_renamed_source_is_another_source() -> None:
    whole = source(["cat", "dog"], 3)
    renamed = Renamed(whole, ["a/cat", "a/dog"])
    digests = {
        whole.digest,
        renamed.digest,
        Renamed(whole, ["b/cat", "b/dog"]).digest,
        Renamed(source(["cat", "dog"], 3, 1), ["a/cat", "a/dog"]).digest,
        renamed.select([0, 1]).digest,
    }
    assert len(digests) == 5
    assert renamed.digest == Renamed(source(["cat", "dog"], 3), ["a/cat", "a/dog"]).digest
    with pytest.raises(DataError, match="class names stand twice: x"):
        Renamed(whole, ["x", "x"])


def test_what_cannot_be_chained() -> None:
    with pytest.raises(StreamError, match="no streams to chain; give at least one"):
        Stream.chain({})
    rain = ArraySource(
        np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1], ["car", "bus"], domains=["sun", "sun", "fog", "fog"]
    )
    with pytest.raises(StreamError, match=r"Stream 'road' is domain-incremental.*Only class-incremental"):
        Stream.chain({"zoo": stream("ab"), "road": Stream.domain_incremental(rain, None)})


@pytest.mark.parametrize("key", ["a/b", ""])
def test_keys_that_could_be_another_streams(key: str) -> None:
    with pytest.raises(StreamError, match=f"under the key '{key}'.*a name without '/'"):
        Stream.chain({key: stream("ab")})
