"""``evertune info``: what a kept learner knows, and what of the data it keeps."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command
from evertune.cli.folders import learner_in
from evertune.cli.root import app
from evertune.cli.telling import size
from evertune.errors import ConfigError, nearest

FORMATS = ("table", "json")
NAMES = 8
"""Classes named without --classes."""
TASKS = 20
"""Tasks listed; of more, the first and the last."""


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune info kept/\n  evertune info kept/ --classes\n  evertune info kept/ --format json",
)
def info(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A learner's folder, or a run folder.", show_default=False)
    ],
    classes: Annotated[bool, typer.Option("--classes", help="Name all classes.", rich_help_panel=o.OUTPUT)] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMATS), help="Of what is printed.", rich_help_panel=o.OUTPUT)
    ] = "table",
) -> None:
    """Tell what a learner knows and what it keeps.

    Its method and options, the backbone it needs, its classes and tasks, the versions kept of it, and everything that
    is stored: how many bytes, and what of the data that is. No backbone is loaded.
    """
    from evertune.learner import LearnerFolder
    from evertune.learner.about import about

    if form not in FORMATS:
        raise ConfigError(f"--format {form} does not exist. {nearest(form, FORMATS)}")
    found = about(LearnerFolder(learner_in(folder)))
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if form == "json" else _told(found, classes))


def _told(found: dict[str, Any], every: bool) -> str:
    parts = [_heading(found), _tasks(found["history"]), _versions(found["versions"]), _stored(found["stored"])]
    if every:
        parts.append("\n".join(["classes", *(f"  {name}" for name in found["classes"])]))
    return "\n\n".join(filter(None, parts))


def _heading(found: dict[str, Any]) -> str:
    names, backbone = found["classes"], found["backbone"]
    changed = ", ".join(f"{name}={value}" for name, value in found["changed"].items())
    some = f": {', '.join(names[:NAMES])}{' …' if len(names) > NAMES else ''}" if names else ""
    lines = {
        "learner": f"{found['folder']}, version {found['version']}, saved {found['saved']}",
        "on disk": f"{size(found['bytes'])} with all versions",
        "method": f"{found['method']}, preset {found['preset']}{f' with {changed}' if changed else ''}",
        "backbone": f"{backbone['name']}, weights {backbone['weights'][:16]}, not stored here",
        "precision": found["precision"],
        "temperature": _temperature(found),
        "classes": f"{len(names)}{some}",
    }
    if found["unfinished"] is not None:
        lines["update"] = f"unfinished, with task {found['unfinished']!r}: learning it again goes on where it stopped"
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())


def _temperature(found: dict[str, Any]) -> str:
    from evertune.learner import Temperature

    kept = found.get("temperature")
    if kept is None:
        return "1, not calibrated"
    return Temperature(**kept).tell(len(found["history"])).removeprefix("temperature ")


def _tasks(history: Sequence[dict[str, Any]]) -> str:
    rows = [
        [str(number), entry["task"], entry["kind"], _classes(entry), str(entry["examples"]), str(entry.get("evertune"))]
        for number, entry in enumerate(history)
    ]
    if len(rows) > TASKS:
        rows = [*rows[: TASKS - 5], ["…", "", "", "", "", ""], *rows[-4:]]
    return _table(["task", "name", "kind", "classes", "examples", "evertune"], rows, right={4}) if rows else ""


def _classes(entry: dict[str, Any]) -> str:
    """Those of a task, in a few words."""
    names, new = entry["classes"], len(entry["new_classes"])
    some = f"{', '.join(names[:3])}{f' … ({len(names)})' if len(names) > 3 else ''}"
    return some if new == len(names) else f"{some}, {new} new"


def _versions(versions: Sequence[dict[str, Any]]) -> str:
    from evertune.cli.rollback import table
    from evertune.learner import Version

    return "\n".join(table([Version(**kept) for kept in versions]))


def _stored(stored: Sequence[dict[str, Any]]) -> str:
    """A line for each kind of thing, most bytes first; what is nothing of the data comes last."""
    if not stored:
        return "What is stored was not noted when this version was saved: load it and save it again."
    groups: dict[str, list[dict[str, Any]]] = {}
    for kept in stored:
        if kept["bytes"]:
            groups.setdefault(kept["of_data"], []).append(kept)
    total = {words: sum(kept["bytes"] for kept in group) for words, group in groups.items()}
    order = sorted(groups, key=lambda words: (words.startswith("nothing"), -total[words]))
    rows = [[words, size(total[words]), ", ".join(kept["name"] for kept in groups[words])] for words in order]
    names = ["names of classes and tasks, how many examples each task had", "", "learner.json"]
    return _table(["stored of the data", "size", "where"], [*rows, names], right={1})


def _table(header: list[str], rows: Sequence[list[str]], right: Collection[int]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(map(line, [header, *rows]))
