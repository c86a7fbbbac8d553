"""``evertune learn``: teach a learner one more task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import require_home
from evertune.cli.root import app
from evertune.cli.tasks import task_of
from evertune.cli.telling import speaker, tell_skipped
from evertune.errors import ConfigError

if TYPE_CHECKING:
    from evertune import Learner, Task


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n"
    "  evertune learn kept/ --data monday/                 a new learner, on the embedded backbone\n"
    "  evertune learn kept/ --data tuesday.zip             it learns the classes of one more task\n"
    "  evertune learn kept/ --data night/ --kind domain    known classes, seen in another way\n"
    "  evertune predict kept/ photo.png",
)
def learn(
    folder: Annotated[
        Path, typer.Argument(help="Where the learner is kept, or is to be kept.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", metavar="DATA", help="One task: a folder or .zip of <class>/<image>, or a table of texts "
            "or image files, all of it for training; what says which examples are for testing (train/ and test/ above "
            "the classes, a split column) has an accuracy reported on those. Or any other data that 'evertune run' "
            "takes.", rich_help_panel=o.DATA,
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="class|domain|mixed", help="class: there must be new classes. domain, mixed: there need "
            "not be.",
            rich_help_panel=o.DATA,
        ),
    ] = "class",
    test: s.TestData = None,
    columns: s.Columns = None,
    encoding: s.Encoding = "utf-8",
    normalise_labels: s.NormaliseLabels = None,
    numbers_as_names: s.NumbersAsNames = False,
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
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Teach a learner one more task, and keep it.

    A folder without a learner gets a new one. What is chosen then (method, backbone, views, seed) stays for its life
    and need not be said again, but for --weights if its backbone came from a local file. If anything goes wrong, the
    learner in the folder is what it was before.
    """
    with stoppable(f"The learner in {folder} is what it was before; the same command starts this task again."):
        given = {
            "--method": method,
            "--preset": preset,
            "--set": settings or None,
            "--batch": batch,
            "--backbone": backbone,
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
        from evertune.streams.task import warn_if_alike

        known = require_home(folder)
        changed = [option for option, value in given.items() if value is not None]
        if known and changed:
            raise ConfigError(
                f"{folder} holds a learner, for which {', '.join(changed)} was settled when it was new: leave that "
                "out, or name another folder for a new learner."
            )
        chosen = {} if known else o.method_options(method or "safe", preset, settings, batch)
        reading = s.reading(
            columns,
            encoding,
            normalise_labels,
            numbers_as_names,
            False,
            skip_bad,
            follow_links,
            max_pixels,
            data_root,
        )
        task = task_of(data, kind, reading | {"test": test, "download": download})
        tell_skipped(task.train)
        runtime: dict[str, Any] = {
            "precision": precision,
            "device": device,
            "workers": workers,
            "pixels": pixels,
            "eval_batch": eval_batch,
            "cache": o.feature_cache(cache, cache_size),
            "progress": not quiet,
        }
        if known:
            learner = o.kept_learner(folder, weights, **runtime)
            warn_if_alike(task, learner.classes)
        else:
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
        reports = learner.learn(task)
        learner.save(folder)
        _tell_learned(learner, task, sum(report.seconds for report in reports), folder)


def _tell_learned(learner: Learner, task: Task, seconds: float, folder: Path) -> None:
    from evertune.cli.narrate import listed

    say = speaker(learner)
    kind, new = learner.backbone.modality, learner.history[-1]["new_classes"]
    what = f"new: {listed(new)}" if new else "no new class"
    say(f"learned task {len(learner.history)} from {len(task.train)} {kind}s ({what}) in {seconds:.1f} s")
    if task.test is not None:
        (correct, total), *_ = learner.evaluate(task.test).values()
        say(f"on its test {kind}s, among all classes known: {100 * correct / total:.2f} % ({correct} of {total})")
    say(f"{folder} knows {len(learner.classes)} classes: {listed(learner.classes)}")
