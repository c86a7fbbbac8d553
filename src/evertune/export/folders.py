"""A folder that comes into being whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from evertune.errors import StorageError


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new, empty folder in the same place as ``folder``, so that it can take its place; it goes at the end.

    Raises
    ------
    StorageError
        Nothing can be written there, or not all of it (a full disk).
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
            inside = Path(made) / "new"
            inside.mkdir()
            yield inside
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{folder} could not be written ({reason}); what was there before still is.") from error


def require_outside(folder: Path) -> None:
    """StorageError if ``folder``, which is to be replaced, is the one this process is in."""
    if folder.exists() and folder.samefile(os.curdir):
        raise StorageError(f"{folder} is the folder you are in, which cannot be replaced: go elsewhere and name it.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """As :func:`beside`; what was written there becomes ``folder``, which must be new or empty.

    Raises
    ------
    StorageError
        The folder holds something, or cannot be written.
    """
    folder = folder.resolve()  # where a link points to
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} holds something already: name a new or an empty folder.")
    require_outside(folder)
    with beside(folder) as temporary:
        yield temporary
        os.replace(temporary, folder)
