"""What a folder that was named on the command line is: a learner's, a run's, or none."""

from __future__ import annotations

import os
from pathlib import Path

from evertune.errors import RunError, StorageError


def is_learner(folder: Path) -> bool:
    return (folder / "learner.json").is_file()


def learner_in(folder: Path) -> Path:
    """The folder of the learner in a run folder, or ``folder``, which may hold one itself."""
    return folder / "learner" if not is_learner(folder) and is_learner(folder / "learner") else folder


def require_run(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not is_learner(folder / "learner"):
        raise RunError(f"{folder} holds no run that has learned a task: name the folder that 'evertune run' wrote.")


def require_own(folder: Path) -> None:
    """StorageError or RunError unless ``folder`` holds a learner, current or one to go back to, that is no run's."""
    if not require_home(folder) and not any(folder.glob("learner-*.json")):
        raise StorageError(f"{folder} holds no learner: name the folder that 'evertune learn' was given.")


def require_home(folder: Path) -> bool:
    """Whether ``folder`` holds a learner; StorageError or RunError where one does not belong."""
    inside_run = is_learner(folder) and (folder.resolve().parent / "config.json").exists()
    if is_learner(folder) and not inside_run:
        return True
    if inside_run:
        raise RunError(
            f"{folder} is part of a run, whose numbers belong to it: copy it to a place of its own and go on there."
        )
    if is_learner(folder / "learner"):
        raise RunError(
            f"{folder} is a run folder, whose learner belongs to its numbers: copy {folder / 'learner'} to a place of "
            "its own and go on there."
        )
    if folder.exists() and (not folder.is_dir() or _others(folder)):
        raise StorageError(f"{folder} holds other files and no learner: name an empty or a new folder.")
    return False


def _others(folder: Path) -> bool:
    """Whether there is anything but what a learner's first lesson leaves that was stopped before its end."""
    begun = ("learner-", "state-", "update")
    return any(not name.startswith((".", *begun)) for name in os.listdir(folder))
