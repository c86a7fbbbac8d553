"""A run: a stream learned task by task, measured after each, and kept in a folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evertune
from evertune.engine import PhaseReport, read_json, write_atomic, write_json
from evertune.errors import RunError, StreamError
from evertune.evaluation import AccuracyMatrix, Protocol, summary
from evertune.learner import Learner
from evertune.references import references as compute_references
from evertune.report import draw_run, matrix_table, summary_table
from evertune.streams import Source, Stream


@dataclass
class Run:
    """What came out: the integer matrix, the protocol, the references, and what it took."""

    matrix: AccuracyMatrix
    protocol: Protocol
    references: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

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
        lines += [f"{name} on the frozen backbone: {value:.2f}" for name, value in self.references.items()]
        lines += [f"protocol {self.protocol.hash}"]
        return "\n".join(lines)


def run(
    stream: Stream,
    learner: Learner,
    folder: str | os.PathLike[str] | None = None,
    *,
    references: bool = True,
    on_phase: Callable[[int, PhaseReport], None] | None = None,
    on_stage: Callable[[int, AccuracyMatrix], None] | None = None,
) -> Run:
    """Learn every task of ``stream`` and evaluate after each on all tasks so far.

    With a ``folder`` the configuration, protocol, matrix, log, learner and picture are kept there, each file replaced
    whole; a run that stopped goes on after its last finished task. Test data is only ever seen by the evaluation.

    Raises
    ------
    RunError
        The folder holds a different run.
    StreamError
        A task has no test data to evaluate on.
    """
    for task in stream:
        if task.test is None or not len(task.test):
            raise StreamError(
                f"Task {task.name!r} has no test images, so nothing can be measured; use Learner.learn instead."
            )
    protocol = make_protocol(stream, learner)
    home = RunFolder(Path(folder)) if folder is not None else None
    matrix = AccuracyMatrix()
    if home is not None:
        matrix = home.open(protocol, learner, [task.name for task in stream])
    started = time.perf_counter()
    for t in range(len(learner.history), len(stream)):
        task = stream[t]
        reports = learner.learn(task, None if on_phase is None else lambda report, t=t: on_phase(t, report))  # type: ignore[misc]
        for j in range(t + 1):
            test = stream[j].test
            assert test is not None
            for part, (correct, total) in learner.evaluate(test, task=j).items():
                if not matrix.parts:
                    matrix = AccuracyMatrix(primary=part)
                matrix.record(t, j, correct, total, part=part, name=stream[j].name)
        if home is not None:
            home.keep(t, matrix, learner, reports)
        if on_stage is not None:
            on_stage(t, matrix)
    result = Run(matrix, protocol, seconds=time.perf_counter() - started)
    if references:
        result.references = compute_references(learner, stream)
    if home is not None:
        home.finish(result, learner)
    return result


def make_protocol(stream: Stream, learner: Learner) -> Protocol:
    """All that the run's numbers depend on besides the method."""
    identity = learner.backbone.identity.as_dict()
    preprocessing = {k: identity.pop(k) for k in ("preprocessing", "mean", "std", "input_size")}
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
    if "order_seed" not in there or set(there["data"]) != {"train", "test"}:
        raise RunError(f"The stream of {folder} was not cut from one data set: give its tasks to evertune.diagnose.")
    try:
        stream = _cut(there, train, test)
    except StreamError:  # other classes or domains
        stream = None
    if stream is None or stream.description()["tasks"] != there["tasks"]:
        raise RunError(f"{train.name} is not the data that the run in {folder} learned from: name that one.")
    return stream


