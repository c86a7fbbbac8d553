"""A run: a stream learned task by task, measured after each, and kept in a folder."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evertune.engine import PhaseReport
from evertune.errors import ConfigError, RunError, StreamError
from evertune.evaluation import AccuracyMatrix, Calibration, Protocol, summary
from evertune.learner import Learner
from evertune.references import references as compute_references
from evertune.report import matrix_table, summary_table
from evertune.run_folder import RunFolder
from evertune.streams import Source, Stream, Task, make_stream
from evertune.streams.make import settings_of

TOLD = "within task"


@dataclass
class Run:
    """What came out: the integer matrix, the protocol, the references, and what it took."""

    matrix: AccuracyMatrix
    protocol: Protocol
    references: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    calibration: dict[int, Calibration] = field(default_factory=dict)
    """By stage, over all test examples seen; the stages that this call ran, and only if asked for."""

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """Every number under its convention's name, by part."""
        return summary(self.matrix)

    def report(self, title: str = "") -> str:
        """The matrix, the numbers and the references as text."""
        lines = [title] if title else []
        lines += [matrix_table(self.matrix), "", summary_table(self.summary)]
        if "router" in self.matrix.parts:
            lines += [
                "router: the task was found; oracle: the class, told the task; within task: among its classes only"
            ]
        elif TOLD in self.matrix.parts:
            lines += ["within task: the task is told, and the class found among its classes only"]
        lines += [f"{name} on the frozen backbone: {value:.2f}" for name, value in self.references.items()]
        lines += [f"protocol {self.protocol.hash}"]
        return "\n".join(lines)


def run(
    stream: Stream,
    learner: Learner,
    folder: str | os.PathLike[str] | None = None,
    *,
    references: bool = True,
    task_incremental: bool = False,
    ahead: bool = False,
    calibration: bool = False,
    versions: int | None = 2,
    checkpoint_every: float | None = None,
    restart: bool = False,
    on_phase: Callable[[int, PhaseReport], None] | None = None,
    on_stage: Callable[[int, AccuracyMatrix], None] | None = None,
) -> Run:
    """Learn every task of ``stream`` and evaluate after each on all tasks so far.

    With a ``folder`` the configuration, protocol, matrix, log, learner and picture are kept there, each file replaced
    whole; a run that stopped goes on where it was, inside a task too (:meth:`Learner.learn` with ``checkpoint_every``
    and ``restart``), and a run whose tasks are the first of ``stream`` goes on with the others. Of the learner's
    ``versions`` the newest stay, or all with None. Test data is only ever seen by the evaluation.

    A task without test data adds an empty group to the matrix. With ``task_incremental`` a part "within task" stands
    beside the answer: the class is found among those of its task, which is told. Methods that infer the task have it
    always.

    With ``ahead`` each stage is also asked about the tasks to come whose classes it knows (the next domains), for
    forward transfer. With ``calibration`` it is measured how far the confidence of the answers can be trusted after
    each stage, and kept in ``log.jsonl`` and ``summary.json``; adapted branches pass the test data once more for it.

    Raises
    ------
    RunError
        The folder holds a different run.
    StorageError
        The folder is in use or cannot be written, or the update in progress is damaged.
    StreamError
        There is no test data to evaluate on.
    """
    if not any(task.test is not None and len(task.test) for task in stream):
        kind = f"{stream[0].train.modality}s"
        raise StreamError(f"The stream has no test {kind}, so nothing can be measured; use Learner.learn instead.")
    for task in stream[len(learner.history) :]:  # what cannot be read is refused before anything is kept
        learner.engine.require(task.train, learner.train_view)
        if task.test is not None:
            learner.engine.require(task.test, learner.test_view)
    protocol = make_protocol(stream, learner)
    home = RunFolder(Path(folder)) if folder is not None else None
    matrix, first = AccuracyMatrix(), len(learner.history)
    kept: dict[str, Any] = {}
    alone: AbstractContextManager[None] = nullcontext()
    if home is not None:
        names = [task.name for task in stream]
        matrix, first = home.open(protocol, learner, names, task_incremental=task_incremental)
        kept = {"folder": home.learner, "keep": versions, "every": checkpoint_every, "restart": restart}
        alone = home.alone(learner.engine.runtime)
    started = time.perf_counter()
    trust: dict[int, Calibration] = {}
    with alone:
        for t in range(first, len(stream)):
            if t == len(learner.history):  # else it was saved and not measured before a stop
                told = None if on_phase is None else functools.partial(on_phase, t)
                learner.learn(stream[t], told, **kept)
            counts = _counts(stream, learner, t, task_incremental)
            if not matrix.parts:
                matrix = AccuracyMatrix(primary=next(iter(counts[0])))
            for j, by_part in enumerate(counts):
                for part, (correct, total) in by_part.items():
                    matrix.record(t, j, correct, total, part=part, name=stream[j].name)
            for j, task in enumerate(stream[t + 1 :] if ahead else (), start=t + 1):
                if task.test is not None and len(task.test) and set(task.test.present()) <= set(learner.classes):
                    for part, (correct, total) in learner.evaluate(task.test).items():
                        matrix.record(t, j, correct, total, part=part, name=task.name, ahead=True)
            if calibration and (trusted := _calibration(stream[: t + 1], learner)) is not None:
                trust[t] = trusted
            if home is not None:
                learner.engine.runtime.together(functools.partial(home.keep, t, matrix, learner, trust.get(t)))
            if on_stage is not None:
                on_stage(t, matrix)
    result = Run(matrix, protocol, seconds=time.perf_counter() - started, calibration=trust)
    if references:
        result.references = compute_references(learner, stream)
    if home is not None:
        home.finish(result, learner)
    return result


