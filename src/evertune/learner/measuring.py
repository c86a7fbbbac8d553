"""How well a learner answers on labelled examples, and how far its confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evertune.errors import DataError, StreamError
from evertune.evaluation.calibration import Calibration
from evertune.evaluation.intervals import Interval, binomial_interval
from evertune.learner.predictions import ask, predictions, temperature_of, truth_of
from evertune.learner.temperature import Temperature, fit_temperature
from evertune.learner.told import classes_of_tasks, task_numbers
from evertune.streams import Source

if TYPE_CHECKING:
    from evertune.backbones import Passes
    from evertune.learner.learner import Learner


def evaluate(learner: Learner, test: Source, task: int | None) -> dict[str, tuple[int, int]]:
    """See :meth:`Learner.evaluate`."""
    source, truth = truth_of(learner, test)
    if task is not None:
        task_numbers(learner.history, task, 1)
    method = learner.method

    def read(passes: Passes) -> dict[str, Tensor]:
        parts = method.scores(passes)
        if task is None:
            return parts
        tasks = method.identify(passes)
        if tasks is None:
            told = next(iter(parts.values()))
        else:
            told = method.told(passes, torch.full_like(tasks, task))
            parts |= {"oracle": told, "router": tasks}
        elsewhere = ~classes_of_tasks(learner.history, learner.classes)[task].to(told.device)
        return parts | {"within task": told.masked_fill(elsewhere, -torch.inf)}

    parts = learner.engine.compute(source, method.branches, read, remember=True)
    inferred = parts.pop("router", None)
    correct = {name: int((scores.argmax(1) == truth).sum()) for name, scores in parts.items()}
    if inferred is not None:
        correct["router"] = int(torch.eq(inferred, task or 0).sum())
    return {name: (count, len(truth)) for name, count in correct.items()}


def calibration(learner: Learner, test: Source, temperature: float | None, bins: int, *, adaptive: bool) -> Calibration:
    """See :meth:`Learner.calibration`."""
    scores, truth = _answered(learner, test)
    temperature = temperature_of(learner) if temperature is None else temperature
    return Calibration.of_scores(scores, truth, temperature=temperature, bins=bins, adaptive=adaptive)


def fitted(learner: Learner, source: Source) -> tuple[Temperature, Calibration, Calibration]:
    """The temperature that ``source`` speaks for, and the calibration there under the learner's own and under it, all
    from one pass; see :meth:`Learner.calibrate`."""
    scores, truth = _answered(learner, source)
    found = Temperature(fit_temperature(scores, truth), tasks=len(learner.history), examples=len(truth))
    before, after = (
        Calibration.of_scores(scores, truth, temperature=t) for t in (temperature_of(learner), found.value)
    )
    return found, before, after


def _answered(learner: Learner, test: Source) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores [N, K] and the place [N] of each true class."""
    source, truth = truth_of(learner, test)
    return ask(learner, source, remember=True)[0].double().numpy(), truth.numpy()


@dataclass(frozen=True)
class Share:
    """How many of the examples of a class or a task were answered rightly."""

    name: str
    total: int
    correct: int


@dataclass(frozen=True, eq=False)
class Assessment:
    """What labelled examples say of a learner.

    ``confidence`` is the mean of the largest probabilities in percent. ``tasks`` groups the examples by the task that
    brought their class; it is empty where one task brought all. ``identity``: the examples whose inferred task knows
    their class; None where the method infers none.
    """

    total: int
    correct: int
    classes: tuple[Share, ...]
    tasks: tuple[Share, ...]
    calibration: Calibration
    confidence: float
    identity: Share | None

    @property
    def accuracy(self) -> Interval:
        """In percent, with Wilson's 95 % interval."""
        return binomial_interval(self.correct, self.total)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; shares and errors in percent."""
        accuracy = self.accuracy
        return {
            "total": self.total,
            "correct": self.correct,
            "accuracy": accuracy.mean,
            "interval": [accuracy.low, accuracy.high],
            "calibration_error": self.calibration.error,
            "confidence": self.confidence,
            "classes": [vars(share) for share in self.classes],
            "tasks": [vars(share) for share in self.tasks],
            "task_found": None if self.identity is None else vars(self.identity),
        }


def assess(learner: Learner, test: Source, task: str | int | None = None, *, known_only: bool = False) -> Assessment:
    """Ask the learner about all of ``test``, once.

    Parameters
    ----------
    task
        The task that all of them are known to belong to.
    known_only
        Leave out examples of classes that it does not know (of the ``task``, if that is told).

    Raises
    ------
    StreamError
        There are such classes, or no such task.
    DataError
        Nothing is left.
    """
    known = _candidates(learner, task)
    if known_only:
        test = test.select(test.rows_of(known))
        if not len(test):
            raise DataError(f"{test.name} holds no class that is known here: {', '.join(known[:10])}.")
    elif task is not None:
        _require_within(test, known, task)
    source, truth = truth_of(learner, test)
    scores, numbers = ask(learner, source, task)
    wanted, right = truth.numpy(), (scores.argmax(1) == truth).numpy()
    confidence = predictions(learner, scores, numbers).confidence
    identity = None
    if numbers is not None and task is None:
        found = classes_of_tasks(learner.history, learner.classes)[numbers, truth]
        identity = Share("task found", len(found), int(found.sum()))
    return Assessment(
        len(right),
        int(right.sum()),
        _shares(learner.classes, wanted, right),
        _by_task(learner, wanted, right),
        Calibration.measure(confidence, right),
        100 * float(confidence.mean(dtype=np.float64)),
        identity,
    )


def _candidates(learner: Learner, task: str | int | None) -> tuple[str, ...]:
    if task is None:
        return learner.classes
    (number,) = task_numbers(learner.history, task, 1).tolist()
    belongs = classes_of_tasks(learner.history, learner.classes)[number]
    return tuple(name for name, own in zip(learner.classes, belongs.tolist(), strict=True) if own)


def _require_within(test: Source, known: tuple[str, ...], task: str | int) -> None:
    others = [name for name in test.present() if name not in known]
    if others:
        raise StreamError(
            f"{test.name} holds classes that task {task!r} has not: {', '.join(others[:10])}. Leave them out, or do "
            "not tell the task."
        )


def _by_task(learner: Learner, wanted: np.ndarray, right: np.ndarray) -> tuple[Share, ...]:
    """By the task that brought the class; nothing where one task brought all."""
    brought = {name: number for number, entry in enumerate(learner.history) for name in entry["new_classes"]}
    owner = np.array([brought[name] for name in learner.classes])[wanted]
    return _shares([str(entry["task"]) for entry in learner.history], owner, right) if np.ptp(owner) else ()


def _shares(names: tuple[str, ...] | list[str], groups: np.ndarray, right: np.ndarray) -> tuple[Share, ...]:
    """Of the groups [N] that have examples."""
    totals, correct = (np.bincount(rows, minlength=len(names)) for rows in (groups, groups[right]))
    return tuple(Share(names[i], int(totals[i]), int(correct[i])) for i in np.flatnonzero(totals))
