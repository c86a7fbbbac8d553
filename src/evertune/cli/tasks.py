"""Tasks that are data of their own: folders, one for each, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Stream, Task

KINDS = ("class", "domain", "mixed")


def task_of(
    data: str, kind: str, *, skip_bad: bool = False, data_root: Path | None = None, download: bool = False
) -> Task:
    """All of ``data`` as one task."""
    from evertune import Task, open_data

    if kind not in KINDS:
        raise ConfigError(f"--kind {kind} does not exist for a task. {nearest(kind, KINDS)}")
    path = Path(data).expanduser()
    if path.is_dir() or path.suffix.lower() == ".zip":
        return Task.from_folder(path, kind=kind, skip_bad=skip_bad)  # type: ignore[arg-type]
    train, test = open_data(data, skip_bad=skip_bad, root=data_root, download=download)
    return Task(0, path.stem, train, test if len(test) else None, kind=kind)  # type: ignore[arg-type]


def tasks_of(folders: Sequence[str], kind: str | None, *, skip_bad: bool = False) -> Stream:
    """The stream of ``evertune run --task ... --task ...``."""
    from evertune import Stream

    kind = kind or "mixed"
    tasks = [task_of(folder, kind, skip_bad=skip_bad) for folder in folders]
    return Stream.of(*tasks, kind=kind)  # type: ignore[arg-type]
