"""The ``evertune`` command itself, on which every command file registers its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from evertune import __version__
from evertune.cli.commands import Group
from evertune.cli.memory import collect_rarely, end, keep_freed_memory

app = typer.Typer(
    name="evertune",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """The ``evertune`` command."""
    # Threads that spin while they wait cost several times the work beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    collect_rarely()
    try:
        app(prog_name="evertune")
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            end(leaving.code or 0)
        raise


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"evertune {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nStart here:\n  evertune demo                               a minute, no download\n"
    "  evertune run --data digits --no-flip\n  evertune methods safe\n  evertune run --help"
)
def evertune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Frozen pre-trained transformers that keep learning.

    A frozen backbone turns an image into a feature; a small tuning steers it; statistics are kept instead of data.
    Tasks are learned one after the other, without the data of those before.
    """
