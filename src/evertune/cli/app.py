"""The commands: each parses, calls the library and prints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune import __version__
from evertune.cli import options as o
from evertune.cli.commands import Command, Group, note, stoppable
from evertune.cli.memory import keep_freed_memory
from evertune.errors import ConfigError, RunError, StorageError, nearest

if TYPE_CHECKING:
    from evertune import AccuracyMatrix, Learner, Stream, Task
    from evertune.streams import Source

app = typer.Typer(
    name="evertune",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

DATA_HELP = (
    "An .npz file with x_train, y_train, x_test, y_test; a folder or .zip of train/<class>/<image> and "
    "test/<class>/<image>, of <class>/<image> (a fifth is then held out for testing), or with an index.csv; or a data "
    "set by name: digits, cifar100, flowers102 ..."
)


KERNEL = "Kernel"


def main() -> None:
    """The ``evertune`` command."""
    # Threads that spin while they wait cost several times the work beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    app(prog_name="evertune")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"evertune {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nStart here:\n  evertune demo                               a minute, no download\n"
    "  evertune run --data digits --no-flip\n  evertune methods safe\n  evertune run --help"
)
def evertune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Frozen pre-trained transformers that keep learning.

    A frozen backbone turns an image into a feature; a small tuning steers it; statistics are kept instead of data.
    Tasks are learned one after the other, without the data of those before.
    """


