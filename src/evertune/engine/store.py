"""The files of a learner: JSON and safetensors, each replaced whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evertune.errors import StorageError, escaped

PART = ".part"
"""How the name of a file ends that is being written; it begins with a dot and the name the file will have."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what is there in the end is flushed to the disk and takes ``path``'s place.

    Raises
    ------
    StorageError
        The file could not be written whole (a full disk, a missing right); what was there before still is.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise StorageError(f"{path} is a device or a pipe, which cannot be replaced: name a file.")
    part = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} could not be written ({reason}); the former file, if any, is intact.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def flush_folder(folder: Path) -> None:
    """Names in ``folder`` outlive a power cut from here on."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, then take the place of ``path``.

    Raises
    ------
    StorageError
        The file could not be written whole (a full disk, a missing right); what was there before still is.
    """
    with replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises :class:`StorageError` if the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path} is missing: is {path.parent} the right folder?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}): restore it from a copy.") from error


def open_plain(path: Path) -> BufferedReader:
    """Open a file to read it; OSError if it is a link, a folder, or a pipe, which would be waited for."""
    if path.is_symlink():
        raise OSError(None, "it is a link")
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(None, "it is no plain file")
    return os.fdopen(handle, "rb")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, without a second copy in memory of what is on the CPU, and give its sha256."""
    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(_apart(tensors), part)
        part.chmod(mode)  # that of any new file; safetensors shuts out all other users, who may read the JSON
        sha256 = _sha256(part)
    return sha256


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory rather than read.

    Raises
    ------
    StorageError
        The file is missing, damaged, a link, or not the one that was written.
    """
    try:
        found = _sha256(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it from a copy.") from error
    if found != sha256:
        raise StorageError(f"{path} is not what was saved (its sha256 differs): restore it from a copy.")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path} is not a safetensors file ({escaped(str(error))}).") from error


def _sha256(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the format wants them: on the CPU, contiguous, and none in the memory of another."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found
