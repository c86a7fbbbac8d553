"""The files of a learner: JSON and safetensors, each replaced whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from evertune.errors import StorageError


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, then take the place of ``path``.

    Raises
    ------
    StorageError
        The file could not be written whole (a full disk, a missing right); what was there before still is.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise StorageError(
            f"{path} could not be written ({error.strerror or error}); the former file, if any, is intact."
        ) from error


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises :class:`StorageError` if the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path} is missing: is {path.parent} the right folder?") from error
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} is damaged ({error}): restore it from a copy.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file and give its sha256."""
    content = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Raises :class:`StorageError` if the file is missing, damaged, or not the one that was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it from a copy.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(f"{path} is not what was saved (its sha256 differs): restore it from a copy.")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise StorageError(f"{path} is not a safetensors file ({error}).") from error
