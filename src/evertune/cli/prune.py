"""``evertune prune``: remove old versions of a learner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import require_own
from evertune.cli.root import app
from evertune.cli.telling import numbers, size


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune rollback kept/ --list       which versions there are\n"
    "  evertune prune kept/ --keep 2        the current one, and one to go back to",
)
def prune(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A learner's folder.", show_default=False)],
    keep: Annotated[
        int,
        typer.Option(
            "--keep", metavar="N", min=1, help="How many of the newest versions stay; the current one always does.",
            show_default=False,
        ),
    ],
) -> None:  # fmt: skip
    """Remove old versions of a learner, and print the bytes that this frees.

    What is removed cannot be gone back to. The learner itself does not change.
    """
    with stoppable("Every version is there whole or not at all; the same command goes on."):
        from evertune.learner import LearnerFolder

        require_own(folder)
        home = LearnerFolder(folder)
        gone = home.prune(keep)
        stay = [version.number for version in home.versions()]
        if gone:
            freed = size(sum(version.bytes for version in gone))
            typer.echo(f"removed {numbers([version.number for version in gone])}: {freed} freed")
        else:
            typer.echo("there is nothing to remove")
        typer.echo(f"{folder} keeps {numbers(stay)}")
