"""How an exported file comes into being: whole, checked, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evertune.errors import StorageError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Gives a path of the same name in a new folder beside ``file``; what was written there takes its place at the end.

    After an error inside nothing is left, and a former file is intact.

    Raises
    ------
    StorageError
        The folder cannot be written, or the disk is full.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as made:
            yield Path(made) / file.name
            # What the file refers to, weights that did not fit into it, comes first.
            for part in sorted(Path(made).iterdir(), key=lambda path: path.name == file.name):
                with part.open("rb") as content:
                    os.fsync(content.fileno())
                os.replace(part, file.parent / part.name)
    except OSError as error:
        raise StorageError(
            f"{file} could not be written ({error.strerror or error}); a former file of this name is intact."
        ) from error
