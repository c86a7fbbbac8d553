"""The folder of a run: claimed once, gone on with after a stop or when more tasks have come, never mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

import evertune
from evertune.engine import PhaseReport, read_json, write_atomic, write_json
from evertune.errors import RunError
from evertune.evaluation import AccuracyMatrix, Calibration, Protocol
from evertune.learner import Learner
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

    def open(
        self, protocol: Protocol, learner: Learner, names: list[str], *, task_incremental: bool = False
    ) -> AccuracyMatrix:
        """Claim the folder, or find how far the same run has come: then ``learner`` becomes the one kept there.

        A run is the same where nothing differs, or nothing but tasks that come after its own.
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
        learner.engine.runtime.wait()  # all processes have looked before one of them writes
        if fresh:
            self._claim(config, protocol, learner)
            return AccuracyMatrix()
        former = there.pop(FORMER, [])
        differing = _differences(there, config)
        if before is not None:
            differing = [text for text in differing if not text.startswith("protocol:")] + changes(before, protocol)
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
        if learner.engine.runtime.main:
            write_json(self.path / "protocol.json", json.loads(protocol.to_json()))
            write_json(self.path / "config.json", config)

    def _go_on(self, learner: Learner, names: list[str]) -> AccuracyMatrix:
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
        # A stage may have been measured whose learner was not kept any more.
        return matrix.first(len(learned)) if learned else AccuracyMatrix()

    def keep(
        self,
        stage: int,
        matrix: AccuracyMatrix,
        learner: Learner,
        reports: list[PhaseReport],
        calibration: Calibration | None = None,
    ) -> None:
        """After a task: matrix and log before the learner, whose file says how far the run has come."""
        if not learner.engine.runtime.main:
            return
        write_atomic(self.path / "matrix.json", matrix.to_json().encode())
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines()[:stage] if log.exists() else []
        entry = {**learner.history[-1], "phases": [vars(r) for r in reports]}
        if calibration is not None:
            entry["calibration"] = calibration.as_dict()
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
            "pillow": PIL.__version__,
        }
        if calibration := self._calibration():
            numbers["calibration"] = calibration
        write_json(self.path / "summary.json", numbers)
        write_atomic(self.path / "report.txt", (result.report(title) + "\n").encode())
        draw_run(
            result.matrix, self.path / "accuracy.png", title, result.references, note=f"protocol {result.protocol.hash}"
        )

    def _calibration(self) -> list[dict[str, Any]]:
        """The expected calibration error, in percent, of each stage that has it in the log."""
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        kept = [entry for entry in map(json.loads, lines) if "calibration" in entry]
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


def _differences(there: dict[str, Any], here: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted(set(there) | set(here)):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} there, {b} here")
    return found
