"""The result of a run: how many test examples of each group were right after each stage."""

from __future__ import annotations

import json
import math
import operator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError, StorageError, nearest

Counts = NDArray[np.int64]

FORMAT = "evertune.accuracy-matrix/1"
FORMAT_AHEAD = "evertune.accuracy-matrix/2"
"""The second format is written only where a cell above the diagonal was measured: its rows go on past it."""

NOT_MEASURED = -1
"""In `AccuracyMatrix.counts`, a cell above the diagonal that nobody measured."""


class AccuracyMatrix:
    """Correct answers per stage and group, for one or more parts of a method.

    Stage t is the state after task t; group i holds the test examples of task i (its classes, or its domain). A stage
    is evaluated on the groups seen so far, i ≤ t, in class- and domain-incremental streams alike. Both count from 0.

    Groups whose task is yet to come, i > t, may be recorded too (`ahead`): where domains come one after the other, a
    stage can be asked about the next ones, and forward transfer is defined. Classes never learned have no score, so in
    a class-incremental stream those cells are 0 by construction and need not be measured.

    A *part* is a predictor of its own inside the method ("mixture", "slow", "fast"); parts appear as they are recorded,
    and the `primary` one is the method's answer. All parts are judged on the same test examples.

    >>> matrix = AccuracyMatrix()
    >>> matrix.record(0, 0, correct=9, total=10)
    >>> matrix.record(1, 0, correct=8, total=10)
    >>> matrix.record(1, 1, correct=5, total=5)
    >>> matrix.accuracy(1, 0)
    80.0
    """

    def __init__(self, primary: str = "model") -> None:
        self.primary = primary
        self._correct: dict[str, dict[tuple[int, int], int]] = {}
        self._totals: dict[int, int] = {}
        self._names: dict[int, str] = {}

    def record(
        self,
        stage: SupportsIndex,
        group: SupportsIndex,
        correct: SupportsIndex,
        total: SupportsIndex,
        *,
        part: str | None = None,
        name: str | None = None,
        ahead: bool = False,
    ) -> None:
        """Enter one cell; a cell entered again is replaced.

        `total` is the group's number of test examples: the same at every stage and for every part, 0 for a task without
        test data. `part` is the primary one unless named, `name` what tables and pictures call the group. Only with
        `ahead` may the group be one that the stage has not seen.

        Raises DataError where counts are impossible or contradict what was recorded before.
        """
        stage, group, correct, total = _whole(stage=stage, group=group, correct=correct, total=total)
        where = f"stage {stage}, group {group}"
        if min(stage, group) < 0 or (group > stage and not ahead):
            raise DataError(
                f"{where}: a stage is evaluated on the groups seen so far; record group 0 to the stage's own. A group "
                "whose task is yet to come needs ahead=True."
            )
        if not 0 <= correct <= total:
            raise DataError(
                f"{where}: {correct} correct of {total} test examples is impossible; check what was counted."
            )
        if self._totals.get(group, total) != total:
            raise DataError(
                f"{where}: {total} test examples, but {self._totals[group]} when the group was recorded first; "
                "evaluate every stage and part on the same test data."
            )
        if name is not None and self._names.get(group, name) != name:
            raise DataError(f"{where}: named {name!r}, but {self._names[group]!r} before; keep one name per group.")
        self._totals[group] = total
        if name is not None:
            self._names[group] = name
        self._correct.setdefault(self.primary if part is None else part, {})[stage, group] = correct

    @property
    def parts(self) -> tuple[str, ...]:
        """The recorded parts, the primary one first."""
        return tuple(sorted(self._correct, key=lambda part: part != self.primary))

    @property
    def stages(self) -> int:
        """The number of stages T recorded so far, over all parts."""
        return max((stage + 1 for cells in self._correct.values() for stage, _ in cells), default=0)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per group: "task 1", "task 2", … where none was given."""
        return tuple(self._names.get(group, f"task {group + 1}") for group in range(self.stages))

    def accuracy(self, stage: int, group: int, part: str | None = None) -> float:
        """Accuracy in percent of one cell, NaN for a group without test examples."""
        cells = self._cells(part)
        if (stage, group) not in cells:
            raise DataError(f"stage {stage}, group {group} of part {part or self.primary!r} was not recorded.")
        total = self._totals[group]
        return 100.0 * cells[stage, group] / total if total else math.nan

    def counts(self, part: str | None = None, *, ahead: bool = False) -> tuple[Counts, Counts]:
        """The arguments of every metric: correct [T, T] (stage, group) and totals [T].

        Above the diagonal ``correct`` is zero; with ``ahead`` it is what was measured there, and −1 elsewhere.

        Raises DataError where a cell on or below the diagonal is missing: a metric over half a stage would mislead.
        """
        cells, stages = self._cells(part), self.stages
        seen = [(stage, group) for stage in range(stages) for group in range(stage + 1)]
        missing = [f"({stage}, {group})" for stage, group in seen if (stage, group) not in cells]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DataError(
                f"part {part or self.primary!r} lacks the cells (stage, group) {', '.join(missing[:5])}{more}; "
                "record all groups seen at each stage, for every part."
            )
        correct = np.full((stages, stages), NOT_MEASURED if ahead else 0, dtype=np.int64)
        for (stage, group), count in cells.items():
            if group <= stage or (ahead and group < stages):
                correct[stage, group] = count
        return correct, np.array([self._totals[group] for group in range(stages)], dtype=np.int64)

    def measured(self, stage: int, group: int, part: str | None = None) -> bool:
        """Whether this cell was recorded."""
        return (stage, group) in self._cells(part)

    def first(self, stages: int) -> AccuracyMatrix:
        """The matrix as it was after so many stages, every part and cell above the diagonal included."""
        early = AccuracyMatrix(self.primary)
        for part, cells in self._correct.items():
            for (stage, group), count in cells.items():
                if stage < stages:
                    name = self._names.get(group)
                    early.record(stage, group, count, self._totals[group], part=part, name=name, ahead=True)
        return early

    def to_json(self) -> str:
        """One line of JSON holding whole numbers and names only; null marks a cell not recorded."""
        ahead = any(group > stage for cells in self._correct.values() for stage, group in cells)
        groups = range(max(self._totals, default=-1) + 1)
        rows = {
            part: [
                [cells.get((stage, group)) for group in (groups if ahead else range(stage + 1))]
                for stage in range(self.stages)
            ]
            for part, cells in self._correct.items()
        }
        return json.dumps(
            {
                "format": FORMAT_AHEAD if ahead else FORMAT,
                "primary": self.primary,
                "names": [self._names.get(group) for group in groups],
                "totals": [self._totals.get(group) for group in groups],
                "correct": rows,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> AccuracyMatrix:
        """The matrix that `to_json` wrote; StorageError where the text is damaged or of another format."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content["format"] not in (FORMAT, FORMAT_AHEAD):
                raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT!r}")
            ahead = content["format"] == FORMAT_AHEAD
            for name in (content["primary"], *filter(None, content["names"])):
                if not isinstance(name, str):
                    raise ValueError(f"{name!r} is not a name")
            matrix = cls(content["primary"])
            for part, rows in content["correct"].items():
                for stage, row in enumerate(rows):
                    for group, correct in enumerate(row):
                        if correct is not None:
                            total, name = content["totals"][group], content["names"][group]
                            matrix.record(stage, group, correct, total, part=part, name=name, ahead=ahead)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, DataError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise StorageError(
                f"this is no whole accuracy matrix: {reason}. Evaluate again, or use an intact copy."
            ) from error
        return matrix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccuracyMatrix) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"AccuracyMatrix({self.stages} stages; parts: {', '.join(self.parts) or 'none yet'})"

    def _cells(self, part: str | None) -> dict[tuple[int, int], int]:
        if not self._correct:
            raise DataError("the accuracy matrix is empty; record at least one stage first.")
        part = self.primary if part is None else part
        if part not in self._correct:
            raise ConfigError(f"the accuracy matrix has no part {part!r}. {nearest(part, self._correct)}")
        return self._correct[part]


def _whole(**values: SupportsIndex) -> tuple[int, ...]:
    for name, value in values.items():
        if not hasattr(value, "__index__"):
            raise DataError(f"{name} must be a whole number, not {value!r}; record counts, not rates.")
    return tuple(operator.index(value) for value in values.values())
