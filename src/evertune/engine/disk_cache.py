"""Features of the plain backbone on disk, so that every run over the same data shares one pass.

A folder holds *entries*, one for each way of computing features (:class:`~evertune.engine.conditions.Conditions`) of
one data set. An entry is a folder of its own: ``entry.json`` says what it is, and any number of *segments* hold rows of
the data set with their features. A segment is written once, whole or not at all, under the sha256 of its bytes. So
processes need no lock: what two write at once stands beside each other, and what was damaged does not fit its name.

This is no replay memory. To ask for a feature one must hold the source of the example, with every byte of it; a method
is handed the passes of its batch and nothing else; and whatever is missing is computed, so that a cache that is deleted
at any moment changes no result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from evertune.engine.entry import LABEL, Entry, Kept
from evertune.engine.shelf import Shelf, rooted
from evertune.errors import ConfigError, StorageError
from evertune.streams import Source
from evertune.streams.source import IntArray

FORMAT = 1
GIB = 1 << 30


class DiskCache:
    """The folder, bounded to ``limit`` bytes: beyond, the entries unused for longest go, as a whole.

    What this process is reading stays. A folder that cannot be written is only read, which is said once; no run fails
    because of it.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 10 * GIB) -> None:
        if limit < 1:
            raise ConfigError(f"The feature cache may hold {limit} bytes; give it at least 1.")
        self.folder = Path(folder).expanduser()
        self.limit = limit
        self.writable = True
        self._opened: dict[str, Entry] = {}
        self._shelves: WeakSet[Shelf] = WeakSet()

    def shelf(self, source: Source, conditions: Mapping[str, Any]) -> Shelf:
        """The features of ``source``, and of it alone. Reads its data set once, for the digest.

        Rows are known by their place in the data set that the source was cut from: a task of another class order, or of
        another run, finds them.
        """
        root, rows = rooted(source)
        key_of = {"format": FORMAT, "data": {"digest": root.digest, "size": len(root)}, **conditions}
        key = hashlib.sha256(json.dumps(key_of, sort_keys=True).encode()).hexdigest()
        described = {**key_of, "data": {"name": root.name, **key_of["data"]}}
        entry = self._opened.setdefault(key, Entry(self.folder / key, described, len(root)))
        entry.refresh()
        with suppress(OSError):
            os.utime(entry.folder / LABEL)  # what was used last goes last
        shelf = Shelf(self, entry, rows)
        self._shelves.add(shelf)
        return shelf

    def entries(self) -> list[Kept]:
        """What the folder holds, the entry unused for longest first."""
        found = []
        with suppress(OSError):
            found = [Kept.find(folder) for folder in self.folder.iterdir() if re.fullmatch("[0-9a-f]{64}", folder.name)]
        return sorted(filter(None, found), key=lambda kept: kept.used)

    def clear(self) -> int:
        """Remove all entries, nothing else; how many bytes that freed."""
        freed = sum(kept.bytes for kept in self.entries() if kept.remove())
        self._opened.clear()
        return freed

    def keep(self, entry: Entry, rows: IntArray, features: Tensor) -> None:
        """Write features [R, L] of ``rows`` [R] of the data set that are not there yet."""
        entry.refresh()
        rows, first = np.unique(rows, return_index=True)
        new = ~entry.holds(rows)
        if not self.writable or not new.any():
            return
        tensors = {"rows": torch.from_numpy(rows[new]), "features": features[torch.from_numpy(first[new])]}
        content = save(tensors, {"entry": entry.folder.name})
        try:
            self._make_room(len(content))
            entry.write(content)
        except StorageError as error:
            self.writable = False
            warnings.warn(f"The feature cache is only read from now on: {error}", stacklevel=2)

    def _make_room(self, needed: int) -> None:
        """Remove what was unused for longest until ``needed`` bytes more fit."""
        reading = {shelf.entry.folder for shelf in self._shelves}
        kept = self.entries()
        total = sum(entry.bytes for entry in kept) + needed
        for entry in kept:
            if total > self.limit and entry.folder not in reading and entry.remove():
                self._opened.pop(entry.folder.name, None)
                total -= entry.bytes
        if total > self.limit:
            raise StorageError(
                f"{self.folder} would hold more than its {self.limit / GIB:.3g} GiB, all of it in use; allow it more, "
                "or go without what does not fit."
            )
