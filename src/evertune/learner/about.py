"""What the files of a learner tell, without its backbone and without its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from evertune.errors import ConfigError, StorageError
from evertune.learner.folder import LearnerFolder
from evertune.learner.update import UPDATE
from evertune.methods import get_method


def about(folder: LearnerFolder, version: int | None = None) -> dict[str, Any]:
    """What learner.json says of the current version, or of another; all versions, and the folder's bytes.

    ``changed`` are the options that differ from the preset, those of the tuning as ``tuning.<name>``; ``unfinished`` is
    the task of an update in progress, "" where that cannot be read, or None.

    Raises
    ------
    StorageError
        As :meth:`LearnerFolder.content`.
    """
    content = folder.content(version)
    return {
        "folder": str(folder.path),
        **{key: value for key, value in content.items() if key not in ("digest", "state", "before")},
        "changed": _changed(content["method"], content["preset"], content["options"]),
        "versions": [asdict(kept) for kept in folder.versions()],
        "bytes": _size(folder),
        "unfinished": _unfinished(folder),
    }


def _changed(method: str, preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not the preset's; all of them where method or preset are not known here."""
    given = _flat(options)
    with suppress(ConfigError):
        usual = _flat(get_method(method).config_type.make(preset).as_dict())
        return {name: value for name, value in given.items() if name not in usual or usual[name] != value}
    return given


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in options.items() if name != "tuning_options"}
    return plain | {f"tuning.{name}": value for name, value in options.get("tuning_options", {}).items()}


def _unfinished(folder: LearnerFolder) -> str | None:
    from evertune.learner.update_format import read

    file = folder.path / UPDATE
    if not file.exists():
        return None
    with suppress(StorageError):
        there = read(file)
        return there.of.task.name if there.version == folder.content()["version"] else None  # None: it was finished
    return ""


def _size(folder: LearnerFolder) -> int:
    total = 0
    for path in folder.path.iterdir():
        with suppress(OSError):  # it may go while we look
            total += path.lstat().st_size
    return total
