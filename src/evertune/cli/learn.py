"""``evertune learn``: teach a learner one more task, or begin a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, stoppable
from evertune.cli.root import app
from evertune.cli.settled import require_same, require_same_settings
from evertune.cli.tasks import kind_of, task_of
from evertune.cli.telling import tell_skipped
from evertune.errors import ConfigError


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune learn kept/ monday/                 a new learner, on the embedded backbone\n"
    "  evertune learn kept/ tuesday.zip             it learns the classes of one more task\n"
    "  evertune learn kept/ more/                   or more pictures of known classes\n"
    "  evertune learn kept/ night/ --kind domain    or known classes, seen in another way\n"
    "  evertune learn kept/ friday/ --dry-run       what would be learned\n"
    "  evertune rollback kept/                      the last update undone\n\n"
    "Stopped in the middle, by Ctrl-C or a power cut, the same command goes on where it was.",
)
def learn(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Where the learner is kept, or is to be kept.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", show_default=False, help="One task: a folder or .zip of <class>/<image>, or a table of "
            "texts or image files, all of it for training; what says which examples are for testing (train/ and test/ "
            "above the classes, a split column) has an accuracy reported on those. Or any other data that 'evertune "
            "run' takes.",
        ),
    ] = None,
    named: Annotated[
        str | None, typer.Option("--data", "-d", metavar="DATA", help="The same as DATA.", rich_help_panel=o.DATA)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="class|domain|mixed", help="class: there must be new classes. domain: known classes, "
            "seen in another way. mixed: anything of both.",
            show_default="class where every class is new, else mixed", rich_help_panel=o.DATA,
        ),
    ] = None,
    test: s.TestData = None,
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
    precision: o.KeptPrecision = None,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    pixels: o.Pixels = "exact",
    eval_batch: o.EvalBatch = 128,
    cache: o.CacheFolder = None,
    cache_size: o.CacheSize = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=1, help="Versions to keep: this one and those before it. 'evertune rollback' "
            "goes back to them.", show_default="all", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    every: o.CheckpointEvery = None,
    restart: o.Restart = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be learned, and change nothing.", rich_help_panel=o.OUTPUT)
    ] = False,
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Teach a learner one more task, and keep it.

    A folder without a learner gets a new one. What is chosen then (method, backbone, views, seed) stays for its life
    and need not be said again, but for --weights if its backbone came from a local file. Every update makes a version;
    if anything goes wrong, the learner in the folder is what it was before.
    """
    with stoppable(lambda: _after_a_stop(folder)):
        from evertune.cli import lesson

        if (data is None) == (named is None):
            raise ConfigError("Say once what to learn: evertune learn MODEL DATA.")
        kept = lesson.kept_in(folder)
        known = [] if kept is None else kept["classes"]
        given = {
            "--method": method,
            "--preset": preset,
            "--backbone": None if backbone is None else backbone.removeprefix("timm:"),
            "--input-size": input_size,
            "--preprocessing": preprocessing,
            "--max-length": max_length,
            "--pooling": pooling,
            "--truncate": truncate or None,
            "--crop-scale": crop_scale,
            "--flip": flip,
            "--test-resize": test_resize,
            "--seed": seed,
        }
        if kept is None:
            chosen = o.method_options(method or "safe", preset, settings, batch)
        else:
            require_same(folder, kept, given)
            require_same_settings(folder, kept, o.method_options(kept["method"], kept["preset"], settings, batch))
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
        asked = None if kind is None else kind_of(kind)
        task = task_of(data or named or "", "mixed", reading | {"test": test, "download": download})
        tell_skipped(task.train)
        if dry_run:
            for line in lesson.foretold(folder, lesson.fitted(task, asked, known), known):
                typer.echo(line)
            return
        runtime: dict[str, Any] = {
            **({} if precision is None else {"precision": precision}),
            "device": device,
            "workers": workers,
            "pixels": pixels,
            "eval_batch": eval_batch,
            "cache": o.feature_cache(cache, cache_size),
            "progress": not quiet,
        }
        if kept is None:
            learner = o.new_learner(
                method or "safe",
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
                **runtime,
            )
        with lesson.alone(folder, kept):
            if kept is not None:
                learner = o.kept_learner(folder, weights, **runtime)
            task = lesson.fitted(task, asked, learner.classes)
            if learner.engine.runtime.main and not restart:
                lesson.tell_unfinished(folder)
            learner.learn(task, folder=folder, restart=restart, every=every, keep=keep)
    with stoppable(f"The task is learned, and {folder} keeps it."):
        lesson.tell_learned(learner, task, folder)


def _after_a_stop(folder: Path) -> str:
    from evertune.cli.lesson import after_a_stop

    return after_a_stop(folder)
