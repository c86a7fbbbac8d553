"""Where the data of a run came from, kept in its folder so that later commands find it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evertune.errors import RunError

if TYPE_CHECKING:
    from evertune import Stream
    from evertune.streams import Source

FILE = "data.json"


def keep_origin(folder: Path, data: str, reading: Mapping[str, Any] | None = None) -> None:
    """Note once what ``evertune run`` was given and how it was read (options of :func:`evertune.open_data`).

    Paths are noted from the root, for later commands may start elsewhere.
    """
    from evertune.engine import write_json

    if not (folder / FILE).exists():
        write_json(folder / FILE, {"data": _from_root(data), **_kept(reading or {})})


def _kept(reading: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(reading)
    for name in ("test", "manifest"):
        if options.get(name) is not None:
            options[name] = _from_root(str(options[name]))
    if options.get("root") is not None:
        options["root"] = str(Path(options["root"]).expanduser().resolve())
    return options


def _from_root(data: str) -> str:
    from evertune.streams import NAMES

    path = Path(data).expanduser()
    named = data.lower().replace("-", "_") in NAMES or not path.exists()
    return data if named else str(path.resolve())


def keep_tasks(folder: Path, tasks: Sequence[str], kind: str, reading: Mapping[str, Any]) -> None:
    """Note what ``evertune run --task`` was given; anew when tasks were added."""
    from evertune.engine import read_json, write_json

    origin = {"tasks": [_from_root(task) for task in tasks], "kind": kind, **_kept(reading)}
    file = folder / FILE
    if not file.exists() or read_json(file) != origin:
        write_json(file, origin)


def open_stream(folder: Path, data: str | None, root: Path | None) -> Stream:
    """The stream of the run in ``folder``, from its data or its tasks; ``data`` where it is elsewhere now.

    Raises
    ------
    RunError
        Nothing says where the data is, or it is not what the run learned from.
    """
    from evertune.cli.tasks import tasks_of
    from evertune.engine import read_json
    from evertune.runs import stream_of

    kept = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    if "tasks" not in kept:
        return stream_of(folder, *open_origin(folder, data, root))
    if data is not None:
        raise RunError(f"The tasks of {folder} are folders of their own: leave --data out.")
    reading = {name: value for name, value in kept.items() if name not in ("tasks", "kind")}
    stream = tasks_of(kept["tasks"], kept["kind"], reading)
    learned = read_json(folder / "protocol.json")["fields"]["stream"]
    stream = stream.joint() if learned.get("joint") else stream
    if stream.description()["tasks"] != learned["tasks"]:
        raise RunError(f"The folders of the tasks of {folder} have changed since the run learned from them.")
    return stream


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
    reading = {name: value for name, value in kept.items() if name != "data"}
    return open_data(data or kept["data"], **{**reading, "root": root or reading.get("root")})
