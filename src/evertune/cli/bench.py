"""``evertune bench``: methods × streams × seeds from one file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, note, stoppable
from evertune.cli.root import app
from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune.bench import Bench, Cell, Flag, Outcome, State
    from evertune.comparison import KeptRun

FAILED = 1
"""The exit code where a cell could not be made."""


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune bench benchmarks/results.toml --list\n"
    "  evertune bench benchmarks/results.toml --only 'safe-*' --var shared=/data\n"
    "  evertune bench benchmarks/results.toml --table paper\n\n"
    "Stopped or failed, the same command goes on with what is missing.",
)
def bench(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A TOML file; docs/benchmarks.md describes it.", show_default=False)],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="Only this entry, or this run of one (NAME/ORDER); * stands for anything. "
            "May be given many times.",
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Print every run, how far it is and the command that makes it; run nothing.")
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", metavar="NAME", help="Print this table of what is finished or recorded, in Markdown, or 'all'; "
            "run nothing.", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    plot: Annotated[
        list[str] | None,
        typer.Option(
            "--plot", metavar="NAME=FILE", help="Draw this table of what is finished, its first column over the "
            "counted cost, into a .png or .svg file; run nothing.", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="Another value for a variable of the file's [vars]."),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Write what tables need of every finished run into the file's 'records'; run nothing.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs at a time.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Where the run folders are: FOLDER/NAME/ORDER.",
            show_default="as the file says", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Run methods × streams × seeds from one file, and make tables of them.

    Every run is an 'evertune run' in a process of its own, which keeps its log beside the run folder. What is finished
    is left as it is, what was stopped goes on, and a run that fails does not keep the others: it is told at the end.
    """
    with stoppable("The same command goes on with what is missing."):
        from evertune.bench import read_bench

        flags = _flags(context)
        asked = read_bench(file, flags, _pairs("--var", var, "NAME=VALUE", "shared=/data"), out)
        cells = _chosen(asked, only)
        if record and only:
            raise ConfigError("--record is of all runs of the file: leave --only out.")
        if table or plot or record:
            pictures = _pairs("--plot", plot, "NAME=FILE", "main=costs.png")
            _require_tables(asked, [*(table or ()), *pictures])
            if record:
                _record(asked)
            _show_tables(asked, table or [])
            _draw(asked, pictures)
            return
        for cell in cells:
            _check(context, cell, flags)
        if list_:
            _list(cells, flags)
            return
        _run(cells, flags, jobs)


def _flags(context: typer.Context) -> dict[str, Flag]:
    """How the options of ``evertune run`` are written, from the command itself."""
    from evertune.bench import Flag

    found = {}
    for parameter in _run_command(context).params:
        long = [name for name in parameter.opts if name.startswith("--")]
        denied = [name for name in parameter.secondary_opts if name.startswith("--")]
        if parameter.name and long:
            found[parameter.name] = Flag(
                long[0],
                denied[0] if denied else None,
                switch=bool(getattr(parameter, "is_flag", False)),
                often=bool(getattr(parameter, "multiple", False)),
            )
    return found


def _run_command(context: typer.Context) -> Any:
    assert context.parent is not None
    return context.parent.command.commands["run"]  # type: ignore[attr-defined]  # the group of all commands


def _pairs(option: str, given: Sequence[str] | None, form: str, example: str) -> dict[str, str]:
    for text in given or ():
        if "=" not in text:
            raise ConfigError(f"{option} {text} says half of it: write it as {form}, such as {option} {example}.")
    return {name.strip(): value for name, _, value in (text.partition("=") for text in given or ())}


def _chosen(asked: Bench, only: Sequence[str] | None) -> list[Cell]:
    def matches(cell: Cell, pattern: str) -> bool:
        return fnmatchcase(cell.name, pattern) or fnmatchcase(cell.label, pattern)

    for pattern in only or ():
        if not any(matches(cell, pattern) for cell in asked.cells):
            raise ConfigError(f"--only {pattern} matches no entry. {nearest(pattern, asked.names)}")
    return [cell for cell in asked.cells if not only or any(matches(cell, pattern) for pattern in only)]


