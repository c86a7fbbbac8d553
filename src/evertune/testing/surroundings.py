"""What surrounds a learner and is not its own: the state of the process, and the disk."""

from __future__ import annotations

import copy
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

Reading = Callable[[], Any]
Setting = Callable[[Any], object]


def _random_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return (name, tuple(np.asarray(keys).tolist()), *rest)


def _environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def _interrupt(handler: Any) -> None:
    with suppress(ValueError):  # another thread than the main one
        signal.signal(signal.SIGINT, handler)


def _logging() -> tuple[Any, ...]:
    return logging.root.level, tuple(logging.root.handlers), logging.root.disabled


def _set_logging(values: tuple[Any, ...]) -> None:
    logging.root.level, logging.root.handlers, logging.root.disabled = values[0], list(values[1]), values[2]


def _cudnn(values: tuple[Any, ...]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = values


GLOBALS: dict[str, tuple[Reading, Setting]] = {
    "torch's random state": (lambda: torch.get_rng_state().numpy().tobytes(), lambda v: torch.set_rng_state(_bytes(v))),
    "numpy's random state": (_random_state, lambda v: np.random.set_state(v)),
    "random's state": (random.getstate, random.setstate),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    ),
    "torch's precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "torch's anomaly detection": (torch.is_anomaly_enabled, lambda v: torch.autograd.set_detect_anomaly(v)),
    "cudnn's flags": (
        lambda: (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        _cudnn,
    ),
    "numpy's error handling": (np.geterr, lambda v: np.seterr(**v)),
    "Pillow's largest image": (lambda: Image.MAX_IMAGE_PIXELS, lambda v: setattr(Image, "MAX_IMAGE_PIXELS", v)),
    "the warnings filters": (lambda: list(warnings.filters), lambda v: setattr(warnings, "filters", list(v))),
    "the root logger": (_logging, _set_logging),
    "the working directory": (os.getcwd, os.chdir),
    "the environment": (lambda: dict(os.environ), _environment),
    "the import path": (lambda: list(sys.path), lambda v: sys.path.__setitem__(slice(None), v)),
    "the interrupt handler": (lambda: signal.getsignal(signal.SIGINT), _interrupt),
}
"""What all code of a process shares: by name, how it is read and how it is set back."""


def _bytes(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


@contextmanager
def globals_kept(changed: list[str]) -> Iterator[None]:
    """Puts in ``changed`` the names of the :data:`GLOBALS` that are others afterwards, and sets them back."""
    before = {name: copy.copy(read()) for name, (read, _) in GLOBALS.items()}
    try:
        yield
    finally:
        for name, (read, write) in GLOBALS.items():
            if read() != before[name]:
                changed.append(name)
                write(before[name])


# -- the disk ----------------------------------------------------------------------------------------------------------

WRITERS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
"""Audit events whose first argument names what is written; their last is a folder they are relative to, or −1."""

LEAVES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"}
"""Audit events of code that leaves the process."""

_lock = threading.Lock()
_seen: list[str] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode or "") & set("wxa+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes:
            _note(path)
    elif event in WRITERS and not (event in ("os.remove", "os.rmdir") and arguments[-1] != -1):
        for path in arguments[:2] if event == "os.rename" else arguments[:1]:
            _note(path)
    elif event in LEAVES and _seen is not None:
        _seen.append(f"{event}{arguments[:2]}")


def _note(path: Any) -> None:
    if isinstance(path, str | bytes | os.PathLike) and _seen is not None:
        _seen.append(os.path.abspath(os.fsdecode(path)))


@contextmanager
def writes_seen(outside: list[str], *allowed: Path) -> Iterator[None]:
    """Puts in ``outside`` every path that is written elsewhere than in the folders ``allowed``, and what else leaves.

    Python's own audit events tell of it. Libraries that open files by themselves do not raise them, so the working
    directory and the folder of temporary files are empty ones of our own meanwhile, and are looked through afterwards.
    """
    global _seen, _hooked
    with _lock:
        if not _hooked:
            sys.addaudithook(_hook)  # there is no way to take it out again; it rests while nobody watches
            _hooked = True
    made = [Path(tempfile.mkdtemp(prefix="evertune-")).resolve() for _ in range(2)]
    home, temporary = os.getcwd(), tempfile.tempdir
    os.chdir(made[0])
    tempfile.tempdir = str(made[1])
    seen: list[str] = []
    _seen = seen
    try:
        yield
    finally:
        _seen = None
        os.chdir(home)
        tempfile.tempdir = temporary
        seen += [str(path) for folder in made for path in folder.rglob("*")]
        roots = [os.path.abspath(folder) for folder in allowed] + [str(folder.resolve()) for folder in allowed]
        outside += sorted({path for path in seen if not _harmless(path, roots)})
        for folder in made:
            remove(folder)


def _harmless(path: str, roots: list[str]) -> bool:
    """In a folder that is allowed, nowhere at all, or Python's own memory of a module it compiled."""
    inside = any(path == root or path.startswith(root + os.sep) for root in roots)
    return inside or path == os.devnull or f"{os.sep}__pycache__" in path


def remove(folder: Path) -> None:
    """Remove a folder of our own; nobody watches that."""
    global _seen
    seen, _seen = _seen, None
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _seen = seen


@contextmanager
def unsynced() -> Iterator[None]:
    """Files are not waited for to reach the disk: no power is cut here, and it takes most of the time of small ones."""
    fsync = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = fsync
