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

from evertune import costs
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

SHOWN = 20
"""So many tasks of a joint stream are told apart in a report."""

Parts = dict[str, tuple[int, int]]
"""(correct, total) by part."""


@dataclass
class Run:
    """What came out: the integer matrix, the protocol, the references, and what it took."""

    matrix: AccuracyMatrix
    protocol: Protocol
    references: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    calibration: dict[int, Calibration] = field(default_factory=dict)
    """By stage, over all test examples seen; the stages that this call ran, and only if asked for."""
    by_task: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of a joint stream: right answers and test examples of each task that was put into its one, in their order."""
    cost: dict[str, float] = field(default_factory=dict)
    """By the names of :data:`evertune.costs.COSTS`; empty where a task, learned before, noted nothing."""

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
        rates = {name: 100 * right / total for name, (right, total) in self.by_task.items() if total}
        if rates:
            each = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()) + "; " if len(rates) <= SHOWN else ""
            lines += [f"by task, all learned at once: {each}mean {sum(rates.values()) / len(rates):.2f}"]
        lines += [f"{name} on the frozen backbone: {value:.2f}" for name, value in self.references.items()]
        lines += costs.told(self.cost)
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
    count: bool = False,
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

    A task without test data adds an empty group to the matrix. The one task of a joint stream is one group, and how the
    tasks in it did is told besides (:attr:`Run.by_task`). With ``task_incremental`` a part "within task" stands beside
    the answer: the class is found among those of its task, which is told. Methods that infer the task have it always.

    With ``ahead`` each stage is also asked about the tasks to come whose classes it knows (the next domains), for
    forward transfer. With ``calibration`` it is measured how far the confidence of the answers can be trusted after
    each stage, and kept in ``log.jsonl`` and ``summary.json``; adapted branches pass the test data once more for it.

    With ``count`` it is counted what learning and, after the last task, a prediction cost in passes of the plain
    backbone (:class:`evertune.engine.Meter`): on one batch of each phase, two where views of images come again.

    Raises
    ------
    RunError
        The folder holds a different run.
    StorageError
        The folder is in use or cannot be written, or the update in progress is damaged.
    StreamError
        There is no test data to evaluate on.
    ConfigError
        Passes are to be counted of which a cache saves some.
    """
    if count and learner.engine.disk is not None:
        raise ConfigError("What a cache of features saves would not be counted: leave out the cache, or the counting.")
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
    learner.engine.counts = count
    started = time.perf_counter()
    spent: list[dict[str, Any]] = []
    trust: dict[int, Calibration] = {}
    by_task: dict[str, tuple[int, int]] = {}
    with alone:
        for t in range(first, len(stream)):
            if t == len(learner.history):  # else it was saved and not measured before a stop
                told = None if on_phase is None else functools.partial(on_phase, t)
                learner.learn(stream[t], told, **kept)
            asked = time.perf_counter()
            measured = _measured(stream, learner, t)
            counts = _counts(stream, learner, measured, task_incremental)
            if not matrix.parts:
                matrix = AccuracyMatrix(primary=next(iter(counts[0])))
            for j, by_part in enumerate(counts):
                for part, (correct, total) in by_part.items():
                    matrix.record(t, j, correct, total, part=part, name=stream[j].name)
            for j, task in enumerate(stream[t + 1 :] if ahead else (), start=t + 1):
                if task.test is not None and len(task.test) and set(task.test.present()) <= set(learner.classes):
                    for part, (correct, total) in learner.evaluate(task.test).items():
                        matrix.record(t, j, correct, total, part=part, name=task.name, ahead=True)
            evaluating = time.perf_counter() - asked
            if calibration and (trusted := _calibration(stream[: t + 1], learner)) is not None:
                trust[t] = trusted
            by_task = {name: parts[matrix.primary] for name, parts in measured[t]} if stream.merged else {}
            last = count and t == len(stream) - 1
            cost = costs.of_task(learner, evaluating, _forwards(stream, learner) if last else None)
            spent.append({"examples": len(stream[t].train), "cost": cost})
            if home is not None:
                keep = functools.partial(home.keep, t, matrix, learner, trust.get(t), by_task, cost)
                learner.engine.runtime.together(keep)
            if on_stage is not None:
                on_stage(t, matrix)
    result = Run(matrix, protocol, seconds=time.perf_counter() - started, calibration=trust, by_task=by_task)
    result.cost = costs.total(spent) if home is None else home.cost()
    if references:
        result.references = compute_references(learner, stream)
    if home is not None:
        result.by_task = home.by_task()
        home.finish(result, learner)
    return result


def _measured(stream: Stream, learner: Learner, stage: int) -> list[list[tuple[str, Parts]]]:
    """The answers on every task so far that has tests, by its name; on a joint one, by those of the tasks in it."""
    return [
        [
            (part.name, learner.evaluate(part.test, task=j))
            for part in stream.merged or (task,)
            if part.test is not None and len(part.test)
        ]
        for j, task in enumerate(stream[: stage + 1])
    ]


def _counts(
    stream: Stream, learner: Learner, measured: Sequence[Sequence[tuple[str, Parts]]], task_incremental: bool
) -> list[Parts]:
    """The answers on every task so far; (0, 0) on one without tests."""
    found = [_total([parts for _, parts in those]) for those in measured]
    known = next((parts for parts in found if parts), None)
    if known is None:  # nothing to measure yet: any example tells the parts
        stage = len(measured) - 1
        known = learner.evaluate(stream[stage].train.select([0]), task=stage)
    names = [name for name in known if name != TOLD or task_incremental or "router" in known]
    return [{name: parts.get(name, (0, 0)) for name in names} for parts in found]


def _total(several: Sequence[Parts]) -> Parts:
    return {
        name: (sum(parts[name][0] for parts in several), sum(parts[name][1] for parts in several))
        for name in (several[0] if several else ())
    }


def _forwards(stream: Stream, learner: Learner) -> float:
    """Forward equivalents of a prediction, counted on the last test data there is."""
    tested = [task.test for task in stream if task.test is not None and len(task.test)]
    return learner.engine.forwards(learner.method, tested[-1])


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
