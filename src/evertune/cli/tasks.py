"""Tasks that are data of their own: folders, one for each, as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Stream, Task
    from evertune.streams import Kind

KINDS = ("class", "domain", "mixed")


def task_of(data: str, kind: str, reading: Mapping[str, Any]) -> Task:
    """All of ``data`` as one task, read with options of :func:`evertune.open_data`."""
    from evertune import Task

    return Task.from_folder(data, kind=_kind(kind), **reading)


def tasks_of(folders: Sequence[str], kind: str | None, reading: Mapping[str, Any]) -> Stream:
    """The stream of ``evertune run --task ... --task ...``."""
    from evertune import Stream

    return Stream.of(*folders, kind=_kind(kind or "mixed"), **reading)


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ConfigError(f"--kind {name} does not exist for a task. {nearest(name, KINDS)}")
    return cast("Kind", name)
