"""``evertune metrics``: a run's matrix, and what other code bases would have printed for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command
from evertune.cli.root import app
from evertune.errors import RunError

if TYPE_CHECKING:
    from evertune import AccuracyMatrix


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune metrics runs/demo\n"
    "  evertune metrics runs/demo --convention pilot --convention ranpac\n"
    "  evertune metrics runs/demo --part slow --json > numbers.json",
)
def metrics(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    convention: Annotated[
        list[str] | None,
        typer.Option(
            "--convention", "-c", metavar="NAME", help="Only this one, with its formulas. May be given many times.",
            show_default="all, without formulas", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", metavar="PART", help="Of which part of the method: slow, fast, router ...",
            show_default="its answer", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    baseline: Annotated[
        float | None,
        typer.Option(
            "--baseline", metavar="PERCENT", help="Accuracy before anything is learned, for forward transfer: chance, "
            "or 0.", show_default="unknown, no forward transfer", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Counts, numbers and formulas for programs instead of tables.", rich_help_panel=o.OUTPUT
        ),
    ] = False,
) -> None:  # fmt: skip
    """Print a run's numbers as other code bases would have.

    One matrix of right answers, and under each name what that code base or paper computes from it: they differ in how
    tasks are weighed, when they round, and in what they call forgetting. docs/metrics.md explains every formula.
    """
    from evertune.evaluation import summary, what_would_print
    from evertune.report import conventions_table, formulas_text, matrix_table

    matrix, new_classes = _kept(folder)
    printed = what_would_print(matrix, part, conventions=convention or None, new_classes=new_classes, baseline=baseline)
    if as_json:
        told = {
            "part": part or matrix.primary,
            "matrix": json.loads(matrix.to_json()),
            "summary": summary(matrix),
            "conventions": printed,
        }
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{matrix_table(matrix, part)}\n\nwhat would have been printed:\n{conventions_table(printed)}")
    typer.echo(f"\n{formulas_text(printed) if convention else 'formulas: --convention NAME'}")


def _kept(folder: Path) -> tuple[AccuracyMatrix, bool]:
    """The matrix of the run, and whether each of its tasks brought new classes."""
    from evertune.evaluation import AccuracyMatrix, Protocol

    texts = []
    for name in ("matrix.json", "protocol.json"):
        try:
            texts.append((folder / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"{folder} holds no measured run ({name}: {error.strerror}): name the folder that 'evertune run' wrote."
            ) from error
    matrix, stream = AccuracyMatrix.from_json(texts[0]), Protocol.from_json(texts[1])["stream"]
    return matrix, stream.get("kind") == "class"
