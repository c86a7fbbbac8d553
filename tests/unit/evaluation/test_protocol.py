from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evertune.errors import ConfigError, RunError, StorageError
from evertune.evaluation import Protocol, require_same

FIELDS: dict[str, Any] = {
    "stream": {"digest": "ab12", "order": [3, 1, 2], "first": 1},
    "backbone": {"name": "tiny", "weights": "cd34"},
    "preprocessing": {"mean": [0, 0, 0]},
    "views": {"test": {"size": 32, "scale": (0.05, 1.0)}},
    "seeds": {"order": 1993, "augmentation": None},
    "metric": "top-1",
}


def changed(**fields: Any) -> Protocol:
    return Protocol({**FIELDS, **fields})


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


def test_the_hash_is_pinned() -> None:
    """Results already published stand beside this hash: a change here makes them unfindable."""
    assert Protocol(FIELDS).hash == "edf557203eea"


def test_the_hash_does_not_depend_on_order_or_spelling() -> None:
    protocol = Protocol(FIELDS)
    assert Protocol(reversed_keys(FIELDS)).hash == protocol.hash
    same = changed(
        stream={"first": 1.0, "order": np.array([3, 1, 2]), "digest": np.str_("ab12")},
        views={"test": {"size": np.int64(32), "scale": [0.05, 1]}},
        preprocessing={"mean": np.zeros(3, dtype=np.float32)},
    )
    assert same == protocol and hash(same) == hash(protocol) and same.hash == protocol.hash


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_field_hashes_alike_in_any_order_and_survives_json(extra: dict[str, Any]) -> None:
    fields = {**extra, **FIELDS}
    protocol = Protocol(fields)
    assert protocol.hash == Protocol(reversed_keys(fields)).hash
    assert Protocol.from_json(protocol.to_json()) == protocol


@pytest.mark.parametrize(
    "other",
    [
        changed(metric="top-5"),
        changed(stream={**FIELDS["stream"], "order": [1, 3, 2]}),
        changed(seeds={"order": 1994, "augmentation": None}),
        changed(seeds={"order": 1993}),
        changed(seeds={"order": "1993", "augmentation": None}),
        changed(seeds={"order": 1993, "augmentation": False}),
        changed(note=None),
    ],
)
def test_every_difference_changes_the_hash(other: Protocol) -> None:
    assert other.hash != Protocol(FIELDS).hash and other != Protocol(FIELDS)


def test_it_is_a_mapping_that_cannot_be_changed() -> None:
    given_fields = json.loads(json.dumps(FIELDS))
    protocol = Protocol(given_fields)
    before = protocol.hash
    given_fields["seeds"]["order"] = 7
    protocol["seeds"]["order"] = 8
    assert protocol.hash == before and protocol["seeds"]["order"] == 1993
    assert set(protocol) == set(FIELDS) and len(protocol) == 6 and "metric" in protocol
    with pytest.raises(TypeError):
        protocol["metric"] = "top-5"  # type: ignore[index]
    assert repr(protocol) == f"Protocol({before})"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": {}, "views": {}}, "lacks backbone, preprocessing, seeds, metric"),
        ({**FIELDS, "seeds": {"a": float("nan")}}, "protocol.seeds.a is nan"),
        ({**FIELDS, "views": [1, {2: 3}]}, r"protocol.views\[1\] has the key 2"),
        ({**FIELDS, "views": Path("x")}, "protocol.views is a .*Path"),
        ({**FIELDS, "views": {1, 2}}, "protocol.views is a set"),
    ],
)
def test_what_cannot_be_a_protocol_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(fields)


def edit(change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(Protocol(FIELDS).to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no whole protocol"),
        ("[]", "no whole protocol"),
        ("3", "no whole protocol"),
        (Protocol(FIELDS).to_json()[:-9], "no whole protocol"),
        (edit(lambda content: content.pop("hash")), "'hash' is missing"),
        (edit(lambda content: content["fields"].pop("seeds")), "lacks seeds"),
        (edit(lambda content: content["fields"].update(metric="top-5")), "edited or damaged"),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Protocol.from_json(text)


def test_same_protocols_may_stand_side_by_side() -> None:
    require_same({})
    require_same({"a": Protocol(FIELDS)})
    require_same({"a": Protocol(FIELDS), "b": Protocol(reversed_keys(FIELDS))})


def test_different_protocols_may_not_and_the_fields_are_named() -> None:
    other = changed(seeds={"order": 1994}, stream={**FIELDS["stream"], "order": list(range(100))})
    runs = {"safe": Protocol(FIELDS), "same": Protocol(FIELDS), "ranpac": other}
    with pytest.raises(RunError) as caught:
        require_same(runs)
    message = str(caught.value)
    assert message.startswith("'safe' and 'ranpac' were measured under different protocols")
    assert "seeds.order (1993 / 1994)" in message and "seeds.augmentation (null / absent)" in message
    assert "stream.order ([3, 1, 2] / [0, 1, 2, 3, " in message and "…" in message
    assert "metric" not in message and "stream.digest" not in message
    assert message.endswith("allow different ones (--allow-different, allow_different=True).")


def test_many_differences_are_counted() -> None:
    with pytest.raises(RunError, match="and 4 more"):
        require_same({"a": changed(extra={}), "b": changed(extra={str(n): n for n in range(11)})})
