"""``evertune calibrate``: make a learner's confidence mean what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import require_own
from evertune.cli.root import app
from evertune.cli.tasks import examples_of
from evertune.cli.telling import tell_skipped


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune calibrate kept/ photos/held_out\n"
    "  evertune calibrate intents/ validation.csv\n  evertune predict kept/ photo.png --abstain 0.8",
)
def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A learner's folder.", show_default=False)],
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled examples that were not learned from, in any form that 'evertune run' takes: the test part, "
            "or all of it where it is not divided.",
            show_default=False,
        ),
    ],
    columns: s.Columns = None,
    encoding: s.Encoding = "utf-8",
    normalise_labels: s.NormaliseLabels = None,
    numbers_as_names: s.NumbersAsNames = False,
    domain_level: s.DomainLevel = False,
    skip_bad: o.SkipBad = False,
    follow_links: s.FollowLinks = False,
    max_pixels: s.MaxPixels = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    weights: o.Weights = None,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
) -> None:
    """Fit a learner's confidence to labelled examples, and keep that.

    One number, the temperature, by which scores are divided before they become probabilities; no label changes by it.
    It is kept as a new version of the learner, and stays when more is learned: calibrate again then.
    """
    with stoppable(f"The learner in {folder} is what it was before."):
        from evertune.learner import LearnerFolder
        from evertune.learner.measuring import fitted

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
        require_own(folder)
        examples = examples_of(data, reading | {"download": download})
        tell_skipped(examples)
        with LearnerFolder(folder).lock():
            learner = o.kept_learner(folder, weights, device=device, workers=workers, eval_batch=eval_batch)
            learner.temperature, before, after = fitted(learner, examples)
            learner.save(folder)
        typer.echo(learner.temperature.tell(len(learner.history)))
        typer.echo(f"calibration error on these examples (ECE): {before.error:.2f} % before, {after.error:.2f} % now")
