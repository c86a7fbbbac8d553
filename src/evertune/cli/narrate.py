"""What a run says while it learns, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evertune.evaluation import AccuracyMatrix, final_accuracy

if TYPE_CHECKING:
    from evertune import Learner, Stream
    from evertune.engine import PhaseReport
    from evertune.runs import Run

NAMES_SHOWN = 6


class Narrator:
    """A line before the run, one after each task, and the results, all given to ``say``."""

    def __init__(self, stream: Stream, learner: Learner, say: Callable[[str], None]) -> None:
        self.stream, self.learner, self.say = stream, learner, say
        self.last: int | None = None  # the last task known to be learned
        self.clock = time.perf_counter()

    @property
    def title(self) -> str:
        backbone = self.learner.backbone.identity
        return f"{self.learner.method.name} ({self.learner.preset}) on {backbone.name} at {backbone.extent}"

    @property
    def kind(self) -> str:
        return self.learner.backbone.modality

    def begin(self) -> None:
        train = sum(len(task.train) for task in self.stream)
        test = sum(len(task.test) for task in self.stream if task.test is not None)
        tasks = f"{len(self.stream)} task{'s' if len(self.stream) > 1 else ''}"
        tasks = f"{len(self.stream.merged)} tasks at once" if self.stream.merged else tasks
        self.say(self.title)
        self.say(f"{tasks}, {len(self.stream.classes)} classes, {train} training and {test} test {self.kind}s")

    def on_phase(self, stage: int, report: PhaseReport) -> None:
        if self.last is None and stage > 0:
            self.say(f"going on after task {stage} of {len(self.stream)}, as kept in the run folder")
            self.last = stage - 1

    def on_stage(self, stage: int, matrix: AccuracyMatrix) -> None:
        seconds, self.clock, self.last = time.perf_counter() - self.clock, time.perf_counter(), stage
        task = self.stream[stage]
        classes = f"{len(task.classes)} classes" if task.kind == "domain" else listed(task.classes)
        what = classes if task.kind == "class" else f"{task.name}: {classes}"
        if not matrix.counts()[1].any():
            self.say(f"task {stage + 1} of {len(self.stream)} ({what}): no test {self.kind}s so far, {seconds:.1f} s")
            return
        accuracies = {part: final_accuracy(*matrix.counts(part), weight="sample") for part in matrix.parts}
        others = ", ".join(f"{part} {value:.2f}" for part, value in accuracies.items() if part != matrix.primary)
        self.say(
            f"task {stage + 1} of {len(self.stream)} ({what}): accuracy so far {accuracies[matrix.primary]:.2f} %"
            f"{f' ({others})' if others else ''}, {seconds:.1f} s"
        )

    def end(self, result: Run, folder: Path, seconds: float) -> list[str]:
        """The results, where their files are, and the time it all took."""
        again = ["this run was finished before: nothing was learned again"] if self.last is None else []
        asked = "IMAGE ..." if self.kind == "image" else "--text TEXT"
        return [
            *again,
            "",
            result.report(),
            "",
            f"run folder  {folder}",
            f"picture     {folder / 'accuracy.png'}",
            f"learner     {folder / 'learner'}   (evertune predict {folder} {asked})",
            f"time        {seconds:.1f} s",
        ]


def listed(names: Sequence[str]) -> str:
    """Names for one line.

    >>> listed(["cat", "dog"]), listed([str(i) for i in range(10)])
    ('cat, dog', '0, 1, 2, 3, 4, ... 10 classes')
    """
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: NAMES_SHOWN - 1])}, ... {len(names)} classes"
