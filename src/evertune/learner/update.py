"""A task being learned into a folder: kept there now and then, and gone on with after whatever stopped it.

``update.json`` names the newest checkpoint, ``update-<k>.safetensors`` (and one for each further process). The tensors
are written first, under a new number; then update.json is replaced; then the older tensors go. So there is a whole
checkpoint at any moment, or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import evertune
from evertune.engine import Checkpoint, Progress, Runtime, write_json, write_tensors
from evertune.engine.descent import part
from evertune.engine.progress import bits
from evertune.engine.store import flush_folder, read_tensors
from evertune.errors import EvertuneError, StorageError, TrainingError
from evertune.learner.folder import CURRENT, LearnerFolder
from evertune.streams import Task

if TYPE_CHECKING:
    from evertune.learner.learner import Learner
    from evertune.learner.update_format import Described

UPDATE = "update.json"
_FILES = re.compile(r"update-.*\.safetensors|\.update\b.*\.part")
SHOWN = 5
LONGEST_TOLD = 80


@contextmanager
def updating(
    learner: Learner,
    task: Task,
    before: Mapping[str, Any],
    folder: str | os.PathLike[str] | None,
    *,
    restart: bool = False,
    every: float | None = None,
) -> Iterator[Progress]:
    """The progress of learning ``task``, kept in ``folder``, which is locked meanwhile; ``before`` is the learner's
    state as the task arrives. Leaving it without an error, or with one of training, ends the update.

    Raises
    ------
    StorageError
        The folder is in use or cannot be written; what it holds of an update is damaged, or of another one.
    """
    runtime = learner.engine.runtime
    if folder is None:
        yield Progress(runtime)
        return
    home = LearnerFolder(folder)
    with ExitStack() as stack:
        runtime.together(lambda: stack.enter_context(home.lock()) if runtime.main else None)
        update = Update(home, learner, task, before)
        found = update.find(restart)
        try:
            yield Progress(runtime, update.write, before=before["state"], every=every, found=found)
        except TrainingError:  # it would only fail again
            update.drop()
            raise
        update.drop()


class Update:
    """The files of an update in progress."""

    def __init__(self, home: LearnerFolder, learner: Learner, task: Task, before: Mapping[str, Any]) -> None:
        self.home, self.learner, self.task, self.before = home, learner, task, before
        self.runtime: Runtime = learner.engine.runtime
        self.number = 0
        self._current = self._found()
        self._version: int | None = None if self._current is None else self._current["version"]

    def _found(self) -> dict[str, Any] | None:
        """What the folder says of the learner in it; None if there is none yet."""
        current, update = (os.path.lexists(self.home.path / name) for name in (CURRENT, UPDATE))
        if not current and (update or not self.home.versions()):
            return None  # a version without it is a first one, half saved: the update makes it again
        return self.home.content()

    # -- going on ----------------------------------------------------------------------------------------------------

    def find(self, restart: bool = False) -> Checkpoint | None:
        """Where the update stopped; None if there is none, or with ``restart``."""
        self.runtime.together(lambda: self._prepare(restart) if self.runtime.main else None)
        return self.runtime.together(self._read)

    def _prepare(self, restart: bool) -> None:
        """Leave in the folder only what can be gone on with."""
        self._require_ours()
        there = None if restart else self._described()
        if there is not None and there.version != self._version:  # finished, or overtaken
            if not self.learner.history or self.learner.history[-1]["task"] != there.of.task.name:
                warnings.warn(
                    f"The update of {self.home.path} with task {there.of.task.name!r} was not finished, and the "
                    "learner has changed since: what it had come to is given up.",
                    stacklevel=2,
                )
            there = None
        if there is not None and (differing := differences(there.of.model_dump(), self.of)):
            one = there.of.task
            raise StorageError(
                f"{self.home.path} holds an unfinished update with task {one.name!r} of {one.examples} examples, "
                f"and this is another one ({'; '.join(differing[:SHOWN])}). Learn that task as it was begun, and it "
                "goes on; or give it up: with restart=True, or --restart, this one is learned from its beginning."
            )
        if there is None:
            self.drop()
        else:
            self._tidy()

    def _require_ours(self) -> None:
        """The learner in the folder is this one, or this one as it was some tasks ago."""
        from evertune.learner.format import plain

        there = [] if self._current is None else self._current["history"]
        if plain({"history": self.learner.history})["history"][: len(there)] != there:
            raise StorageError(
                f"{self.home.path} holds a learner, version {self._version}, that has learned what this one has not, "
                "and would be replaced. Load that one and teach it the task; or save this one there first, which makes "
                "it the current version."
            )

    def _read(self) -> Checkpoint | None:
        """All processes share the first one's file; each has its own beside."""
        there = self._described()
        if there is None:
            return None
        self.number = there.number
        shared, own = (self._tensors(there, rank, kind) for rank, kind in ((0, "shared/"), (self.runtime.rank, "own/")))
        return Checkpoint(there.notes, shared, own)

    def _described(self) -> Described | None:
        from evertune.learner.update_format import read

        file = self.home.path / UPDATE
        if not os.path.lexists(file):
            return None
        try:
            return read(file)
        except StorageError as error:
            raise self._damaged(error) from error

    def _tensors(self, there: Described, rank: int, kind: str) -> dict[str, Tensor]:
        try:
            return part(kind, read_tensors(self._file(there.number, rank), there.files[rank].sha256))
        except StorageError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: StorageError) -> StorageError:
        known = "nothing else is" if self._version is None else f"the learner itself, version {self._version}, is not"
        told = str(error).removesuffix(": restore it from a copy.")
        return StorageError(
            f"The update in progress is damaged ({told}); {known}. Learn the task from its beginning: restart=True, or "
            "--restart."
        )

    @cached_property
    def of(self) -> dict[str, Any]:
        """What the update is of: all that decides where it ends. Reads the whole data set."""
        learner, task = self.learner, self.task
        of = {
            "task": {
                "name": task.name,
                "kind": task.kind,
                "examples": len(task.train),
                "classes": list(task.classes),
                "data": task.train.digest,
            },
            "learner": _digest(self.before),
            "known": list(learner.classes),
            "method": learner.method.name,
            "options": learner.method.config.as_dict(),
            "seeds": learner.seeds.as_dict(),
            "backbone": learner.backbone.identity.as_dict(),
            "views": {"train": learner.train_view.describe(), "test": learner.test_view.describe()},
            "runtime": self.runtime.describe(),
            "software": {"evertune": evertune.__version__, "torch": torch.__version__},
        }
        found: dict[str, Any] = json.loads(json.dumps(of))
        return found

    # -- keeping -----------------------------------------------------------------------------------------------------

    def write(self, checkpoint: Checkpoint) -> float | None:
        """Keep a checkpoint in place of the one before, and give the seconds; where that fails, warn, leave that one,
        and give None. That the first one reads the whole data set, for its digest, is not counted."""
        self.number += 1
        file, main = self._file(self.number, self.runtime.rank), self.runtime.main
        try:
            self.runtime.together(lambda: self.of if main else None)
            started = time.perf_counter()
            files = self.runtime.collect(self.runtime.together(partial(self._write_tensors, file, checkpoint)))
            self.runtime.together(lambda: self._describe(checkpoint, files) if main else None)
            return time.perf_counter() - started
        except EvertuneError as error:
            if main:
                warnings.warn(
                    f"The progress could not be kept, and learning goes on without: {error} If it is stopped now, it "
                    "goes on from further back.",
                    stacklevel=2,
                )
            return None
        finally:
            if main:
                self._tidy()

    def _write_tensors(self, file: Path, checkpoint: Checkpoint) -> dict[str, Any]:
        tensors = {f"own/{name}": value for name, value in checkpoint.own.items()}
        if self.runtime.main:
            tensors |= {f"shared/{name}": value for name, value in checkpoint.shared.items()}
        return {"sha256": write_tensors(file, tensors), "bytes": file.stat().st_size}

    def _describe(self, checkpoint: Checkpoint, files: list[dict[str, Any]]) -> None:
        from evertune.learner.format import seal

        described = {
            "format": 1,
            "number": self.number,
            "version": self._version,
            "of": self.of,
            "notes": asdict(checkpoint.notes),
            "files": files,
        }
        write_json(self.home.path / UPDATE, seal(described))

    def drop(self) -> None:
        """No update is in progress any more."""
        if self.runtime.main:
            _discard(self.home.path / UPDATE)
            with suppress(OSError):
                flush_folder(self.home.path)
            self._tidy()

    def _tidy(self) -> None:
        """Remove files of updates that update.json does not name: older ones, and what was left half written."""
        with suppress(StorageError):
            there = self._described()
            named = [] if there is None else [self._file(there.number, rank) for rank in range(len(there.files))]
            for name in os.listdir(self.home.path):
                if _FILES.fullmatch(name) and self.home.path / name not in named:
                    _discard(self.home.path / name)

    def _file(self, number: int, rank: int) -> Path:
        """A process's tensors of a checkpoint."""
        return self.home.path / (f"update-{number}-{rank}.safetensors" if rank else f"update-{number}.safetensors")


def differences(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> list[str]:
    """What two descriptions say otherwise, as in ``options.epochs: 2 there, 3 here``."""
    found = []
    for key in sorted(set(there) | set(here)):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {_short(a)} there, {_short(b)} here")
    return found


def _short(value: Any) -> str:
    told = str(value)
    return told if len(told) <= LONGEST_TOLD else f"{told[: LONGEST_TOLD - 1]}…"


def _digest(before: Mapping[str, Any]) -> str:
    """sha256 over the bits of a learner's state and of its generators."""
    total = hashlib.sha256()
    generators = {f"generator {i}": state for i, state in enumerate(before["random"])}
    for name, tensor in sorted((before["state"] | generators).items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(bits(tensor).cpu().numpy().data)
    return total.hexdigest()


def _discard(file: Path) -> None:
    """What stays in spite of this is removed when the next update begins."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