def _check(context: typer.Context, cell: Cell, flags: dict[str, Flag]) -> None:
    """Whether ``evertune run`` would take the command; nothing of it is run.

    Raises
    ------
    ConfigError
        A value that does not fit its option, an unknown method, preset or option of it.
    """
    command = _run_command(context)
    try:
        command.make_context("evertune run", cell.arguments(flags)[1:])
    except Exception as error:
        said = getattr(error, "format_message", None)  # typer's own errors have one
        if said is None:
            raise
        raise ConfigError(f"{cell.name}: {said()}") from error
    options = [f"{key}={value}" for key, value in cell.settings["options"].items()]
    try:
        o.method_options(cell.settings["method"], cell.settings.get("preset"), options, cell.settings.get("batch"))
    except ConfigError as error:
        raise ConfigError(f"{cell.name}: {error}") from error


def _list(cells: Sequence[Cell], flags: dict[str, Flag]) -> None:
    from evertune.bench import state_of

    for cell in cells:
        state = state_of(cell)
        typer.echo(f"# {cell.label}: {_told(state)}")
        typer.echo(shlex.join(["evertune", *cell.arguments(flags)]))


def _run(cells: Sequence[Cell], flags: dict[str, Flag], jobs: int) -> None:
    from evertune.bench import log_of, run_cells, state_of

    states = [state_of(cell) for cell in cells]
    wanted = [c for c, state in zip(cells, states, strict=True) if state.progress in ("missing", "begun")]
    refused = {c.label: s.reason for c, s in zip(cells, states, strict=True) if s.progress == "different"}
    done = len(cells) - len(wanted) - len(refused)
    typer.echo(f"{len(cells)} runs: {done} finished, {len(wanted)} to do{f', {jobs} at a time' if jobs > 1 else ''}")

    def on_end(outcome: Outcome) -> None:
        how = f"{outcome.seconds:.0f} s" if not outcome.error else f"failed, see {log_of(outcome.cell)}"
        typer.echo(f"{outcome.cell.label}: {how}")

    outcomes = run_cells(wanted, flags, jobs=jobs, on_end=on_end)
    failed = refused | {outcome.cell.label: outcome.error for outcome in outcomes if outcome.error}
    for place, reason in failed.items():
        note(f"{place} {'holds another run' if place in refused else 'failed'} ({reason})")
    if failed:
        note(f"{len(failed)} of {len(cells)} runs are missing; the same command tries them again.")
        raise typer.Exit(FAILED)


def _record(asked: Bench) -> None:
    """What was recorded before stays, but for runs that the file does not ask for any more; those are told."""
    from evertune.bench import finished_run
    from evertune.comparison import write_records

    if asked.records is None:
        raise ConfigError("The file names no 'records' to write: say records = \"results.jsonl\" in it.")
    known = _recorded(asked)
    found = {cell.label: run for cell in asked.cells if (run := finished_run(cell, known)) is not None}
    write_records(asked.records, found)
    if gone := [name for name in known if name not in found]:
        note(f"{asked.records} no longer has {', '.join(gone)}: the bench asks for other runs now")
    typer.echo(f"{asked.records}: {len(found)} of {len(asked.cells)} runs")


def _recorded(asked: Bench) -> dict[str, KeptRun]:
    from evertune.comparison import read_records

    return {} if asked.records is None else read_records(asked.records)


def _show_tables(asked: Bench, names: Sequence[str]) -> None:
    for number, name in enumerate(asked.tables if "all" in names else names):
        if number:
            typer.echo()
        typer.echo(asked.tables[name].markdown(_finished(asked, name)))


def _draw(asked: Bench, pictures: dict[str, str]) -> None:
    from evertune.bench import draw_table

    for name, path in pictures.items():
        missing = draw_table(asked.tables[name], _finished(asked, name), path)
        if missing:
            note(f"{path} lacks {', '.join(missing)}: no finished run, or none that counted its cost")


def _require_tables(asked: Bench, names: Sequence[str]) -> None:
    if names and not asked.tables:
        raise ConfigError("The file has no [tables.*].")
    for name in names:
        if name not in (*asked.tables, "all"):
            raise ConfigError(f"There is no table {name!r}. {nearest(name, [*asked.tables, 'all'])}")


def _finished(asked: Bench, name: str) -> dict[str, list[KeptRun]]:
    """The finished runs of a table by entry; what is missing is told."""
    from evertune.bench import finished_run

    known = _recorded(asked)
    found = {}
    for entry in asked.tables[name].needs():
        runs = [finished_run(cell, known) for cell in asked.of(entry)]
        found[entry] = [run for run in runs if run is not None]
        if len(found[entry]) < len(runs):
            note(f"{name}: {len(found[entry])} of {len(runs)} runs of {entry} are finished")
    return found


def _told(state: State) -> str:
    return f"{state.progress}{f' ({state.reason})' if state.reason else ''}"
