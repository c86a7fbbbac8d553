"""What a folder that was named on the command line is: a learner's, a run's, or none."""

from __future__ import annotations

from pathlib import Path

from evertune.errors import RunError, StorageError


def is_learner(folder: Path) -> bool:
    return (folder / "learner.json").is_file()


def require_run(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not is_learner(folder / "learner"):
        raise RunError(f"{folder} holds no run that has learned a task: name the folder that 'evertune run' wrote.")


def require_home(folder: Path) -> bool:
    """Whether ``folder`` holds a learner; StorageError or RunError where one does not belong."""
    inside_run = is_learner(folder) and (folder.resolve().parent / "config.json").exists()
    if is_learner(folder) and not inside_run:
        return True
    if inside_run:
        raise RunError(
            f"{folder} is part of a run, whose numbers belong to it: copy it to a place of its own and teach the copy."
        )
    if is_learner(folder / "learner"):
        raise RunError(
            f"{folder} is a run folder, whose learner belongs to its numbers: copy {folder / 'learner'} to a place of "
            "its own and teach the copy."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} holds other files and no learner: name an empty or a new folder.")
    return False
