"""All commands together; each parses, calls the library and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evertune.cli import (  # noqa: F401  # importing a command registers it
    bench,
    cache,
    calibrate,
    compare,
    data,
    diagnose,
    evaluate,
    export,
    forget,
    hub,
    info,
    learn,
    metrics,
    predict,
    protocol,
    prune,
    rollback,
    run,
)
from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.root import app, main

__all__ = ["app", "main"]


@app.command(
    cls=Command,
    epilog="\b\nExample:\n  evertune demo --out runs/demo\n\nThe same run by hand:\n\n\b\n"
    "  evertune run --data digits --first 2 --increment 2 --order-seed none --crop-scale 0.6 1.0 --no-flip \\\n"
    "      --set lambda_cos=24 --set epochs=5 --set follow_epochs=2 --set follow_horizon=2 --out runs/digits",
)
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Run folder. An earlier demo in it is replaced, nothing else is.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = Path("runs/demo"),
    device: o.Device = "auto",
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Watch SAFE learn the ten digits, two at a time.

    Everything is on board: scikit-learn's handwritten digits and the embedded backbone. After each task the accuracy
    over all digits seen so far is printed (of the mixture, and of the slow and fast learner alone); at the end the
    accuracy matrix, with the nearest mean of the frozen features as floor and a ridge on all data at once as reference.
    """
    with stoppable("Nothing to tidy up: the next demo starts afresh."):
        from evertune.cli.demo import run_demo

        run_demo(out, typer.echo, device=device, progress=not quiet)


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune methods\n  evertune methods safe\n  evertune methods ranpac | less",
)
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.", show_default=False)] = None,
) -> None:
    """List the methods, or explain one with all its options.

    With NAME: every option, the value it has and what it does; the presets, and the tunings with their own options.
    """
    from evertune.cli.explain import explain_method, list_methods

    typer.echo(list_methods() if name is None else explain_method(name))
