"""The folder of a learner: one file of tensors and one of JSON for every version, of which one is current.

``learner.json`` is a copy of the current version's ``learner-<n>.json`` and is replaced last, so whatever stops a
change leaves the former learner. A version is never written to again, and numbers only grow.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from evertune.engine.store import open_plain, read_tensors, write_atomic, write_tensors
from evertune.errors import ConfigError, StorageError
from evertune.learner.lock import locked

CURRENT = "learner.json"
_NUMBERED = re.compile(r"(?:learner-(0|[1-9][0-9]{0,8})\.json|state-(0|[1-9][0-9]{0,8})\.safetensors)")
_UPDATE = re.compile(r"update\.json|update-.+\.safetensors")
_PART = re.compile(r"\.(?:learner|state|update)\b.*\.part")
_OURS = ("format", "version", "before", "saved", "state", "digest")


@dataclass(frozen=True)
class Version:
    """A learner as it was saved once: after how many tasks, the last of them ``task``, and when (UTC)."""

    number: int
    tasks: int
    classes: int
    saved: str
    bytes: int
    current: bool
    task: str | None


class LearnerFolder:
    """The files of a learner in ``path``, which exists or is made when first written to.

    What changes the folder takes its :meth:`lock`; reading needs none.

    Examples
    --------
    >>> import tempfile
    >>> from evertune import Learner, LearnerFolder
    >>> folder = LearnerFolder(tempfile.mkdtemp())
    >>> Learner("simple_cil", progress=False).save(folder.path)
    >>> [(version.number, version.tasks) for version in folder.versions()]
    [(0, 0)]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    # -- one process at a time ---------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes and threads from changing the folder; within, it may be taken again.

        It ends with the process, however that ends.

        Raises
        ------
        StorageError
            At once, if another holds it, or the folder cannot be written.
        """
        with locked(self.path):
            yield

    # -- reading -----------------------------------------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """All versions whose description is whole, oldest first."""
        current = self._current()
        found = {}
        for number in self._numbers():
            with suppress(StorageError):
                found[number] = self._described(number)
        if current is not None:
            found.setdefault(current["version"], current)
        return [self._version(found[n], current) for n in sorted(found)]

    def content(self, version: int | None = None) -> dict[str, Any]:
        """What is said of the current version, or of another; its tensors are not looked at.

        Raises
        ------
        StorageError
            As :meth:`read`.
        """
        from evertune.learner.format import LaterFormat, read

        if version is not None:
            return self._described(version)
        try:
            return read(self.path / CURRENT)
        except LaterFormat:
            raise
        except StorageError as error:
            raise StorageError(f"{error}{self._offer()}") from error

    def read(self, version: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is said of the current version, or of another, and its tensors, all as they were written.

        Raises
        ------
        StorageError
            A file is missing, damaged, a link, or of a later format; names the newest version that is whole.
        """
        content = self.content(version)
        try:
            return content, self._tensors(content)
        except StorageError as error:
            again = self.content(version)
            if again == content:
                raise StorageError(f"{error}{self._offer()}") from error
        return again, self._tensors(again)  # another process had saved and pruned in between

    def _tensors(self, content: dict[str, Any]) -> dict[str, Tensor]:
        return read_tensors(self.path / content["state"]["file"], content["state"]["sha256"])

    def _described(self, number: int) -> dict[str, Any]:
        """What learner-<n>.json says, or learner.json where it is of that version and there is no other."""
        from evertune.learner.format import read

        file = self._file(number)
        current = None if os.path.lexists(file) else self._current()
        if current is not None and current["version"] == number:
            return current
        if number not in self._numbers():
            raise StorageError(f"{self.path} has no version {number!r}; {self._known()}.")
        content = read(file)
        if content["version"] != number:
            raise StorageError(f"{file} is of version {content['version']}: restore it from a copy.")
        return content

    def _current(self) -> dict[str, Any] | None:
        """What learner.json says, if it is whole."""
        from evertune.learner.format import read

        try:
            return read(self.path / CURRENT)
        except StorageError:
            return None

    def _version(self, content: dict[str, Any], current: dict[str, Any] | None) -> Version:
        number, history = content["version"], content["history"]
        size = 0
        for file in (self._file(number), self.path / content["state"]["file"]):
            with suppress(OSError):
                size += file.lstat().st_size
        return Version(
            number=number,
            tasks=len(history),
            classes=len(content["classes"]),
            saved=content["saved"],
            bytes=size,
            current=current is not None and current["version"] == number,
            task=history[-1]["task"] if history else None,
        )

    def _file(self, number: int) -> Path:
        return self.path / f"learner-{number}.json"

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except OSError:
            return []

    def _numbers(self, states: bool = False) -> list[int]:
        """The versions that have a description here, or those that have one or a file of tensors; ascending."""
        matches = filter(None, map(_NUMBERED.fullmatch, self._names()))
        return sorted({int(m[1] or m[2]) for m in matches if m[1] or states})

    def _whole(self, number: int) -> bool:
        try:
            self._tensors(self._described(number))
        except StorageError:
            return False
        return True

    def _require_learner(self) -> None:
        if CURRENT not in self._names() and not self._numbers():
            raise StorageError(f"{self.path} holds no learner: is it the right folder?")

    def _known(self) -> str:
        numbers = [version.number for version in self.versions()]
        return f"there are {', '.join(map(str, numbers))}" if numbers else "there is none"

    def _offer(self) -> str:
        """The end of a message about a version that cannot be read."""
        whole = next((n for n in reversed(self._numbers()) if self._whole(n)), None)
        if whole is None:
            return ""
        return (
            f" Version {whole} is whole: 'evertune rollback {shlex.quote(str(self.path))} --to {whole}', or "
            f"LearnerFolder({str(self.path)!r}).rollback({whole}), makes it the current one."
        )

    # -- changing ----------------------------------------------------------------------------------------------------

    def write(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor], *, keep: int | None = None) -> Version:
        """Save a learner as a new version, which becomes the current one; with ``keep``, :meth:`prune` afterwards.

        ``content`` is what learner.json shall say, but for what belongs to the folder: its number, time and digests.

        Raises
        ------
        StorageError
            The folder is locked or cannot be written, or the content is not what a learner's is. Then all is as before.
        """
        from evertune.learner.format import FORMAT, check, plain, seal, state_file

        _require_some(keep)
        with self.lock():
            current = self._adopt()
            before = None if current is None else current["version"]
            number = max([0 if content["history"] else -1, *self._numbers(states=True)]) + 1
            self._sweep(current)
            state: dict[str, Any] = {"file": state_file(number), "sha256": "0" * 64, "bytes": 0}
            said = {key: value for key, value in content.items() if key not in _OURS}
            saved = datetime.now(UTC).isoformat(timespec="seconds")
            said = plain({"format": FORMAT, "version": number, "before": before, "saved": saved, **said})
            check(seal({**said, "state": state}), self._file(number))
            file = self.path / state["file"]
            try:
                state["sha256"] = write_tensors(file, tensors)
                state["bytes"] = file.stat().st_size
                self._write(seal({**said, "state": state}))
            except BaseException:
                if not self._file(number).exists():
                    file.unlink(missing_ok=True)
                raise
            version = self._make_current(number)
            if keep is not None:
                self.prune(keep)
            return version

    def rollback(self, to: int | None = None) -> Version:
        """Make a version the current one again, by default the one that was current before this one was saved.

        Later versions stay, and learning on makes one with a number of its own. An update in progress is dropped.

        Raises
        ------
        StorageError
            There is no such version, it is damaged itself, or the folder is locked or cannot be written.
        """
        self._require_learner()
        with self.lock():
            if to is None:
                to = self._before()
            try:
                self._tensors(self._described(to))
            except StorageError as error:
                raise StorageError(f"{error}{self._offer() if to in self._numbers() else ''}") from error
            self._adopt()
            self._remove(name for name in self._names() if _UPDATE.fullmatch(name))
            return self._make_current(to)

    def prune(self, keep: int) -> list[Version]:
        """Remove all but the newest ``keep`` versions and the current one; those removed, oldest first.

        Raises
        ------
        StorageError
            learner.json is damaged, so the current version is not known, or the folder is locked or cannot be written.
        """
        _require_some(keep)
        self._require_learner()
        with self.lock():
            current = self.content()["version"]
            self._sweep(self._adopt())
            versions = {version.number: version for version in self.versions()}
            gone = [n for n in self._numbers()[:-keep] if n != current]
            for number in gone:  # described last: what is described is there
                self._remove([f"learner-{number}.json", f"state-{number}.safetensors"])
            return [versions[n] for n in gone if n in versions]

    def _before(self) -> int:
        """The version that was current before this one; the newest whole one if the current one is damaged."""
        current = self._current()
        numbers = self._numbers()
        if current is None:
            found = next((n for n in reversed(numbers) if self._whole(n)), None)
        elif current["before"] in numbers:
            found = current["before"]
        else:
            found = max((n for n in numbers if n < current["version"]), default=None)
        if found is None:
            raise StorageError(f"{self.path} has no version to go back to; {self._known()}.")
        return int(found)

    def _adopt(self) -> dict[str, Any] | None:
        """The current description; it gets a file of its own where it has none, as in a folder of format 1."""
        from evertune.learner.format import LaterFormat, read

        try:
            current = read(self.path / CURRENT)
        except LaterFormat:  # nothing here is ours to change
            raise
        except StorageError:
            return None
        if not os.path.lexists(self._file(current["version"])):
            self._write(current)
        return current

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(self._file(content["version"]), text.encode())

    def _make_current(self, number: int) -> Version:
        content = self._described(number)
        with open_plain(self._file(number)) as file:
            write_atomic(self.path / CURRENT, file.read())
        return self._version(content, content)

    def _sweep(self, current: dict[str, Any] | None) -> None:
        """Remove what a process left that was killed while it wrote: the lock is ours, so nobody writes now."""
        self._remove(name for name in self._names() if _PART.fullmatch(name))
        if current is not None:
            described = {f"state-{number}.safetensors" for number in self._numbers()}
            states = (name for name in self._names() if name.startswith("state-") and _NUMBERED.fullmatch(name))
            self._remove(name for name in states if name not in described)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{self.path / name} cannot be removed ({error.strerror}).") from error


def _require_some(keep: int | None) -> None:
    if keep is not None and keep < 1:
        raise ConfigError(f"keep={keep}: at least one version stays.")
