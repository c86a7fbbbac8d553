"""``evertune run``: learn a data set task by task and measure after each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, stoppable
from evertune.cli.cutting import cut
from evertune.cli.root import app
from evertune.cli.tasks import tasks_of
from evertune.cli.telling import silent, speaker, stated, tell_skipped, tell_unlike
from evertune.errors import ConfigError

if TYPE_CHECKING:
    from evertune import AccuracyMatrix, Stream

DATA_HELP = (
    "A folder or .zip of train/<class>/<image> and test/<class>/<image>, of <class>/<image> (a fifth is then held out "
    "for testing), or with an index.csv; a table (.csv, .tsv, .json, .jsonl) with a column of texts or image files and "
    "one of classes; an .npz file with x_train, y_train, x_test, y_test; or a data set by name: digits, cifar100, "
    "hf:NAME ..."
)


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune run --data digits --first 2 --increment 2 --no-flip --crop-scale 0.6 1.0\n"
    "  evertune run --method ranpac --data photos/ --backbone vit_base_patch16_224.augreg_in21k\n"
    "  evertune run --method safe --preset paper --data cifar100 --download --backbone vit_tiny_patch16_224 \\\n"
    "      --weights vit_tiny.safetensors --input-size 96 --preprocessing unit --set lambda_cos=10\n"
    "  evertune run --data pacs.zip --kind domain --domain-level --out runs/pacs\n"
    "  evertune run --data cifar100 --kind blurry --stream tasks=5 --stream online=64 --set epochs=1\n"
    "  evertune run --data cifar100 --method finetune --joint --out runs/joint\n"
    "  evertune run --task monday/ --task tuesday/ --out runs/week\n\n"
    "The same command again goes on where a stopped run was, inside a task too, or with more of --task.",
)
def run(
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="DATA", help=DATA_HELP, rich_help_panel=o.DATA)
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="FOLDER", help="One task, instead of --data: a folder or .zip of <class>/<image>, or of "
            "train/ and test/ above the classes, or a table. Give one for each, in order. With the same --out and more "
            "of them, the run goes on with the new.", show_default=False, rich_help_panel=o.DATA,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="NAME", help="class: new classes with every task. domain: the classes of a new domain "
            "with every task; domains come from --domain-level, a table's column, or the .npz. mixed: new classes "
            "and new domains. data: more data of the same classes. time: by a time column. blurry: classes that run "
            "into the next tasks.",
            show_default="class; with --task mixed, anything", rich_help_panel=o.DATA,
        ),
    ] = None,
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
            show_default="1993 for classes, none for domains, or the --protocol's", rich_help_panel=o.DATA,
        ),
    ] = None,
    train_per_class: Annotated[
        int | None,
        typer.Option(
            "--train-per-class", metavar="N", help="Only the first N training examples of each class.",
            show_default="all", rich_help_panel=o.DATA,
        ),
    ] = None,
    stream_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="KEY=VALUE", help="Any other setting of the stream, as evertune.streams.make_stream "
            "takes it: --stream imbalance=100, shots=5, group_by=prefix, sizes=20,10,10, online=64. May be given many "
            "times.", show_default=False, rich_help_panel=o.DATA,
        ),
    ] = None,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint", help="All tasks at once, as one: what learning them one after the other is measured against.",
            rich_help_panel=o.DATA,
        ),
    ] = False,
    test: s.TestData = None,
    manifest: s.Manifest = None,
    columns: s.Columns = None,
    encoding: s.Encoding = "utf-8",
    normalise_labels: s.NormaliseLabels = None,
    numbers_as_names: s.NumbersAsNames = False,
    domain_level: s.DomainLevel = False,
    protocol: o.ProtocolName = None,
    skip_bad: o.SkipBad = False,
    follow_links: s.FollowLinks = False,
    max_pixels: s.MaxPixels = None,
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
    max_length: o.MaxLength = None,
    pooling: o.Pooling = None,
    truncate: o.Truncate = False,
    crop_scale: o.CropScale = None,
    flip: o.Flip = None,
    test_resize: o.TestResize = None,
    seed: o.Seed = None,
    precision: o.Precision = "fp32",
    device: o.Device = "auto",
    workers: o.Workers = 0,
    pixels: o.Pixels = "exact",
    eval_batch: o.EvalBatch = 128,
    cache: o.CacheFolder = None,
    cache_size: o.CacheSize = None,
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
    task_incremental: Annotated[
        bool,
        typer.Option(
            "--task-incremental", help="Also report the accuracy among the classes of each example's task, the task "
            "being told. Methods that infer the task report it anyhow.", rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    ahead: Annotated[
        bool,
        typer.Option(
            "--ahead", help="Also ask each stage about the tasks to come whose classes it knows (the next "
            "domains), for forward transfer; see 'evertune metrics'.", rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Also measure after each task how far the confidence of the answers can be trusted.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    count: Annotated[
        bool,
        typer.Option(
            "--count", help="Also count what learning and answering cost, in passes of the plain backbone; see "
            "docs/benchmarks.md.", rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    versions: Annotated[
        str,
        typer.Option(
            "--versions", metavar="N|all", help="Versions of the learner to keep, one made by every task; 'evertune "
            "predict' uses the newest.", rich_help_panel=o.OUTPUT,
        ),
    ] = "2",
    every: o.CheckpointEvery = None,
    restart: o.Restart = False,
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Learn a data set task by task and measure after each.

    After every task all test data seen so far are classified without telling which task they belong to. The folder
    keeps what is needed to go on, to check the numbers and to use the learner.
    """
    started = time.perf_counter()
    method = method or "safe"
    given = tasks or [] if data is None else [data]
    last = f"{Path(given[0] if given else '').resolve().stem}{'-joint' if joint else ''}"
    folder = out or Path("runs") / f"{method}-{last}"
    with stoppable(lambda: _after_a_stop(folder)):
        from evertune import open_data
        from evertune import run as run_stream
        from evertune.cli.lesson import tell_unfinished
        from evertune.cli.narrate import Narrator
        from evertune.cli.origin import keep_origin, keep_tasks
        from evertune.evaluation import Protocol

        if (data is None) == (not tasks):
            raise ConfigError("Say what to learn: --data DATA, or --task FOLDER for every task.")
        kept_versions = _versions(versions)
        named = None if protocol is None else Protocol.preset(protocol)
        chosen = o.method_options(method, preset, settings, batch)
        cuts: dict[str, Any] = {
            "first": first,
            "increment": increment,
            "order_seed": order_seed,
            "train_per_class": train_per_class,
            "settings": stream_settings,
        }
        parts: dict[str, Any] = {"test": test, "manifest": manifest}
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
        if data is None:
            stream = _of_tasks(given, kind, cuts | parts, reading | {"download": download})
            stream = stream.joint() if joint else stream
        else:
            train, tested = open_data(data, download=download, **parts, **reading)
            tell_skipped(train, tested)
            stream = cut(train, tested, kind=kind or "class", joint=joint, protocol=named, **cuts)
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
            max_length=max_length,
            pooling=pooling,
            truncate=truncate,
            protocol=named,
            precision=precision,
            device=device,
            workers=workers,
            pixels=pixels,
            eval_batch=eval_batch,
            cache=o.feature_cache(cache, cache_size),
            progress=not quiet,
        )
        say = speaker(learner)
        if named is not None and learner.engine.runtime.main:
            tell_unlike(named, stream, learner)
        narrator = Narrator(stream, learner, silent if quiet else say)
        learner.engine.require(stream[0].train)  # of the other kind: nothing true could be said of it
        narrator.begin()

        def on_stage(stage: int, matrix: AccuracyMatrix) -> None:
            narrator.on_stage(stage, matrix)
            if learner.engine.runtime.main:
                if data is None:
                    keep_tasks(folder, given, stream.kind, reading)
                else:
                    keep_origin(folder, data, parts | reading)

        if learner.engine.runtime.main and not restart:
            tell_unfinished(folder / "learner")
        result = run_stream(
            stream,
            learner,
            folder,
            references=not no_references,
            task_incremental=task_incremental,
            ahead=ahead,
            calibration=calibration,
            count=count,
            versions=kept_versions,
            checkpoint_every=every,
            restart=restart,
            on_phase=narrator.on_phase,
            on_stage=on_stage,
        )
        for line in narrator.end(result, folder, time.perf_counter() - started):
            say(line)
        if named is not None:
            say(f"protocol    {stated(named, result)}")


def _versions(text: str) -> int | None:
    """How many versions stay; None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--versions {text} is neither a whole number from 1 nor 'all'.")
    return int(text)


def _after_a_stop(folder: Path) -> str:
    from evertune.cli.lesson import after_a_stopped_run

    return after_a_stopped_run(folder)


def _of_tasks(folders: list[str], kind: str | None, cuts: dict[str, Any], reading: dict[str, Any]) -> Stream:
    meaningless = [f"--{name.replace('_', '-')}" for name, value in cuts.items() if value]
    if meaningless:
        named = ", ".join(meaningless).replace("--settings", "--stream")
        raise ConfigError(f"{named} means nothing with --task, which says what a task is.")
    stream = tasks_of(folders, kind, reading)
    tell_skipped(*(task.train for task in stream))
    if all(task.test is None for task in stream):
        raise ConfigError(
            "No task has test examples, so nothing can be measured: put train/ and test/ above the classes of at least "
            "one, or give a table a split column. 'evertune learn' teaches without measuring."
        )
    return stream
