"""``evertune compare``: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, note
from evertune.cli.root import app
from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune.comparison import Comparison

FORMATS = ("table", "markdown", "csv", "json")
ROWS = "Rows"


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune compare runs/safe-* runs/ranpac-*\n"
    "  evertune compare runs/results/safe-evertune runs/results/ranpac-evertune --convention pilot\n"
    "  evertune compare runs/a runs/b --metric final_accuracy_task --format markdown\n"
    "  evertune compare runs/a runs/b --out comparison/",
)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders of these.", show_default=False)
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", "-m", metavar="NAME", help="A number by the name of its formula, such as final_accuracy_task "
            "or pilot.forgetting. May be given many times.", show_default="final and average accuracy over test "
            "examples, forgetting", rich_help_panel=ROWS,
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--convention", metavar="NAME", help="All that a paper's or peer's code would have printed, such as pilot, "
            "ranpac, hide-pet, mammoth or avalanche.", show_default=False, rich_help_panel=ROWS,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", metavar="NAME", help="A part of the methods, such as slow or fast.",
            show_default="each method's answer", rich_help_panel=ROWS,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by", metavar="method|run", help="method: runs with the same method, preset and options are one row. "
            "run: each is a row.", rich_help_panel=ROWS,
        ),
    ] = "method",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="ROW", help="The row that the others are compared with, by its name.",
            show_default="the first", rich_help_panel=ROWS,
        ),
    ] = None,
    level: Annotated[float, typer.Option("--level", metavar="SHARE", help="Of the intervals.", rich_help_panel=ROWS)]
    = 0.95,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different", help="Compare runs of unlike protocols too, and rows that have not the same class "
            "orders and seeds.", rich_help_panel=ROWS,
        ),
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", "-f", metavar="|".join(FORMATS), help="Of what is printed.",
        rich_help_panel=o.OUTPUT),
    ] = "table",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Write comparison.md, .csv, .json and .png there.",
            show_default=False, rich_help_panel=o.OUTPUT,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Put runs side by side.

    Runs that differ only in class order and seeds become one row: mean, and the 95 % interval over them. The other rows
    are compared with the first in pairs of the same class order and seeds. Runs that were measured under unlike
    protocols are refused, naming what differs. Runs that are not finished are named and left out.
    """
    from evertune.comparison import compare as compare_runs

    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_} does not exist. {nearest(format_, FORMATS)}")
    found = compare_runs(
        runs,
        metrics=metric,
        convention=convention,
        part=part,
        by=by,  # type: ignore[arg-type]  # it is checked there
        baseline=baseline,
        level=level,
        allow_different=allow_different,
    )
    numbers = found.numbers()
    typer.echo(_shown(numbers, format_).rstrip("\n"))
    if format_ in ("csv", "json"):
        for text in (*numbers["notes"], *(f"left out: {text}" for text in numbers["left_out"])):
            note(text)
    if out is not None:
        _write(found, numbers, out)
        note(f"written to {out}")


def _shown(numbers: dict[str, Any], kind: str) -> str:
    from evertune.report import comparison_csv, comparison_markdown, comparison_table

    if kind == "json":
        return json.dumps(numbers, indent=2, ensure_ascii=False)
    return {"table": comparison_table, "markdown": comparison_markdown, "csv": comparison_csv}[kind](numbers)


def _write(found: Comparison, numbers: dict[str, Any], out: Path) -> None:
    from evertune.engine import write_atomic
    from evertune.report import draw_comparison

    for kind, ending in (("markdown", "md"), ("csv", "csv"), ("json", "json")):
        write_atomic(out / f"comparison.{ending}", (_shown(numbers, kind).rstrip("\n") + "\n").encode())
    hashes = list(dict.fromkeys(run["protocol"] for row in numbers["rows"] for run in row["runs"]))
    draw_comparison(
        {row.name: row.curves() for row in found.rows},
        out / "comparison.png",
        f"Accuracy of runs side by side{', under unlike protocols' if found.unlike else ''}",
        level=found.level,
        note=f"protocols {', '.join(hashes[:4])}{' …' if len(hashes) > 4 else ''}",
    )
