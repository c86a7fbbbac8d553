"""``evertune predict``: name the class of images or texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import is_learner
from evertune.cli.root import app
from evertune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from evertune import Learner


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune predict kept/ photo.png\n  evertune predict runs/demo/ scans/*.png --json\n"
    '  evertune predict intents/ --text "My card has not arrived"\n  evertune predict intents/ - < questions.txt',
)
def predict(
    folder: Annotated[Path, typer.Argument(help="A learner's folder, or a run folder.", show_default=False)],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files; or - for texts on the standard input, one on each line.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="A text. May be given many times.", metavar="TEXT", rich_help_panel=o.DATA),
    ] = None,
    truncate: o.Truncate = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help='One JSON object per line: {"image" or "text", "class", "score"}.', rich_help_panel=o.OUTPUT
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task that all of them are known to belong to, by name: only its classes are answered.",
            metavar="NAME",
        ),
    ] = None,
    weights: o.Weights = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
) -> None:
    """Name the class of images or texts.

    One line for each: path or text, class and score, separated by tabs. The score orders the classes of one image or
    text; it is the method's own and no probability.
    """
    with stoppable("Nothing was changed."):
        home = folder / "learner" if not is_learner(folder) and is_learner(folder / "learner") else folder
        learner = o.kept_learner(
            home,
            weights,
            truncate=truncate or None,
            precision=precision,
            device=device,
            workers=workers,
            eval_batch=eval_batch,
            progress=False,
        )
        asked = _asked(learner, images or [], text or [])
        best, index = learner.scores(asked, task).max(1)
        kind = learner.backbone.modality
        for one, score, i in zip(map(str, asked), best.tolist(), index.tolist(), strict=True):
            name = learner.classes[i]
            if as_json:
                said = {kind: one, "class": name, "score": score}
                typer.echo(json.dumps(said, ensure_ascii=False))
            else:
                typer.echo(f"{' '.join(one.split()) if kind == 'text' else one}\t{name}\t{score:.4f}")


def _asked(learner: Learner, images: list[Path], texts: list[str]) -> list[str] | list[Path]:
    """What is to be classified, of the kind that the learner reads."""
    name, stdin = learner.backbone.identity.name, Path("-") in images
    files = [path for path in images if path != Path("-")]
    if learner.backbone.modality == "image":
        if texts or stdin:
            raise ConfigError(f"This learner reads images (its backbone is {name}): give image files, not texts.")
        if not files:
            raise ConfigError("There is nothing to classify: give image files.")
        return files
    if files:
        raise ConfigError(
            f"This learner reads texts (its backbone is {name}), and {files[0]} is taken for an image file: give "
            "--text TEXT, or - and texts on the standard input, one on each line."
        )
    if stdin:
        try:
            lines = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"The standard input is not UTF-8 (at byte {error.start}): convert it.") from error
        texts = texts + (lines.removesuffix("\n").split("\n") if lines else [])
    if not texts:
        raise ConfigError("There is nothing to classify: give --text TEXT, or - and lines on the standard input.")
    return texts
