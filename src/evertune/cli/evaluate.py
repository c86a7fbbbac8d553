"""``evertune evaluate``: how well a learner answers on labelled examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import learner_in
from evertune.cli.root import app
from evertune.cli.tasks import examples_of
from evertune.cli.telling import tell_skipped
from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Learner

FORMATS = ("table", "json")


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune evaluate kept/ photos/test\n"
    "  evertune evaluate kept/ everything.csv --known-only --format json\n"
    "  evertune evaluate runs/demo digits --task 'task 2' --known-only",
)
def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A learner's folder, or a run folder.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled examples, in any form that 'evertune run' takes: the test part, or all of it where it is "
            "not divided.",
            show_default=False,
        ),
    ],
    known_only: Annotated[
        bool,
        typer.Option(
            "--known-only", help="Leave out examples of classes that the learner does not know, instead of stopping.",
            rich_help_panel=o.DATA,
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task that all of them are known to belong to, by name: only its classes are answered.",
            metavar="NAME",
        ),
    ] = None,
    columns: s.Columns = None,
    encoding: s.Encoding = "utf-8",
    normalise_labels: s.NormaliseLabels = None,
    numbers_as_names: s.NumbersAsNames = False,
    domain_level: s.DomainLevel = False,
    skip_bad: o.SkipBad = False,
    truncate: o.Truncate = False,
    follow_links: s.FollowLinks = False,
    max_pixels: s.MaxPixels = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    form: Annotated[str, typer.Option("--format", metavar="table|json", rich_help_panel=o.OUTPUT)] = "table",
    weights: o.Weights = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
    cache: o.CacheFolder = None,
    cache_size: o.CacheSize = None,
) -> None:  # fmt: skip
    """Measure a learner on labelled examples.

    The share of right answers with the interval that so many examples allow, class by class, by the task that brought
    the class, and whether its confidence is as high as its answers are right. All classes known compete, unless --task
    says which can be meant.
    """
    with stoppable("Nothing was changed."):
        from evertune.learner import assess
        from evertune.report import assessment_table

        if form not in FORMATS:
            raise ConfigError(f"--format {form} does not exist. {nearest(form, FORMATS)}")
        reading = s.reading(
            columns,
            encoding,
            normalise_labels,
            numbers_as_names,
            domain_level,
            skip_bad,
            follow_links,
            max_pixels,
            data_root,
        )
        examples = examples_of(data, reading | {"download": download})
        tell_skipped(examples)
        learner = o.kept_learner(
            learner_in(folder),
            weights,
            truncate=truncate or None,
            precision=precision,
            device=device,
            workers=workers,
            eval_batch=eval_batch,
            cache=o.feature_cache(cache, cache_size),
        )
        numbers = assess(learner, examples, task, known_only=known_only).as_dict()
        if form == "json":
            warmth = None if learner.temperature is None else learner.temperature.as_dict()
            typer.echo(json.dumps({"data": examples.name, **numbers, "temperature": warmth}, indent=2))
            return
        typer.echo(f"{assessment_table(numbers)}\n\n{_calibrated(learner, folder)}")


def _calibrated(learner: Learner, folder: Path) -> str:
    if learner.temperature is None:
        return f"not calibrated: 'evertune calibrate {folder} DATA' fits its confidence to examples not learned from"
    return f"calibrated: {learner.temperature.tell(len(learner.history))}"
