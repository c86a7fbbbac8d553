"""``evertune predict``: name the class of images or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, note, stoppable
from evertune.cli.folders import learner_in
from evertune.cli.root import app
from evertune.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from evertune import Learner, Predictions
    from evertune.cli.asked import Asked

SOME_UNREADABLE = 1
"""Exit code: all else was answered."""


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune predict kept/ photo.png\n"
    "  evertune predict runs/demo/ scans/ --top 3 --abstain 0.5\n"
    "  find . -name '*.jpg' -print0 | evertune predict kept/ - -0 --format jsonl > answers.jsonl\n"
    '  evertune predict intents/ --text "My card has not arrived"\n'
    "  evertune predict intents/ - --format csv --out answers.csv < questions.txt",
)
def predict(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A learner's folder, or a run folder.", show_default=False)
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, folders of them (searched four levels down), or - for a path, or a text, on each line "
            "of the standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="A text. May be given many times.", metavar="TEXT", rich_help_panel=o.DATA),
    ] = None,
    null: Annotated[
        bool,
        typer.Option(
            "--null", "-0", help="NUL bytes instead of line ends on the standard input, as 'find -print0' writes them.",
            rich_help_panel=o.DATA,
        ),
    ] = False,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Answer the rest where some cannot be read, list those on the standard error, "
            "and end with exit code 1.", rich_help_panel=o.DATA,
        ),
    ] = False,
    follow_links: s.FollowLinks = False,
    truncate: o.Truncate = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task that all of them are known to belong to, by name: only its classes are answered.",
            metavar="NAME",
        ),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            "--abstain", metavar="P", help="No label where the confidence is below P, 0 to below 1.",
            show_default="always a label", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", metavar="K", min=1, help="Show the K most likely classes.", rich_help_panel=o.OUTPUT),
    ] = 1,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="table|json|jsonl|csv", help="jsonl: an object on each line, written as it comes, "
            "for very many. json: one list of them at the end.", rich_help_panel=o.OUTPUT,
        ),
    ] = "table",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write to a file, which appears when it is whole; - is the standard "
            "output.",
            show_default="standard output", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    weights: o.Weights = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
) -> None:  # fmt: skip
    """Name the class of images or texts.

    For each the label, and the confidence: the probability that the learner gives it. Until 'evertune calibrate' has
    been run on the learner, the confidence orders the answers and says little of how often they are right. Methods that
    infer the task tell it too.
    """
    with stoppable("Nothing was changed."):
        from evertune.cli.answers import FORMATS, output
        from evertune.cli.asked import asked, batches

        if form not in FORMATS:
            raise ConfigError(f"--format {form} does not exist. {nearest(form, FORMATS)}")
        learner = o.kept_learner(
            learner_in(folder),
            weights,
            truncate=truncate or None,
            precision=precision,
            device=device,
            workers=workers,
            eval_batch=eval_batch,
            progress=False,
        )
        items = asked(learner, files or [], text or [], null=null, follow_links=follow_links)
        size = eval_batch * 16 if workers else eval_batch  # processes are started for each
        left_out: list[None] = []

        def leave_out(problem: str) -> None:
            left_out.append(None)
            note(f"left out: {problem}")

        said = _answered(learner, batches(items, size), task, abstain, leave_out if skip else None)
        with output(out) as write:
            for piece in FORMATS[form](said, top):
                write(piece)
        if left_out:
            raise typer.Exit(SOME_UNREADABLE)


def _answered(
    learner: Learner,
    batches: Iterator[list[Asked]],
    task: str | None,
    abstain: float | None,
    leave_out: Callable[[str], None] | None,
) -> Iterator[tuple[list[str], Predictions]]:
    """Each batch and what is said of it; with ``leave_out``, which is told why, without what cannot be read."""
    from evertune.cli.asked import readable, source_of

    for batch in batches:
        try:
            said = learner.classify(source_of(learner, batch), task=task, abstain=abstain)
        except DataError:
            good, problems = readable(learner, batch) if leave_out else (batch, [])
            if leave_out is None or not problems:
                raise
            for problem in problems:
                leave_out(problem)
            if not good:
                continue
            batch, said = good, learner.classify(source_of(learner, good), task=task, abstain=abstain)
        yield [item.value for item in batch], said
