"""From a repository to a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evertune.errors import HubError, StorageError
from evertune.export.folders import beside, require_outside
from evertune.hub.client import explained, library
from evertune.hub.files import CARD, CURRENT, VERSIONED, WANTED, of_learner
from evertune.learner import LearnerFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LASTING = ("method", "options", "backbone", "seeds")
"""What a learner never changes."""
OF_FOLDER = ("version", "before", "saved", "state", "digest")
"""What belongs to the folder that holds it."""


def pull(
    repo: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    client: HfApi | None = None,
    force: bool = False,
) -> Path:
    """Fetch the learner of a repository into ``folder``, for :meth:`Learner.load`; gives the folder.

    It is downloaded beside the folder, validated, and takes its place whole. Where the folder holds an earlier state of
    the same learner, it becomes a new version there and the earlier ones stay.

    Parameters
    ----------
    revision
        A branch, tag or commit; the main branch by default.
    client
        As in :func:`push`.
    force
        Replace whatever learner the folder holds, with all its versions.

    Raises
    ------
    HubError
        The hub cannot be reached, there is no such repository or revision, or it holds no learner.
    StorageError
        What was fetched is damaged or no learner's, the folder holds another learner or other files, or cannot be
        written.
    """
    folder = Path(folder).resolve()  # where a link points to
    _require_place(folder)
    if force or not (folder / CURRENT).exists():
        require_outside(folder)
    client = client or library().HfApi()
    with beside(folder) as temporary:
        with explained(repo):
            client.snapshot_download(repo, revision=revision, local_dir=temporary, allow_patterns=WANTED)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own notes
        content, tensors = _validated(temporary, repo)
        here = LearnerFolder(folder)
        if force or not (folder / CURRENT).exists():
            _replace(folder, temporary)
        elif _later(here.content(), content, folder, repo):
            here.write(content, tensors)
    return folder


def _require_place(folder: Path) -> None:
    """Raise unless ``folder`` is new, empty or a learner's."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file: name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CURRENT).exists():
        raise StorageError(f"{folder} holds other files and no learner: name an empty or a new folder.")


def _validated(folder: Path, repo: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The learner that was fetched; StorageError if there is anything but plain files of one, all versions whole."""
    if not os.path.lexists(folder / CURRENT):
        raise HubError(f"{repo} holds no learner: there is no {CURRENT} in it.")
    for entry in os.scandir(folder):
        if not (of_learner(entry.name) or entry.name == CARD) or not entry.is_file(follow_symlinks=False):
            raise StorageError(f"{repo} holds {entry.name!r}, as no learner does: nothing was taken over.")
    fetched = LearnerFolder(folder)
    numbers = [int(match[1]) for match in map(VERSIONED.fullmatch, os.listdir(folder)) if match and match[1]]
    try:
        for number in numbers:
            fetched.read(number)
        return fetched.read()
    except StorageError as error:
        # The cause does not offer to roll back a folder that is gone in a moment.
        cause = error.__cause__ if isinstance(error.__cause__, StorageError) else error
        problem = str(cause).replace(f"{folder}{os.sep}", "")
        raise StorageError(f"{repo} holds a damaged learner; nothing was taken over. {problem}") from error


def _later(mine: dict[str, Any], fetched: dict[str, Any], folder: Path, repo: str) -> bool:
    """Whether what was fetched is another state of the learner in ``folder``; StorageError if it is no later one."""
    known, learned = mine["history"], fetched["history"]
    if any(mine[key] != fetched[key] for key in LASTING) or known[: len(learned)] != learned[: len(known)]:
        raise StorageError(
            f"{folder} holds another learner than {repo}, or one that has learned other tasks: name another folder, or "
            "lose the one there with force=True (--force)."
        )
    if len(known) > len(learned):
        raise StorageError(
            f"The learner in {folder} knows {len(known)} tasks, that in {repo} the first {len(learned)} of them: push "
            "it, or lose the one here with force=True (--force)."
        )
    bare = ({key: value for key, value in one.items() if key not in OF_FOLDER} for one in (mine, fetched))
    return next(bare) != next(bare) or mine["state"]["sha256"] != fetched["state"]["sha256"]


def _replace(folder: Path, temporary: Path) -> None:
    """Let ``temporary`` take the place of ``folder``; if that fails, what was there is there again."""
    if not folder.exists():
        os.replace(temporary, folder)
        return
    former = temporary.with_name("former")
    with LearnerFolder(folder).lock():
        os.replace(folder, former)
        try:
            os.replace(temporary, folder)
        except OSError:
            os.replace(former, folder)
            raise