def _counts(stream: Stream, learner: Learner, stage: int, task_incremental: bool) -> list[dict[str, tuple[int, int]]]:
    """(correct, total) by part on every task so far; (0, 0) on one without tests."""
    found: list[dict[str, tuple[int, int]] | None] = []
    for j, task in enumerate(stream[: stage + 1]):
        measured = learner.evaluate(task.test, task=j) if task.test is not None and len(task.test) else None
        if measured is not None and not task_incremental and "router" not in measured:
            del measured[TOLD]
        found.append(measured)
    parts = next((measured for measured in found if measured is not None), None)
    if parts is None:  # nothing to measure yet: any example tells the parts
        parts = learner.evaluate(stream[stage].train.select([0]), task=stage)
        if not task_incremental and "router" not in parts:
            del parts[TOLD]
    return [dict.fromkeys(parts, (0, 0)) if measured is None else measured for measured in found]


def _calibration(tasks: Sequence[Task], learner: Learner) -> Calibration | None:
    """Over the test examples of all ``tasks``; None without any."""
    tested = [task.test for task in tasks if task.test is not None and len(task.test)]
    return functools.reduce(operator.add, map(learner.calibration, tested)) if tested else None


def make_protocol(stream: Stream, learner: Learner) -> Protocol:
    """All that the run's numbers depend on besides the method."""
    identity = learner.backbone.identity.as_dict()
    preprocessing = {k: identity.pop(k) for k in list(identity) if k not in ("name", "weights")}
    return Protocol(
        {
            "stream": stream.description(),
            "backbone": identity,
            "preprocessing": {**preprocessing, "precision": learner.engine.runtime.precision},
            "views": {"test": learner.test_view.describe()},
            "seeds": {"order": stream.settings.get("order_seed")},
            "metric": "top-1 over all classes seen, integer counts by task",
        }
    )


def stream_of(folder: str | os.PathLike[str], train: Source, test: Source) -> Stream:
    """The stream of the run in ``folder``, made again from its data.

    Raises
    ------
    RunError
        There is no run, its stream was not cut from one data set, or the data is not what the run learned from.
    """
    file = Path(folder) / "protocol.json"
    if not file.is_file():
        raise RunError(f"{folder} holds no run: name the folder that 'evertune run' wrote.")
    there = Protocol.from_json(file.read_text(encoding="utf-8"))["stream"]
    if set(there["data"]) != {"train", "test"}:
        raise RunError(f"The stream of {folder} was not cut from one data set: give its tasks to evertune.diagnose.")
    try:
        stream = make_stream(train, test, **settings_of(there))
    except (ConfigError, StreamError):  # other classes or domains
        stream = None
    if stream is None or stream.description()["tasks"] != there["tasks"]:
        raise RunError(f"{train.name} is not the data that the run in {folder} learned from: name that one.")
    return stream