@app.command(
    cls=Command,
    epilog="\b\nExample:\n  evertune demo --out runs/demo\n\nThe same run by hand:\n\n\b\n"
    "  evertune run --data digits --first 2 --increment 2 --order-seed none --crop-scale 0.6 1.0 --no-flip \\\n"
    "      --set lambda_cos=24 --set epochs=5 --set follow_epochs=2 --set follow_horizon=2 --out runs/digits",
)
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Run folder. An earlier demo in it is replaced, nothing else is.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = Path("runs/demo"),
    device: o.Device = "auto",
    quiet: o.Quiet = False,
) -> None:  # fmt: skip
    """Watch SAFE learn the ten digits, two at a time.

    Everything is on board: scikit-learn's handwritten digits and the embedded backbone. After each task the accuracy
    over all digits seen so far is printed (of the mixture, and of the slow and fast learner alone); at the end the
    accuracy matrix, with the nearest mean of the frozen features as floor and a ridge on all data at once as reference.
    """
    with stoppable("Nothing to tidy up: the next demo starts afresh."):
        from evertune.cli.demo import run_demo

        run_demo(out, typer.echo, device=device, progress=not quiet)


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
        _tell_skipped(train, test)
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
        say = _speaker(learner)
        narrator = Narrator(stream, learner, _silent if quiet else say)
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


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune methods\n  evertune methods safe\n  evertune methods ranpac | less",
)
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.", show_default=False)] = None,
) -> None:
    """List the methods, or explain one with all its options.

    With NAME: every option, the value it has and what it does; the presets, and the tunings with their own options.
    """
    from evertune.cli.explain import explain_method, list_methods

    typer.echo(list_methods() if name is None else explain_method(name))


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
            "--data", "-d", metavar="DATA", help="The images of one task: a folder or .zip of <class>/<image>, all of "
            "it for training; with train/ and test/ above the classes the test images are used to report an accuracy. "
            "Or an .npz file or a data set by name, as for 'evertune run'.", rich_help_panel=o.DATA,
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="class|domain", help="class: there must be new classes. domain: there need not be.",
            rich_help_panel=o.DATA,
        ),
    ] = "class",
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
            "--crop-scale": crop_scale,
            "--flip": flip,
            "--test-resize": test_resize,
            "--seed": seed,
        }
        known = _require_home(folder)
        changed = [option for option, value in given.items() if value is not None]
        if known and changed:
            raise ConfigError(
                f"{folder} holds a learner, for which {', '.join(changed)} was settled when it was new: leave that "
                "out, or name another folder for a new learner."
            )
        chosen = {} if known else o.method_options(method or "safe", preset, settings, batch)
        task = _task(data, kind, skip_bad, data_root, download)
        _tell_skipped(task.train)
        if known:
            learner = o.kept_learner(
                folder,
                weights,
                precision=precision,
                device=device,
                workers=workers,
                eval_batch=eval_batch,
                progress=not quiet,
            )
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
                precision=precision,
                device=device,
                workers=workers,
                eval_batch=eval_batch,
                progress=not quiet,
            )
        reports = learner.learn(task)
        learner.save(folder)
        _tell_learned(learner, task, sum(report.seconds for report in reports), folder)


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
        home = folder / "learner" if not _is_learner(folder) and _is_learner(folder / "learner") else folder
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


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune diagnose runs/demo\n"
    "  evertune diagnose runs/safe-photos --per-task 128 --sketch 4096\n"
    "  evertune diagnose runs/mine --against runs/other --out figures/",
)
def diagnose(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", metavar="DATA", help="The data of the run, where it is elsewhere now.",
            show_default="where it was", rich_help_panel=o.DATA,
        ),
    ] = None,
    data_root: o.DataRoot = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|test", help="Which images of each task.", rich_help_panel=o.DATA)
    ] = "train",
    per_task: Annotated[
        int, typer.Option("--per-task", metavar="N", help="Images of each task, of its classes in turn.",
        rich_help_panel=o.DATA),
    ] = 32,
    outputs: Annotated[
        int,
        typer.Option(
            "--outputs", metavar="N", help="Scores of more classes are projected on so many random directions.",
            rich_help_panel=KERNEL,
        ),
    ] = 8,
    sketch: Annotated[
        int | None,
        typer.Option(
            "--sketch", metavar="N", help="Project the Jacobian on N dimensions as it is made: less memory, and an "
            "error that is estimated and told.", show_default="exact", rich_help_panel=KERNEL,
        ),
    ] = None,
    memory: Annotated[
        float,
        typer.Option(
            "--memory", metavar="GIB", help="What the kernel may take; a request beyond is refused beforehand.",
            rich_help_panel=KERNEL,
        ),
    ] = 4.0,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", min=0, help="Of the choice of images, the directions and the sketch.",
            rich_help_panel=KERNEL,
        ),
    ] = 0,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="RUN", help="Another run, whose kernel is drawn beside, on its own data.",
            rich_help_panel=KERNEL,
        ),
    ] = None,
    weights: o.Weights = None,
    device: o.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="For the kernel, the numbers and the picture.",
            show_default="RUN/diagnosis", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
) -> None:  # fmt: skip
    """See how the tasks of a run interfere in its learner.

    The empirical tangent kernel of the learner's tuning parameters, on images of every task: how large and how rich it
    is within each task, how much the tasks overlap in it, and what its linear model predicts of forgetting and
    generalisation. docs/diagnostics.md explains every number.
    """
    with stoppable("Nothing was written."):
        from evertune.cli.origin import open_origin
        from evertune.diagnostics import Diagnosis, kernel_drift
        from evertune.diagnostics import diagnose as diagnose_learner
        from evertune.report import draw_kernel
        from evertune.runs import stream_of

        def diagnosed(run_folder: Path, data: str | None) -> Diagnosis:
            stream = stream_of(run_folder, *open_origin(run_folder, data, data_root))
            learner = o.kept_learner(run_folder / "learner", weights, device=device, precision="fp32")
            found = diagnose_learner(
                learner,
                stream[: len(learner.history)],
                per_task=per_task,
                outputs=outputs,
                split=split,
                sketch=sketch,
                memory=int(memory * 2**30),
                seed=seed,
            )
            for text in found.notes:
                note(text)
            typer.echo(f"{found.report()}\n")
            return found

        _require_run(folder)
        if against is not None:
            _require_run(against)
        home = out or folder / "diagnosis"
        mine = diagnosed(folder, data)
        views = {mine.learner: mine.view()}
        if against is not None:
            other = diagnosed(against, None)
            other.save(home / "against")
            _tell_drift(kernel_drift(mine, other), scaled_alike=mine.numbers["method"] == other.numbers["method"])
            alike = mine.learner == other.learner
            names = (str(folder), str(against)) if alike else (mine.learner, other.learner)
            views = dict(zip(names, (mine.view(), other.view()), strict=True))
        mine.save(home)
        title = (
            f"Tangent kernel of {mine.title}" if len(views) == 1 else f"Tangent kernels on {mine.numbers['backbone']}"
        )
        draw_kernel(views, home / "kernel.png", title)
        typer.echo(f"picture     {home / 'kernel.png'}")
        typer.echo(f"numbers     {home / 'diagnosis.json'}   (the kernel itself is beside it)")


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

    _require_kind(kind)
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


