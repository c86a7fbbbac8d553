"""One entry of the feature cache: features of one data set, computed in one way, in a folder of its own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evertune.engine.store import read_json, write_atomic, write_json
from evertune.errors import StorageError
from evertune.streams.source import IntArray

LABEL = "entry.json"


class Entry:
    """Features of one data set of ``size`` rows, computed in one way."""

    def __init__(self, folder: Path, described: Mapping[str, Any], size: int) -> None:
        self.folder, self.described = folder, described
        self._segment = np.full(size, -1, np.int32)  # which one holds a row, or −1
        self._place = np.zeros(size, np.int32)  # and where in it
        self._features: list[Tensor] = []
        self._seen: set[str] = set()

    def holds(self, rows: IntArray) -> np.ndarray:
        """Whether the features are known, bool [R]."""
        return np.asarray(self._segment[rows] >= 0)

    def read(self, rows: IntArray) -> Tensor:
        """Features [R, L] of rows that are known."""
        segments, places = self._segment[rows], torch.from_numpy(self._place[rows].astype(np.int64))
        features = torch.empty(len(rows), self._features[segments[0]].shape[1])
        for segment in np.unique(segments):
            here = torch.from_numpy(segments == segment)
            features[here] = self._features[segment][places[here]]
        return features

    def refresh(self) -> None:
        """Take in what was written since, here or by others."""
        for file in _segments(self.folder):
            if file.name not in self._seen:
                self._seen.add(file.name)
                with suppress(OSError):  # removed by another process, or not ours to read
                    self._take_in(file)

    def _take_in(self, file: Path) -> None:
        try:
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.stem:
                    raise ValueError("its sha256 differs")
            with safe_open(file, "pt") as opened:  # mapped, not read: features stay on disk until asked for
                if (opened.metadata() or {}).get("entry") != self.folder.name:
                    raise ValueError("it belongs to other features")
                rows, features = opened.get_tensor("rows").numpy(), opened.get_tensor("features")
            if features.dtype != torch.float32 or features.shape[:-1] != rows.shape:
                raise ValueError("its tensors do not fit each other")
            self._segment[rows], self._place[rows] = len(self._features), np.arange(len(features))
            self._features.append(features)
        except (ValueError, IndexError, SafetensorError) as error:
            with suppress(OSError):
                file.unlink()
            warnings.warn(f"{file} was damaged ({error}); its features are computed again.", stacklevel=2)

    def write(self, content: bytes) -> None:
        """Add a segment.

        Raises
        ------
        StorageError
            It could not be written whole.
        """
        file = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        for attempt in range(2):
            try:
                if not _label(self.folder):
                    write_json(self.folder / LABEL, self.described)
                write_atomic(file, content)
                break
            except StorageError as error:  # another process may remove the folder between two steps
                if attempt or not isinstance(error.__cause__, FileNotFoundError):
                    raise
        self.refresh()


@dataclass(frozen=True)
class Kept:
    """An entry as it lies on disk: what it says it is, and when it was ``used`` last (seconds since 1970)."""

    folder: Path
    described: Mapping[str, Any]
    bytes: int
    used: float

    @classmethod
    def find(cls, folder: Path) -> Kept | None:
        """The entry in ``folder``; None if that is no entry, or is removed by another process this moment."""
        described = _label(folder)
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            return cls(folder, described, size, (folder / LABEL).stat().st_mtime) if described else None
        except OSError:
            return None

    @property
    def rows(self) -> int:
        """Rows of the data set whose features are here."""
        held: set[int] = set()
        for file in _segments(self.folder):
            with suppress(OSError, SafetensorError), safe_open(file, "np") as opened:
                held.update(opened.get_tensor("rows").tolist())
        return len(held)

    def remove(self) -> bool:
        """Whether it is gone; what another process has open it can go on reading. Only files of ours are touched."""
        try:
            for file in (*_segments(self.folder), *self.folder.glob(".*.part"), self.folder / LABEL):
                file.unlink(missing_ok=True)
            self.folder.rmdir()
        except FileNotFoundError:
            return True  # another process was faster
        except OSError:  # no right to, something else is in there, or another process adds to it at this moment
            return False
        return True


def _label(folder: Path) -> dict[str, Any]:
    """What an entry says it is; nothing if there is none, or it is damaged."""
    try:
        described = read_json(folder / LABEL)
    except StorageError:
        return {}
    return described if isinstance(described, dict) and "format" in described else {}


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