def _cut(described: dict[str, Any], train: Source, test: Source) -> Stream:
    if described["kind"] == "domain":
        return Stream.domain_incremental(train, test, order=[task["name"] for task in described["tasks"]])
    settings = {name: described[name] for name in ("first", "increment", "train_per_class")}
    return Stream.class_incremental(train, test, order=described["classes"], **settings)


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, protocol: Protocol, learner: Learner, names: list[str]) -> AccuracyMatrix:
        """Claim the folder, or find where the same run stopped: then ``learner`` becomes the one kept there."""
        config = {
            "method": learner.method.name,
            "preset": learner.preset,
            "options": learner.method.config.as_dict(),
            "seeds": learner.seeds.as_dict(),
            "train_view": learner.train_view.describe(),
            "precision": learner.engine.runtime.precision,
            "protocol": protocol.hash,
        }
        config = json.loads(json.dumps(config))
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: name a folder.")
        fresh = not file.exists()
        if fresh and self.path.exists() and any(self.path.iterdir()):
            raise RunError(f"{self.path} holds other files and no run: choose an empty or a new folder.")
        learner.engine.runtime.wait()  # all processes have looked before one of them writes
        if fresh:
            if learner.engine.runtime.main:
                write_json(self.path / "protocol.json", json.loads(protocol.to_json()))
                write_json(file, config)
            return AccuracyMatrix()
        there = read_json(file)
        differing = _differences(there, config)
        if differing:
            raise RunError(
                f"{self.path} holds a different run ({'; '.join(differing[:5])}). "
                "Choose another folder, or remove this one."
            )
        if not (self.path / "learner" / "learner.json").exists():
            return AccuracyMatrix()
        try:
            matrix = AccuracyMatrix.from_json((self.path / "matrix.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"{self.path / 'matrix.json'} cannot be read ({error.strerror}): restore or start anew."
            ) from error
        runtime = learner.engine.runtime
        kept = Learner.load(
            self.path / "learner", learner.backbone, device=str(runtime.device), precision=runtime.precision
        )
        learned = [entry["task"] for entry in kept.history]
        if learned != names[: len(learned)] or matrix.stages < len(learned):
            raise RunError(
                f"The learner in {self.path} has learned {', '.join(learned)}, which is not how this run goes on: it "
                "was taught something else. Choose another folder."
            )
        learner.resume(kept)
        return _first_stages(matrix, len(learner.history))

    def keep(self, stage: int, matrix: AccuracyMatrix, learner: Learner, reports: list[PhaseReport]) -> None:
        """After a task: matrix and log before the learner, whose file says how far the run has come."""
        if not learner.engine.runtime.main:
            return
        write_atomic(self.path / "matrix.json", matrix.to_json().encode())
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines()[:stage] if log.exists() else []
        entry = {**learner.history[-1], "phases": [vars(r) for r in reports]}
        write_atomic(log, ("\n".join([*lines, json.dumps(entry, ensure_ascii=False)]) + "\n").encode())
        learner.save(self.path / "learner")

    def finish(self, result: Run, learner: Learner) -> None:
        if not learner.engine.runtime.main:
            return
        title = f"{learner.method.name} ({learner.preset}) on {learner.backbone.identity.name}"
        numbers: dict[str, Any] = {
            "summary": result.summary,
            "references": result.references,
            "protocol": result.protocol.hash,
            "evertune": evertune.__version__,
        }
        write_json(self.path / "summary.json", numbers)
        write_atomic(self.path / "report.txt", (result.report(title) + "\n").encode())
        draw_run(
            result.matrix, self.path / "accuracy.png", title, result.references, note=f"protocol {result.protocol.hash}"
        )


def _differences(there: dict[str, Any], here: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted(set(there) | set(here)):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} there, {b} here")
    return found


def _first_stages(matrix: AccuracyMatrix, stages: int) -> AccuracyMatrix:
    """The matrix without stages that were measured but whose learner was not kept any more."""
    if matrix.stages <= stages or not matrix.parts:
        return matrix if stages else AccuracyMatrix()
    kept = AccuracyMatrix(primary=matrix.primary)
    for part in matrix.parts:
        correct, totals = matrix.counts(part)
        for t in range(stages):
            for j in range(t + 1):
                kept.record(t, j, int(correct[t, j]), int(totals[j]), part=part, name=matrix.names[j])
    return kept
