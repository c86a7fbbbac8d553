from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from evertune.errors import ConfigError, StreamError
from evertune.streams import ArraySource, Stream, make_stream
from evertune.streams.make import KINDS, settings_of

NAMES = [f"{group}/c{i}" for group in "abc" for i in range(2)]


def data(per_class: int, name: str) -> ArraySource:
    """Six classes in two domains, with times."""
    labels = list(range(6)) * per_class
    domains = ["sun" if (i // 6) % 2 else "rain" for i in range(len(labels))]
    made = ArraySource(np.zeros((len(labels), 2, 2), np.uint8), labels, NAMES, domains=domains, name=name)
    made.times = np.arange(len(labels), dtype=np.float64)
    return made


TRAIN, TEST = data(10, "toy"), data(2, "tests")

SETTINGS: list[dict[str, Any]] = [
    {},
    {"first": 2, "increment": 1},
    {"increment": 3, "order_seed": 7, "train_per_class": 4},
    {"increment": 3, "order_seed": None},
    {"increment": 2, "order": NAMES[::-1]},
    {"sizes": [3, 1, 2], "shots": 2, "shot_seed": 3},
    {"groups": [NAMES[:4], NAMES[4:]], "imbalance": 4, "imbalance_seed": 1, "imbalance_order": "descending"},
    {"group_by": "prefix", "order_seed": 2},
    {"group_by": "prefix", "order": ["c", "a", "b"]},
    {"kind": "domain"},
    {"kind": "domain", "order_seed": 4},
    {"kind": "domain", "order": ["sun", "rain"], "online": 16},
    {"kind": "mixed", "increment": 2, "domain_seed": 1},
    {"kind": "mixed", "sizes": [4, 2], "domain_order": ["sun", "rain"], "arrival": "shuffled", "arrival_seed": 2},
    {"kind": "data", "tasks": 3},
    {"kind": "data", "fractions": [0.5, 0.5], "deal_seed": 3},
    {"kind": "time", "tasks": 3},
    {"kind": "time", "edges": [10, 20.5]},
    {"kind": "time", "edges": ["1970-01-01T00:00:30"]},
    {"kind": "blurry", "tasks": 3, "blur": 0.3, "disjoint": 0.5, "blur_seed": 1, "order_seed": 0},
    {"increment": 3, "order_seed": None, "online": 10, "online_seed": None},
    {"kind": "blurry", "tasks": 3, "order": NAMES, "online": 10, "online_seed": 2, "boundary": 0.2},
    {"increment": 2, "joint": True},
    {"increment": 2, "order": NAMES[::-1], "joint": True},
    {"kind": "domain", "order_seed": None, "joint": True},
    {"kind": "data", "tasks": 3, "joint": True, "online": 16},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_make_the_stream_again(settings: dict[str, Any]) -> None:
    stream = make_stream(TRAIN, TEST, **settings)
    said = json.loads(json.dumps(stream.settings))
    assert said == stream.settings
    again = make_stream(TRAIN, TEST, **said)
    assert again.settings == stream.settings
    described = json.loads(json.dumps(stream.description()))
    assert again.description() == described
    assert make_stream(TRAIN, TEST, **settings_of(described)).description() == described


def test_settings_are_those_of_the_constructors() -> None:
    """Every setting that is left open has the constructor's default."""
    pairs = [
        ({"first": 2, "increment": 2}, Stream.class_incremental(TRAIN, TEST, first=2, increment=2)),
        ({"kind": "domain"}, Stream.domain_incremental(TRAIN, TEST)),
        ({"kind": "mixed", "increment": 2}, Stream.class_and_domain(TRAIN, TEST, increment=2)),
        ({"kind": "data"}, Stream.more_data(TRAIN, TEST)),
        ({"kind": "time", "tasks": 2}, Stream.by_time(TRAIN, TEST, tasks=2)),
        ({"kind": "blurry"}, Stream.blurry(TRAIN, TEST)),
        ({"increment": 2, "joint": True}, Stream.class_incremental(TRAIN, TEST, increment=2).joint()),
        ({"increment": 2, "joint": False}, Stream.class_incremental(TRAIN, TEST, increment=2)),
        ({"increment": 2, "online": 64}, Stream.online(Stream.class_incremental(TRAIN, TEST, increment=2))),
    ]
    for settings, stream in pairs:
        assert make_stream(TRAIN, TEST, **settings).description() == stream.description()
    assert {settings.get("kind", "class") for settings, _ in pairs} == set(KINDS)


def test_plain_streams_are_described_as_ever() -> None:
    """Their hashes stand beside kept results."""
    plain = make_stream(TRAIN, TEST, increment=2, order=NAMES[::-1]).description()
    assert set(plain) == {
        "kind", "classes", "first", "increment", "order_seed", "train_per_class", "data", "tasks",
    }  # fmt: skip
    assert (plain["kind"], plain["order_seed"]) == ("class", None)
    domains = make_stream(TRAIN, TEST, kind="domain", order_seed=1993).description()
    assert set(domains) == {"kind", "classes", "order_seed", "data", "tasks"}
    chain = Stream.chain({"a": make_stream(TRAIN, TEST, increment=2)}).description()
    assert chain["streams"] == {"a": {"first": 2, "increment": 2, "order_seed": 1993, "train_per_class": None}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "blury"}, "no stream of kind 'blury'. Did you mean 'blurry'"),
        ({"incremnt": 2}, "no setting 'incremnt'. Did you mean 'increment'"),
        ({"incremnt": None}, "no setting 'incremnt'"),
        ({"kind": "domain", "first": 2}, "first means nothing for a stream of kind 'domain', only for class, mixed"),
        ({"blur": 0.1}, "blur means nothing for a stream of kind 'class', only for blurry"),
        ({"kind": "blurry", "shots": 5}, "shots means nothing"),
        ({"shot_seed": 1}, "shot_seed means nothing without shots"),
        ({"imbalance_order": "descending"}, "imbalance_order means nothing without imbalance"),
        ({"boundary": 0.1}, "boundary means nothing without online"),
        ({"kind": "mixed", "arrival_seed": 1}, "arrival_seed means nothing without arrival='shuffled'"),
        ({"first": "2"}, "first is '2'; it must be a whole number"),
        ({"joint": "yes"}, "joint is 'yes'; it must be true or false"),
        ({"first": True}, "first is True; it must be a whole number"),
        ({"sizes": [3, "3"]}, "sizes is .*; it must be a list of whole numbers"),
        ({"groups": ["a", "b"]}, "groups is .*; it must be a list of lists of names"),
        ({"order": "abc"}, "order is 'abc'; it must be a list of names"),
        ({"kind": "data", "fractions": [0.5, "x"]}, "must be a list of numbers"),
        ({"kind": "time", "edges": [None]}, "must be a list of numbers or dates"),
        ({"order": NAMES, "order_seed": 1}, "order and order_seed both say"),
        ({"groups": [NAMES], "order_seed": 1}, "groups say in which order classes arrive"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stream(TRAIN, TEST, **settings)


def test_settings_that_the_data_cannot_be_cut_by() -> None:
    with pytest.raises(StreamError, match="sizes adds up to 5"):
        make_stream(TRAIN, TEST, sizes=[3, 2])
    with pytest.raises(StreamError, match="order_seed is -1"):
        make_stream(TRAIN, TEST, order_seed=-1)
