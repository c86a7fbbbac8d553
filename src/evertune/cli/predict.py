"""``evertune predict``: name the class of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import is_learner
from evertune.cli.root import app


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune predict kept/ photo.png\n  evertune predict runs/demo/ scans/*.png --json",
)
def predict(
    folder: Annotated[Path, typer.Argument(help="A learner's folder, or a run folder.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    as_json: Annotated[
        bool,
        typer.Option("--json", help='One JSON object per line: {"image", "class", "score"}.', rich_help_panel=o.OUTPUT),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task these images are known to belong to, by name: only its classes are answered.", metavar="NAME"
        ),
    ] = None,
    weights: o.Weights = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
) -> None:
    """Name the class of images.

    One line per image: path, class and score, separated by tabs. The score orders the classes of one image; it is the
    method's own and no probability.
    """
    with stoppable("Nothing was changed."):
        home = folder / "learner" if not is_learner(folder) and is_learner(folder / "learner") else folder
        learner = o.kept_learner(
            home, weights, precision=precision, device=device, workers=workers, eval_batch=eval_batch, progress=False
        )
        best, index = learner.scores(images, task).max(1)
        for image, score, i in zip(images, best.tolist(), index.tolist(), strict=True):
            name = learner.classes[i]
            if as_json:
                typer.echo(json.dumps({"image": str(image), "class": name, "score": score}, ensure_ascii=False))
            else:
                typer.echo(f"{image}\t{name}\t{score:.4f}")
