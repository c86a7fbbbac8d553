"""A stream from settings that JSON can hold: what ``Stream.settings`` gives, a configuration file, or options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from evertune.errors import ConfigError, nearest
from evertune.streams.source import Source
from evertune.streams.stream import PLAIN, TASK_COUNT, Stream

_GROUPS = {"first": "int", "increment": "int", "sizes": "ints"}
_ORDER = {"order_seed": "seed", "order": "names"}
_ANY = {"joint": "flag", "online": "int", "online_seed": "seed", "boundary": "number"}

KINDS: Mapping[str, Mapping[str, str]] = {
    "class": {
        **_GROUPS, **_ORDER, "groups": "groups", "group_by": "name", "train_per_class": "int", "shots": "int",
        "shot_seed": "int", "imbalance": "number", "imbalance_seed": "int", "imbalance_order": "name",
    },
    "domain": {**_ORDER},
    "mixed": {
        **_GROUPS, **_ORDER, "domain_seed": "seed", "domain_order": "names", "arrival": "name", "arrival_seed": "int",
    },
    "data": {"tasks": "int", "fractions": "numbers", "deal_seed": "int"},
    "time": {"tasks": "int", "edges": "moments"},
    "blurry": {**_ORDER, "tasks": "int", "disjoint": "number", "blur": "number", "blur_seed": "int"},
}  # fmt: skip
"""The settings of each kind of stream, and what they hold; all may be made one task (``joint``), and cut into chunks
(``online``)."""

_WORDS = {
    "int": "a whole number",
    "seed": "a whole number or None",
    "number": "a number",
    "flag": "true or false",
    "name": "a name",
    "ints": "a list of whole numbers",
    "numbers": "a list of numbers",
    "names": "a list of names",
    "moments": "a list of numbers or dates",
    "groups": "a list of lists of names",
}
_EACH = {"ints": "int", "numbers": "number", "names": "name", "groups": "names", "moments": "moment"}
# What a setting needs beside it to mean anything.
_NEEDS = {
    "shot_seed": "shots", "imbalance_seed": "imbalance", "imbalance_order": "imbalance", "online_seed": "online",
    "boundary": "online",
}  # fmt: skip
# The names that settings have in a constructor, where another name would say the same twice.
_ARGUMENTS = {"deal_seed": "seed", "blur_seed": "seed"}


def make_stream(train: Source, test: Source | None, **settings: Any) -> Stream:
    """The stream that ``settings`` describe; ``Stream.settings`` of one made here makes it again.

    Parameters
    ----------
    kind : ``"class"`` (the default), :meth:`Stream.class_incremental`; ``"domain"``, :meth:`Stream.domain_incremental`;
        ``"mixed"``, :meth:`Stream.class_and_domain`; ``"data"``, :meth:`Stream.more_data`; ``"time"``,
        :meth:`Stream.by_time`; ``"blurry"``, :meth:`Stream.blurry`. These explain the settings; ``seed`` is called
        ``deal_seed`` and ``blur_seed`` here.
    joint : all tasks as one, :meth:`Stream.joint`.
    online, online_seed, boundary : with ``online=64``, :meth:`Stream.online` of it, with ``chunk``, ``seed`` and
        ``boundary``.

    Raises
    ------
    ConfigError
        A setting that does not exist, means nothing for this kind, or is of the wrong type.
    StreamError
        Settings that the data cannot be cut by.

    Examples
    --------
    >>> from evertune import open_data
    >>> train, test = open_data("digits")
    >>> stream = make_stream(train, test, kind="blurry", tasks=5, disjoint=0.4, online=100)
    >>> stream.description() == make_stream(train, test, **stream.settings).description()
    True
    """
    kind = settings.get("kind", "class")
    if kind not in KINDS:
        raise ConfigError(f"There is no stream of kind {kind!r}. {nearest(str(kind), KINDS)}")
    _check(kind, {name: value for name, value in settings.items() if name != "kind"})
    given = {
        _ARGUMENTS.get(name, name): value
        for name, value in settings.items()
        if name in KINDS[kind] and (value is not None or KINDS[kind][name] == "seed")
    }
    stream = _maker(kind)(train, test, **given)
    if settings.get("joint"):
        stream = stream.joint()
    if settings.get("online") is None:
        return stream
    how: dict[str, Any] = {"chunk": settings["online"]}
    if "online_seed" in settings:
        how["seed"] = settings["online_seed"]
    if settings.get("boundary") is not None:
        how["boundary"] = settings["boundary"]
    return Stream.online(stream, **how)


def default_settings(kind: str) -> dict[str, Any]:
    """What each setting of a kind is where nothing is said; for those of ``online``, once it is asked for."""
    made, cut = signature(_maker(kind)).parameters, signature(Stream.online).parameters
    later = {"joint": False, "online": None, "online_seed": cut["seed"].default, "boundary": cut["boundary"].default}
    return {name: made[_ARGUMENTS.get(name, name)].default for name in KINDS[kind]} | later


def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a stream's description, which a protocol keeps; its tasks tell a plain stream's order."""
    known = {"kind", *KINDS.get(description["kind"], {}), *_ANY} - {"tasks"}
    settings = {name: value for name, value in description.items() if name in known}
    if TASK_COUNT in description:
        settings["tasks"] = description[TASK_COUNT]
    if set(settings) <= PLAIN and settings.get("order_seed") is None:
        told: list[str] = (
            description["classes"] if settings["kind"] == "class" else [t["name"] for t in description["tasks"]]
        )
        settings["order"] = told
    return settings


