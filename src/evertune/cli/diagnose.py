"""``evertune diagnose``: see how the tasks of a run interfere in its learner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, note, stoppable
from evertune.cli.folders import require_run
from evertune.cli.root import app

KERNEL = "Kernel"


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
        from evertune.cli.origin import open_stream
        from evertune.diagnostics import Diagnosis, kernel_drift
        from evertune.diagnostics import diagnose as diagnose_learner
        from evertune.report import draw_kernel

        def diagnosed(run_folder: Path, data: str | None) -> Diagnosis:
            stream = open_stream(run_folder, data, data_root)
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

        require_run(folder)
        if against is not None:
            require_run(against)
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


def _tell_drift(tasks: list[dict[str, float]] | None, *, scaled_alike: bool) -> None:
    """How far the second of two kernels of the same images is from the first; scores of two methods differ in scale."""
    if tasks is None:
        note("the two runs differ in images or classes: how far one kernel is from the other cannot be said")
        return
    told = {"centred alignment": "alignment"} | ({"kernel drift": "drift"} if scaled_alike else {})
    shown = [f"{words} {', '.join(f'{task[key]:.2f}' for task in tasks)}" for words, key in told.items()]
    typer.echo(f"from the first kernel to the second, task by task: {'; '.join(shown)}\n")
