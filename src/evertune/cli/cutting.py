"""From what ``evertune run`` was told to a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune.evaluation import ProtocolPreset
    from evertune.streams import Source, Stream

OWN = ("kind", "first", "increment", "order_seed", "train_per_class")
"""Settings of streams that have an option of their own; --stream KEY=VALUE gives the others."""


def cut(
    train: Source,
    test: Source,
    *,
    kind: str,
    first: int | None,
    increment: int | None,
    order_seed: str | None,
    train_per_class: int | None,
    settings: Sequence[str] | None,
    protocol: ProtocolPreset | None,
    joint: bool = False,
) -> Stream:
    """The tasks that were asked for; what was not said is the protocol's habit, else the library's.

    Raises
    ------
    ConfigError
        A kind, setting or value that does not exist or means nothing here.
    StreamError
        Settings that the data cannot be cut by.
    """
    from evertune.streams import make_stream
    from evertune.streams.make import KINDS

    if kind not in KINDS:
        raise ConfigError(f"--kind {kind} does not exist. {nearest(kind, KINDS)}")
    named = {"first": first, "increment": increment, "train_per_class": train_per_class}
    given = {name: value for name, value in named.items() if value is not None}
    meaningless = [f"--{name.replace('_', '-')}" for name in given if name not in KINDS[kind]]
    if meaningless:
        raise ConfigError(f"{', '.join(meaningless)} means nothing with --kind {kind}.")
    asked = given | stream_settings(settings or ()) | ({"joint": True} if joint else {})
    habits = {} if protocol is None or kind != "class" else protocol.stream_settings(len(train.present()))
    if not asked.keys() & {"first", "increment", "sizes", "groups", "group_by"}:
        asked |= {name: habits[name] for name in ("first", "increment") if name in habits}
    if order_seed is not None:
        asked["order_seed"] = _order_seed(order_seed)
    elif "order_seed" in habits and not asked.keys() & {"groups", "order"}:
        asked["order_seed"] = habits["order_seed"]
    return make_stream(train, test, kind=kind, **asked)


def stream_settings(given: Sequence[str]) -> dict[str, Any]:
    """The settings behind ``--stream KEY=VALUE``; values are JSON, lists with commas, or words.

    >>> stream_settings(["imbalance=100", "sizes=20,10", "group_by=prefix", 'order=["1", "0"]', "online_seed=none"])
    {'imbalance': 100, 'sizes': [20, 10], 'group_by': 'prefix', 'order': ['1', '0'], 'online_seed': None}

    Raises
    ------
    ConfigError
        A setting without a value, given twice, or one that has an option of its own.
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"--stream {text} sets nothing: write it as KEY=VALUE, such as --stream imbalance=100.")
        if name in OWN:
            raise ConfigError(f"--stream {name} has an option of its own: write --{name.replace('_', '-')} {value}.")
        if name in settings:
            raise ConfigError(f"--stream {name} is given twice: leave one out.")
        settings[name] = _read(value.strip())
    return settings


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        if "," in value and not value.startswith("["):
            return [_read(part.strip()) for part in value.split(",")]
        return None if value == "none" else value


def _order_seed(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) >= 2**32:
        raise ConfigError(f"--order-seed {text} is neither a whole number from 0 to {2**32 - 1} nor 'none'.")
    return int(text)