def _maker(kind: str) -> Callable[..., Stream]:
    makers: dict[str, Callable[..., Stream]] = {
        "class": Stream.class_incremental,
        "domain": Stream.domain_incremental,
        "mixed": Stream.class_and_domain,
        "data": Stream.more_data,
        "time": Stream.by_time,
        "blurry": Stream.blurry,
    }
    return makers[kind]


def _check(kind: str, settings: Mapping[str, Any]) -> None:
    types = {**KINDS[kind], **_ANY}
    everywhere = {name for known in KINDS.values() for name in known} | set(_ANY)
    for name in settings:
        if name not in everywhere:
            raise ConfigError(f"A stream has no setting {name!r}. {nearest(name, {'kind', *types})}")
    settings = {name: value for name, value in settings.items() if value is not None}
    for name, value in settings.items():
        if name not in types:
            kinds = ", ".join(other for other, known in KINDS.items() if name in known)
            raise ConfigError(f"{name} means nothing for a stream of kind {kind!r}, only for {kinds}: leave it out.")
        if not _is(value, types[name]):
            raise ConfigError(f"{name} is {value!r}; it must be {_WORDS[types[name]]}.")
        needed = _NEEDS.get(name)
        if needed is not None and needed not in settings:
            raise ConfigError(f"{name} means nothing without {needed}: give both or neither.")
    if "order" in settings and settings.get("order_seed") is not None:
        raise ConfigError("order and order_seed both say in which order things arrive: give one of them.")
    if "groups" in settings and {"order", "order_seed"} & set(settings):
        raise ConfigError("groups say in which order classes arrive: leave order and order_seed out.")
    if "arrival_seed" in settings and settings.get("arrival") != "shuffled":
        raise ConfigError("arrival_seed means nothing without arrival='shuffled': give both or neither.")


def _is(value: Any, kind: str) -> bool:
    if kind in _EACH:
        each = _EACH[kind]
        return isinstance(value, list | tuple) and all(_is(one, each) for one in value)
    if isinstance(value, str):
        return kind in ("name", "moment")
    if kind == "flag":
        return isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind in ("number", "moment"):
        return whole or isinstance(value, float)
    return whole and kind in ("int", "seed")
