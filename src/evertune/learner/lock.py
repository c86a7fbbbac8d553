"""One process at a time changes a learner's folder; the others are told which."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from evertune.engine.store import open_plain
from evertune.errors import StorageError

LOCK = ".lock"
"""Held as long as its process lives (flock); what it says is for messages only."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """See :meth:`evertune.learner.LearnerFolder.lock`."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.resolve() / LOCK
        lock = FileLock(file, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"{folder} is being changed by another process{_holder(file)}: wait until it is done, or stop it."
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"{folder} cannot be written ({reason}), so nothing can be changed in it; reading needs no right to."
        ) from error
    try:
        _sign(file)
        yield
    finally:
        lock.release()


def _sign(file: Path) -> None:
    with suppress(OSError):
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write_text(json.dumps({"process": os.getpid(), "since": since}))


def _holder(file: Path) -> str:
    """Who says to hold the lock, as part of a message."""
    try:
        with open_plain(file) as opened:
            said = json.loads(opened.read(1000))
        return f" (process {int(said['process'])}, since {datetime.fromisoformat(said['since']):%Y-%m-%d %H:%M:%S} UTC)"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
