"""Tasks that are data of their own: folders, one for each, as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Stream, Task
    from evertune.streams import Kind, Source

KINDS = ("class", "domain", "mixed")


def task_of(data: str, kind: str, reading: Mapping[str, Any]) -> Task:
    """All of ``data`` as one task, read with options of :func:`evertune.open_data`."""
    from evertune import Task

    return Task.from_folder(data, kind=kind_of(kind), **reading)


def examples_of(data: str, reading: Mapping[str, Any]) -> Source:
    """The test part of ``data``, or all of it where it is not divided, read with options of :func:`open_data`."""
    from evertune.streams.opening import open_task

    train, test = open_task(data, **reading)
    return train if test is None else test


def tasks_of(folders: Sequence[str], kind: str | None, reading: Mapping[str, Any]) -> Stream:
    """The stream of ``evertune run --task ... --task ...``."""
    from evertune import Stream

    return Stream.of(*folders, kind=kind_of(kind or "mixed"), **reading)


def kind_of(name: str) -> Kind:
    """A kind that was named, or ConfigError."""
    if name not in KINDS:
        raise ConfigError(f"--kind {name} does not exist for a task. {nearest(name, KINDS)}")
    return cast("Kind", name)