def _task(data: str, kind: str, skip_bad: bool, data_root: Path | None, download: bool) -> Task:
    """All of ``data`` as one task."""
    from evertune import Task, open_data

    _require_kind(kind)
    path = Path(data).expanduser()
    if path.is_dir() or path.suffix.lower() == ".zip":
        return Task.from_folder(path, kind=kind, skip_bad=skip_bad)  # type: ignore[arg-type]
    train, test = open_data(data, skip_bad=skip_bad, root=data_root, download=download)
    return Task(0, path.stem, train, test if len(test) else None, kind=kind)  # type: ignore[arg-type]


def _require_kind(kind: str) -> None:
    if kind not in ("class", "domain"):
        raise ConfigError(f"--kind {kind} does not exist. {nearest(kind, ('class', 'domain'))}")


def _is_learner(folder: Path) -> bool:
    return (folder / "learner.json").is_file()


def _require_run(folder: Path) -> None:
    if not (folder / "config.json").is_file() or not _is_learner(folder / "learner"):
        raise RunError(f"{folder} holds no run that has learned a task: name the folder that 'evertune run' wrote.")


def _require_home(folder: Path) -> bool:
    """Whether ``folder`` holds a learner; StorageError or RunError where one does not belong."""
    inside_run = _is_learner(folder) and (folder.resolve().parent / "config.json").exists()
    if _is_learner(folder) and not inside_run:
        return True
    if inside_run:
        raise RunError(
            f"{folder} is part of a run, whose numbers belong to it: copy it to a place of its own and teach the copy."
        )
    if _is_learner(folder / "learner"):
        raise RunError(
            f"{folder} is a run folder, whose learner belongs to its numbers: copy {folder / 'learner'} to a place of "
            "its own and teach the copy."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} holds other files and no learner: name an empty or a new folder.")
    return False


def _tell_skipped(*sources: Source) -> None:
    skipped = sorted({file for source in sources for file in source.skipped})
    for file in skipped:
        note(f"left out {file}")


def _tell_drift(tasks: list[dict[str, float]] | None, *, scaled_alike: bool) -> None:
    """How far the second of two kernels of the same images is from the first; scores of two methods differ in scale."""
    if tasks is None:
        note("the two runs differ in images or classes: how far one kernel is from the other cannot be said")
        return
    told = {"centred alignment": "alignment"} | ({"kernel drift": "drift"} if scaled_alike else {})
    shown = [f"{words} {', '.join(f'{task[key]:.2f}' for task in tasks)}" for words, key in told.items()]
    typer.echo(f"from the first kernel to the second, task by task: {'; '.join(shown)}\n")


def _tell_learned(learner: Learner, task: Task, seconds: float, folder: Path) -> None:
    from evertune.cli.narrate import listed

    say = _speaker(learner)
    new = learner.history[-1]["new_classes"]
    what = f"new: {listed(new)}" if new else "no new class"
    say(f"learned task {len(learner.history)} from {len(task.train)} images ({what}) in {seconds:.1f} s")
    if task.test is not None:
        (correct, total), *_ = learner.evaluate(task.test).values()
        say(f"on its test images, among all classes known: {100 * correct / total:.2f} % ({correct} of {total})")
    say(f"{folder} knows {len(learner.classes)} classes: {listed(learner.classes)}")


def _speaker(learner: Learner) -> Callable[[str], None]:
    """Prints, in the first of several processes."""
    return typer.echo if learner.engine.runtime.main else _silent


def _silent(text: str) -> None:
    pass
