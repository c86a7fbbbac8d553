"""``evertune cache``: what the feature cache of ``evertune run --cache`` holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli.commands import Command, stoppable
from evertune.cli.root import app
from evertune.errors import StorageError

if TYPE_CHECKING:
    from evertune.engine.entry import Kept

MIB = 1 << 20


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune run --data digits --cache features/\n  evertune cache --dir features/\n"
    "  evertune cache --dir features/ --clear",
)
def cache(
    folder: Annotated[
        Path,
        typer.Option("--dir", "-d", metavar="FOLDER", help="The folder given as --cache.", show_default=False),
    ],
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it, and nothing else in the folder.")] = False,
) -> None:  # fmt: skip
    """Show the features that a cache holds, or remove them.

    A line for each data set and way of seeing it: which data, the rows known of it, which backbone at which precision,
    the bytes, and how long it has been unused. What is removed is computed again when a run needs it.
    """
    with stoppable("What was removed is computed again when it is needed."):
        from evertune.engine import DiskCache

        if not folder.is_dir():
            raise StorageError(f"There is no folder {folder}: name the one given as --cache.")
        kept = DiskCache(folder)
        entries = kept.entries()
        for entry in entries:
            typer.echo(_line(entry))
        total = sum(entry.bytes for entry in entries)
        typer.echo(f"{folder} holds {len(entries)} entries, {total / MIB:.1f} MiB")
        if clear:
            typer.echo(f"removed {kept.clear() / MIB:.1f} MiB")


def _line(entry: Kept) -> str:
    """What one entry is, in the order of what one asks first."""
    unused = f"unused for {(time.time() - entry.used) / 86400:.1f} days"
    size = f"{entry.bytes / MIB:.1f} MiB"
    try:
        data, backbone = entry.described["data"], entry.described["backbone"]
        seen = f"{data['name']} {data['digest'][:8]}, {entry.rows} of {data['size']} rows"
        by = f"{backbone['name']} {backbone['weights'][:8]}, {entry.described['precision']}"
    except (KeyError, TypeError):  # a label that is damaged or of another release
        return f"{entry.folder.name[:8]}: {size}, {unused}"
    return f"{entry.folder.name[:8]}: {seen}; {by}; {size}, {unused}"
