"""The folder of a run: claimed once, gone on with after a stop or when more tasks have come, never mixed up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

import evertune
from evertune import costs
from evertune.engine import Runtime, read_json, write_atomic, write_json
from evertune.errors import RunError
from evertune.evaluation import AccuracyMatrix, Calibration, Protocol
from evertune.learner import Learner, LearnerFolder
from evertune.learner.folder import CURRENT
from evertune.learner.update import UPDATE, differences
from evertune.report import draw_run

if TYPE_CHECKING:
    from evertune.runs import Run

FORMER = "former_protocols"
"""In config.json: the hashes of the protocols before later tasks were added, oldest first."""

SHOWN = 5


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def learner(self) -> Path:
        """The folder of its learner."""
        return self.path / "learner"

    @contextmanager
    def alone(self, runtime: Runtime) -> Iterator[None]:
        """No other process learns or measures in this folder; StorageError at once if one does."""
        with ExitStack() as stack:
            lock = LearnerFolder(self.learner).lock()
            runtime.together(lambda: stack.enter_context(lock) if runtime.main else None)
            yield

    def open(
        self, protocol: Protocol, learner: Learner, names: list[str], *, task_incremental: bool = False
    ) -> tuple[AccuracyMatrix, int]:
        """Claim the folder, or find how far the same run has come: then ``learner`` becomes the one kept there. Gives
        what was measured, and the first stage that was not.

        A run is the same where nothing differs, or nothing but tasks that come after its own. As long as nothing was
        learned in it, another may take its place.
        """
        config = {
            "method": learner.method.name,
            "preset": learner.preset,
            "options": learner.method.config.as_dict(),
            "seeds": learner.seeds.as_dict(),
            "train_view": learner.train_view.describe(),
            "precision": learner.engine.runtime.precision,
            "protocol": protocol.hash,
            **({"task_incremental": True} if task_incremental else {}),
        }
        config = json.loads(json.dumps(config))
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: name a folder.")
        fresh = not file.exists()
        if fresh and self.path.exists() and any(self.path.iterdir()):
            raise RunError(f"{self.path} holds other files and no run: choose an empty or a new folder.")
        there = {} if fresh else read_json(file)
        before = None if fresh or there.get("protocol") == protocol.hash else self._protocol()
        begun = any((self.learner / name).exists() for name in (CURRENT, UPDATE))
        learner.engine.runtime.wait()  # all processes have looked before one of them writes
        if fresh:
            self._claim(config, protocol, learner)
            return AccuracyMatrix(), len(learner.history)
        former = there.pop(FORMER, [])
        differing = differences(there, config)
        if before is not None:
            differing = [text for text in differing if not text.startswith("protocol:")] + changes(before, protocol)
        if differing and not begun:
            self._claim(config, protocol, learner)
            return AccuracyMatrix(), len(learner.history)
        if differing:
            raise RunError(
                f"{self.path} holds a different run ({'; '.join(differing[:SHOWN])}). "
                "Choose another folder, or remove this one."
            )
        if before is not None:
            self._claim({**config, FORMER: [*former, there.get("protocol")]}, protocol, learner)
        return self._go_on(learner, names)

    def _protocol(self) -> Protocol:
        try:
            return Protocol.from_json((self.path / "protocol.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"{self.path / 'protocol.json'} cannot be read ({error.strerror}): restore or choose another folder."
            ) from error

    def _claim(self, config: dict[str, Any], protocol: Protocol, learner: Learner) -> None:
        """The configuration last: it names the protocol that is there by then."""

        def write() -> None:
            alone: AbstractContextManager[None] = nullcontext()
            if self.learner.exists():  # nobody may be learning there
                alone = LearnerFolder(self.learner).lock()
            with alone:
                write_json(self.path / "protocol.json", json.loads(protocol.to_json()))
                write_json(self.path / "config.json", config)

        runtime = learner.engine.runtime
        runtime.together(lambda: write() if runtime.main else None)

    def _go_on(self, learner: Learner, names: list[str]) -> tuple[AccuracyMatrix, int]:
        if not (self.learner / CURRENT).exists():
            return AccuracyMatrix(), len(learner.history)
        runtime = learner.engine.runtime
        kept = Learner.load(self.learner, learner.backbone, device=str(runtime.device), precision=runtime.precision)
        learned = [entry["task"] for entry in kept.history]
        matrix = self._matrix(len(learned))
        if learned != names[: len(learned)] or matrix.stages < len(learned) - 1:
            raise RunError(
                f"The learner in {self.path} has learned {', '.join(learned)}, which is not how this run goes on: it "
                "was taught something else. Choose another folder."
            )
        learner.resume(kept)
        # A stage may have been measured whose learner is not kept any more, and the last one may not have been yet.
        measured = min(len(learned), matrix.stages)
        return matrix.first(measured) if measured else AccuracyMatrix(), measured

    def _matrix(self, learned: int) -> AccuracyMatrix:
        """What was measured of so many tasks."""
        file = self.path / "matrix.json"
        if learned <= 1 and not file.exists():
            return AccuracyMatrix()
        try:
            return AccuracyMatrix.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror}): restore or start anew.") from error

    def keep(
        self,
        stage: int,
        matrix: AccuracyMatrix,
        learner: Learner,
        calibration: Calibration | None = None,
        by_task: Mapping[str, tuple[int, int]] | None = None,
        cost: Mapping[str, float] | None = None,
    ) -> None:
        """After a stage whose learner is saved: the matrix last, which says how many were measured."""
        if not learner.engine.runtime.main:
            return
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines()[:stage] if log.exists() else []
        entry = {**learner.history[-1], "phases": learner.phases}
        if calibration is not None:
            entry["calibration"] = calibration.as_dict()
        if by_task:
            entry["by_task"] = dict(by_task)
        if cost:
            entry["cost"] = dict(cost)
        write_atomic(log, ("\n".join([*lines, json.dumps(entry, ensure_ascii=False)]) + "\n").encode())
        write_atomic(self.path / "matrix.json", matrix.to_json().encode())

    def finish(self, result: Run, learner: Learner) -> None:
        if not learner.engine.runtime.main:
            return
        title = f"{learner.method.name} ({learner.preset}) on {learner.backbone.identity.name}"
        numbers: dict[str, Any] = {
            "summary": result.summary,
            "references": result.references,
            "cost": result.cost,
            "protocol": result.protocol.hash,
            "evertune": evertune.__version__,
            "pillow": PIL.__version__,
        }
        if calibration := self._calibration():
            numbers["calibration"] = calibration
        if result.by_task:
            numbers["by_task"] = result.by_task
        write_json(self.path / "summary.json", numbers)
        write_atomic(self.path / "report.txt", (result.report(title) + "\n").encode())
        draw_run(
            result.matrix, self.path / "accuracy.png", title, result.references, note=f"protocol {result.protocol.hash}"
        )

    def by_task(self) -> dict[str, tuple[int, int]]:
        """Right answers and test examples of the tasks in a joint one, as the last stage noted them."""
        noted = (self._log() or [{}])[-1].get("by_task", {})
        return {name: (right, total) for name, (right, total) in noted.items()}

    def cost(self) -> dict[str, float]:
        """What the whole run cost, as its log tells."""
        return costs.total(self._log())

    def _log(self) -> list[dict[str, Any]]:
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    def _calibration(self) -> list[dict[str, Any]]:
        """The expected calibration error, in percent, of each stage that has it in the log."""
        kept = [entry for entry in self._log() if "calibration" in entry]
        return [
            {"after": entry["task"], "expected_calibration_error": Calibration.from_dict(entry["calibration"]).error}
            for entry in kept
        ]


def changes(before: Protocol, now: Protocol) -> list[str]:
    """What ``now`` says otherwise than ``before``, later tasks aside; the first task that differs stands for all."""
    there, here = dict(before), dict(now)
    tasks, others = there["stream"].pop("tasks"), here["stream"].pop("tasks")
    grown = len(others) > len(tasks)
    for fields in (there, here) if grown else ():
        fields["stream"] = {k: v for k, v in fields["stream"].items() if k not in ("classes", "data")}
    found = [str(one) for one in Protocol(there).diff(Protocol(here))]
    for number, (old, new) in enumerate(zip(tasks, others, strict=False), start=1):
        if old != new:
            what = "other classes or examples" if old["name"] == new["name"] else f"here {new['name']!r}"
            return [*found, f"task {number}: there {old['name']!r}, {what}"]
    if len(others) < len(tasks):
        found.append(f"it has {len(tasks)} tasks, here are the first {len(others)} of them")
    return found
