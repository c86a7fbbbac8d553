"""``evertune rollback``: go back to an earlier version of a learner."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import require_own
from evertune.cli.root import app
from evertune.cli.telling import count, knows, size

if TYPE_CHECKING:
    from evertune.learner import Version


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune rollback kept/              undo the last update\n"
    "  evertune rollback kept/ --list       which versions there are\n  evertune rollback kept/ --to 3",
)
def rollback(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A learner's folder.", show_default=False)],
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="N", min=0, help="The version to go to.", show_default="the one before"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the versions that are kept; change nothing.")] = False,
) -> None:
    """Go back to an earlier version of a learner.

    Every update made a version. The learner is then what it was, to the last bit, and learns on from there. The newer
    versions stay, so that --to goes to one of them again, until 'evertune prune' removes them; an update that was not
    finished is given up.
    """
    again = f"evertune rollback {shlex.quote(str(folder))}"
    with stoppable(f"'{again} --list' shows which version is the current one."):
        from evertune.learner import LearnerFolder

        require_own(folder)
        home = LearnerFolder(folder)
        before = home.versions()
        if list_:
            for line in table(before):
                typer.echo(line)
            return
        now = home.rollback(to)
        left = next((version.number for version in before if version.current), now.number)
        typer.echo(f"{folder} is version {now.number} now, saved {now.saved}, with {count(now.tasks, 'task')} learned")
        typer.echo(f"it {knows(home.content()['classes'])}")
        if left != now.number:
            typer.echo(f"version {left} stays until it is pruned; to go there again: {again} --to {left}")


def table(versions: list[Version]) -> list[str]:
    """A line for each version under a line of headings, the current one marked."""
    rows = [("", "version", "saved", "tasks", "classes", "size", "learned last")]
    for one in versions:
        numbers = (str(one.number), one.saved, str(one.tasks), str(one.classes), size(one.bytes))
        rows.append(("*" if one.current else "", *numbers, one.task or "nothing yet"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(cell.ljust(w) if i in (0, last) else cell.rjust(w) for i, (cell, w) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
