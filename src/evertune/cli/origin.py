"""Where the data of a run came from, kept in its folder so that later commands find it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evertune.errors import RunError

if TYPE_CHECKING:
    from evertune.streams import Source

FILE = "data.json"


def keep_origin(
    folder: Path, data: str, *, skip_bad: bool = False, domain_level: bool = False, root: Path | None = None
) -> None:
    """Note once what ``evertune run`` was given; paths from the root, for later commands may start elsewhere."""
    from evertune.engine import write_json
    from evertune.streams import NAMES

    path = Path(data).expanduser()
    named = data.lower().replace("-", "_") in NAMES or not path.exists()
    if not (folder / FILE).exists():
        origin = {
            "data": data if named else str(path.resolve()),
            "skip_bad": skip_bad,
            "domain_level": domain_level,
            "root": None if root is None else str(root.expanduser().resolve()),
        }
        write_json(folder / FILE, origin)


def open_origin(folder: Path, data: str | None, root: Path | None) -> tuple[Source, Source]:
    """Train and test examples of the run in ``folder``, opened as then; ``data`` where they are elsewhere now.

    Raises
    ------
    RunError
        Nothing says where the data is.
    """
    from evertune import open_data
    from evertune.engine import read_json

    kept = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    if data is None and "data" not in kept:
        raise RunError(f"{folder} does not say where its data is: name it by --data, as it was for 'evertune run'.")
    return open_data(
        data or kept["data"],
        skip_bad=kept.get("skip_bad", False),
        domain_level=kept.get("domain_level", False),
        root=root or kept.get("root"),
    )
