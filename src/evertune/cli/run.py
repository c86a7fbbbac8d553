"""``evertune run``: learn a data set task by task and measure after each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.root import app
from evertune.cli.telling import silent, speaker, tell_skipped
from evertune.errors import ConfigError

if TYPE_CHECKING:
    from evertune import AccuracyMatrix, Stream
    from evertune.streams import Source

DATA_HELP = (
    "An .npz file with x_train, y_train, x_test, y_test; a folder or .zip of train/<class>/<image> and "
    "test/<class>/<image>, of <class>/<image> (a fifth is then held out for testing), or with an index.csv; or a data "
    "set by name: digits, cifar100, flowers102 ..."
)


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune run --data digits --first 2 --increment 2 --no-flip --crop-scale 0.6 1.0\n"
    "  evertune run --method ranpac --data photos/ --backbone vit_base_patch16_224.augreg_in21k\n"
    "  evertune run --method safe --preset paper --data cifar100 --download --backbone vit_tiny_patch16_224 \\\n"
    "      --weights vit_tiny.safetensors --input-size 96 --preprocessing unit --set lambda_cos=10\n"
    "  evertune run --data pacs.zip --kind domain --domain-level --out runs/pacs\n\n"
    "The same command again goes on where a stopped run was after its last finished task.",
)
def run(
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help=DATA_HELP, rich_help_panel=o.DATA)],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="class|domain", help="class: new classes with every task. domain: the classes of a new "
            "domain with every task; domains come from --domain-level, an index.csv column, or the .npz.",
            rich_help_panel=o.DATA,
        ),
    ] = "class",
    first: Annotated[
        int | None,
        typer.Option(
            "--first", metavar="N", help="Classes of the first task.", show_default="as --increment",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    increment: Annotated[
        int | None,
        typer.Option(
            "--increment", metavar="N", help="Classes of each later task; the last may have fewer.",
            show_default="a tenth of the classes, at least 2", rich_help_panel=o.DATA,
        ),
    ] = None,
    order_seed: Annotated[
        str | None,
        typer.Option(
            "--order-seed", metavar="N|none", help="In which order classes or domains arrive: a permutation by this "
            "seed (the field's rule), or none for the data's own order.",
            show_default="1993 for classes, none for domains", rich_help_panel=o.DATA,
        ),
    ] = None,
    train_per_class: Annotated[
        int | None,
        typer.Option(
            "--train-per-class", metavar="N", help="Only the first N training images of each class.",
            show_default="all", rich_help_panel=o.DATA,
        ),
    ] = None,
    domain_level: Annotated[
        bool,
        typer.Option(
            "--domain-level", help="The folders have a level <domain>/ above <class>/.", rich_help_panel=o.DATA
        ),
    ] = False,
    skip_bad: o.SkipBad = False,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    method: o.MethodName = None,
    preset: o.Preset = None,
    settings: o.Settings = None,
    batch: o.BatchSize = None,
    backbone: o.BackboneName = None,
    weights: o.Weights = None,
    input_size: o.InputSize = None,
    preprocessing: o.Preprocessing = None,
    crop_scale: o.CropScale = None,
    flip: o.Flip = None,
    test_resize: o.TestResize = None,
    seed: o.Seed = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    eval_batch: o.EvalBatch = 128,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Run folder: configuration, protocol, matrix, log, learner, "
            "picture. A different run in it is refused.", show_default="runs/METHOD-DATA", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    no_references: Annotated[
        bool,
        typer.Option(
            "--no-references", help="Leave out the nearest-mean floor and the joint ridge (one plain pass over all "
            "data).", rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Learn a data set task by task and measure after each.

    After every task all test data seen so far are classified without telling which task they belong to. The folder
    keeps what is needed to go on, to check the numbers and to use the learner.
    """
    started = time.perf_counter()
    method = method or "safe"
    folder = out or Path("runs") / f"{method}-{Path(data).resolve().stem}"
    with stoppable(f"The same command goes on after the last finished task, as kept in {folder}."):
        from evertune import open_data
        from evertune import run as run_stream
        from evertune.cli.narrate import Narrator
        from evertune.cli.origin import keep_origin

        chosen = o.method_options(method, preset, settings, batch)
        train, test = open_data(data, skip_bad=skip_bad, domain_level=domain_level, root=data_root, download=download)
        tell_skipped(train, test)
        stream = _stream(train, test, kind, first, increment, order_seed, train_per_class)
        learner = o.new_learner(
            method,
            chosen,
            preset=preset,
            backbone=backbone,
            weights=weights,
            input_size=input_size,
            preprocessing=preprocessing,
            seed=seed,
            crop_scale=crop_scale,
            flip=flip,
            test_resize=test_resize,
            precision=precision,
            device=device,
            workers=workers,
            eval_batch=eval_batch,
            progress=not quiet,
        )
        say = speaker(learner)
        narrator = Narrator(stream, learner, silent if quiet else say)
        narrator.begin()

        def on_stage(stage: int, matrix: AccuracyMatrix) -> None:
            narrator.on_stage(stage, matrix)
            if learner.engine.runtime.main:
                keep_origin(folder, data, skip_bad=skip_bad, domain_level=domain_level, root=data_root)

        result = run_stream(
            stream, learner, folder, references=not no_references, on_phase=narrator.on_phase, on_stage=on_stage
        )
        for line in narrator.end(result, folder, time.perf_counter() - started):
            say(line)


def _stream(
    train: Source,
    test: Source,
    kind: str,
    first: int | None,
    increment: int | None,
    order_seed: str | None,
    train_per_class: int | None,
) -> Stream:
    """The tasks that ``evertune run`` was asked for."""
    from evertune import Stream

    o.require_kind(kind)
    if kind == "domain":
        given = {"--first": first, "--increment": increment, "--train-per-class": train_per_class}
        meaningless = [option for option, value in given.items() if value is not None]
        if meaningless:
            raise ConfigError(f"{', '.join(meaningless)} means nothing with --kind domain, where a task is a domain.")
        return Stream.domain_incremental(train, test, order_seed=_order_seed(order_seed, None))
    if increment is None:
        increment = max(2, len(train.present()) // 10) if first is None else first
    return Stream.class_incremental(
        train,
        test,
        first=increment if first is None else first,
        increment=increment,
        order_seed=_order_seed(order_seed, 1993),
        train_per_class=train_per_class,
    )


def _order_seed(text: str | None, default: int | None) -> int | None:
    if text is None:
        return default
    if text == "none":
        return None
    if not text.isdecimal() or int(text) >= 2**32:
        raise ConfigError(f"--order-seed {text} is neither a whole number from 0 to {2**32 - 1} nor 'none'.")
    return int(text)
