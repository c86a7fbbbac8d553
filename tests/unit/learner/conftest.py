"""A learner's folder, and changes to it by someone who knows its digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evertune.learner.format import seal

Change = Callable[[dict[str, Any]], Any]
Forge = Callable[..., None]


@pytest.fixture(scope="session")
def forge() -> Forge:
    """``forge(folder, change, state)`` changes what learner.json says, or the bytes of its state file, and makes all
    digests right again."""

    def forged(folder: Path, change: Change | None = None, state: bytes | None = None) -> None:
        content = json.loads((folder / "learner.json").read_text())
        if state is not None:
            (folder / content["state"]["file"]).write_bytes(state)
            content["state"] |= {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}
        if change is not None:
            changed = change(content)
            content = content if changed is None else changed
        (folder / "learner.json").write_text(json.dumps(seal(content)))

    return forged


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, tuple[bytes, int]]]:
    """Gives content and time of change of every file below a folder."""

    def taken(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return taken
