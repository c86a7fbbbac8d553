from __future__ import annotations

from typing import Any

import pytest

from evertune.cli.cutting import cut, stream_settings
from evertune.errors import ConfigError
from evertune.evaluation import Protocol
from evertune.streams import ArraySource, make_stream
from evertune.streams.make import KINDS, default_settings

Data = tuple[ArraySource, ArraySource]
NOTHING: dict[str, Any] = dict.fromkeys(
    ("first", "increment", "order_seed", "train_per_class", "settings", "protocol"), None
)


def made(blobs: Data, kind: str = "class", **told: Any) -> Any:
    return cut(*blobs, kind=kind, **{**NOTHING, **told})


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({}, {}),
        ({"first": 4, "increment": 1, "order_seed": "7"}, {"first": 4, "increment": 1, "order_seed": 7}),
        ({"increment": 3, "train_per_class": 2}, {"first": 3, "increment": 3, "train_per_class": 2}),
        ({"order_seed": "none", "settings": ["sizes=4,2"]}, {"sizes": [4, 2], "order_seed": None}),
        ({"settings": ["shots=2", "shot_seed=3"]}, {"shots": 2, "shot_seed": 3}),
        ({"kind": "blurry", "settings": ["tasks=2", "online=16"]}, {"kind": "blurry", "tasks": 2, "online": 16}),
        ({"increment": 2, "joint": True}, {"increment": 2, "joint": True}),
        ({"kind": "data", "settings": ["fractions=[0.5, 0.5]"]}, {"kind": "data", "fractions": [0.5, 0.5]}),
    ],
)
def test_what_was_told_is_what_make_stream_takes(blobs: Data, told: dict[str, Any], settings: dict[str, Any]) -> None:
    assert made(blobs, **told).description() == make_stream(*blobs, **settings).description()


def test_a_protocol_fills_in_what_was_not_told(blobs: Data) -> None:
    """HiDe-PET has the data's own order and ten tasks at most; what is told goes before."""
    named = Protocol.preset("hide-pet")
    habits = named.stream_settings(6)
    assert made(blobs, protocol=named).description() == make_stream(*blobs, **habits).description()
    other = made(blobs, protocol=named, settings=["sizes=3,3"], order_seed="5")
    assert other.description() == make_stream(*blobs, sizes=[3, 3], order_seed=5).description()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"kind": "clas"}, "--kind clas does not exist. Did you mean 'class'"),
        (
            {"kind": "time", "first": 2, "train_per_class": 3},
            "--first, --train-per-class means nothing with --kind time",
        ),
        ({"order_seed": "-1"}, "--order-seed -1 is neither"),
        ({"settings": ["imbalence=3"]}, "no setting 'imbalence'. Did you mean 'imbalance'"),
        ({"settings": ["tasks=3"]}, "tasks means nothing for a stream of kind 'class'"),
        ({"settings": ["imbalance=much"]}, "imbalance is 'much'; it must be a number"),
        ({"settings": ["imbalance"]}, "write it as KEY=VALUE"),
        ({"settings": ["first=3"]}, "has an option of its own: write --first 3"),
        ({"settings": ["shots=3", "shots=4"]}, "--stream shots is given twice"),
    ],
)
def test_what_cannot_be_cut_is_told(blobs: Data, told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(blobs, **told)


def test_values_are_json_lists_or_words() -> None:
    assert stream_settings(['order=["a, b", "c"]', "boundary = 0.25", "online_seed=none", "order_seeds=a,b"]) == {
        "order": ["a, b", "c"], "boundary": 0.25, "online_seed": None, "order_seeds": ["a", "b"],
    }  # fmt: skip


def test_defaults_change_nothing_where_they_are_told(blobs: Data) -> None:
    """Every default that means something by itself is what a stream has without it."""
    for kind in ("class", "blurry", "data"):
        needed = {"tasks": 2} if kind == "data" else {}
        told = {name: value for name, value in default_settings(kind).items() if value is not None}
        told = {name: value for name, value in told.items() if name not in ("online_seed", "boundary")}
        told = {name: value for name, value in told.items() if not name.startswith(("shot_", "imbalance_"))}
        told = told | needed
        assert (
            make_stream(*blobs, kind=kind, **told).description()
            == make_stream(*blobs, kind=kind, **needed).description()
        )
    assert {name for kind in KINDS for name in default_settings(kind)} >= {"online", "group_by", "fractions"}
