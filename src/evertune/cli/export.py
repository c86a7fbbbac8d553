"""``evertune export``: a kept learner in a format that others read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import learner_in
from evertune.cli.root import app
from evertune.cli.telling import count
from evertune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evertune import Learner

FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("--task", "--weights"),
    "program": ("--task", "--weights"),
    "peft": ("--task", "--weights"),
    "timm": ("--weights",),
    "card": ("--license",),
}
"""What a learner can leave as, and the options that are for it."""


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune export kept/ --to onnx --out kept.onnx\n"
    "  evertune export kept/ --to program --out kept.pt2\n"
    "  evertune export kept/ --to peft --out adapters/ --task night\n"
    "  evertune export kept/ --to card --out README.md --license apache-2.0",
)
def export(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A learner's folder, or a run folder.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="|".join(FORMATS),
            help="onnx, program (torch.export): the whole learner as a graph. peft: each of its LoRAs as an adapter "
            "on the plain timm or transformers model. timm: that model's weights with the learner's one LoRA or SSF "
            "merged into them. card: a README that tells what it is.", rich_help_panel=o.OUTPUT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="The file to write; for peft a new or an empty folder.",
            rich_help_panel=o.OUTPUT,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="NAME", help="A task, by name or number. onnx, program: answer its classes alone. peft: "
            "only what answers for it.",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="The license for the card, as the hub calls it: apache-2.0."),
    ] = None,
    weights: o.Weights = None,
) -> None:  # fmt: skip
    """Write a learner in a format that others read.

    What is written is read back and compared with the learner before it takes its place: graphs by their scores,
    adapters and weights by their features. A learner that cannot leave in a format is refused, and told why.
    """
    with stoppable(f"{out} was not written."):
        _require_fitting(to, {"--task": task, "--license": license, "--weights": weights})
        home = learner_in(folder)
        if to == "card":
            _write_card(home, out, license)
            return
        learner = o.kept_learner(home, weights, device="cpu", progress=False)
        write = {"onnx": _write_onnx, "program": _write_program, "peft": _write_peft, "timm": _write_timm}[to]
        write(learner, out, task)


def _require_fitting(to: str, given: dict[str, object]) -> None:
    if to not in FORMATS:
        raise ConfigError(f"--to {to} does not exist. {nearest(to, FORMATS)}")
    misplaced = [option for option, value in given.items() if value is not None and option not in FORMATS[to]]
    if misplaced:
        raise ConfigError(f"{' and '.join(misplaced)} means nothing to --to {to}: leave it out.")


def _write_onnx(learner: Learner, out: Path, task: str | None) -> None:
    from evertune.export import export_onnx

    _tell_graph(learner, export_onnx(learner, out, task=task))


def _write_program(learner: Learner, out: Path, task: str | None) -> None:
    from evertune.export import export_program

    _tell_graph(learner, export_program(learner, out, task=task))


def _tell_graph(learner: Learner, file: Path) -> None:
    typer.echo(f"{file} gives scores and probabilities of {count(len(learner.classes), 'class')}, as the learner does")


def _write_peft(learner: Learner, out: Path, task: str | None) -> None:
    from evertune.export import export_peft

    for made in export_peft(learner, out, task):
        off = f"features differ from the learner's by {made.difference:.1e} at most"
        typer.echo(f"{made.folder} is {made.name}, an adapter of rank {made.rank}; {off}")


def _write_timm(learner: Learner, out: Path, task: str | None) -> None:
    from evertune.export import export_timm

    made = export_timm(learner, out)
    head = f"a head of {count(made.classes, 'class')}" if made.classes else "no head: the scores are not linear in them"
    typer.echo(f"{made.file} gives the learner's features ({made.difference:.1e} off at most), with {head}")
    known = learner.backbone.identity.as_dict()
    if known["name"] != "embedded":
        arguments = f"num_classes={made.classes}, img_size={known['input_size']}, checkpoint_path={str(made.file)!r}"
        typer.echo(f"timm.create_model({known['name'].removeprefix('timm:')!r}, {arguments})")


def _write_card(home: Path, out: Path, license: str | None) -> None:
    from evertune.engine.store import write_atomic
    from evertune.export.card import card_of, dates_of
    from evertune.learner import LearnerFolder

    kept = LearnerFolder(home)
    content = kept.content()
    write_atomic(out, card_of(content, dates=dates_of(kept, content), license=license).encode())
    typer.echo(f"{out} tells what {home} is")
