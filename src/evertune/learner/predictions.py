"""What a learner says of images or texts: labels, probabilities, and the task it takes each to be of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evertune.errors import ConfigError, DataError, StorageError, StreamError
from evertune.learner.temperature import softmax
from evertune.learner.told import Told, classes_of_tasks, task_numbers
from evertune.streams import Source
from evertune.streams.unlabelled import Images, unlabelled

if TYPE_CHECKING:
    from evertune.backbones import Passes
    from evertune.learner.learner import Learner

DIGITS = 6
"""Behind the point, of probabilities that are written down; float32 has no more."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers for N examples over K classes.

    Parameters
    ----------
    classes
        The K names, in the order of the columns.
    probabilities
        Float32 [N, K]; each row sums to 1. How far they can be taken at their word: :meth:`Learner.calibrate`.
    labels
        The most likely class of each example; None where the learner abstained.
    tasks
        The task that each was taken to be of, for information; or the one that was told. None where the method does
        not ask itself that.

    Examples
    --------
    >>> said = Predictions(("cat", "dog"), np.array([[0.25, 0.75]], np.float32), ["dog"], None)
    >>> said.confidence.tolist(), said.top(2)
    ([0.75], [[('dog', 0.75), ('cat', 0.25)]])
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    labels: list[str | None]
    tasks: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """The largest probability of each example, [N]."""
        largest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return largest

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """The ``k`` most likely classes of each example with their probabilities, the likeliest first."""
        if k < 1:
            raise ConfigError(f"top is {k}; ask for at least 1 class.")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.classes[i], float(row[i])) for i in best]
            for best, row in zip(order.tolist(), self.probabilities, strict=True)
        ]

    def as_rows(self, top: int = 1) -> list[dict[str, Any]]:
        """Plain values for JSON, one object for each example: label, confidence, task (if known), and the ``top``."""
        tasks = [{} if self.tasks is None else {"task": task} for task in self.tasks or [""] * len(self)]
        return [
            {"label": label, "confidence": round(best[0][1], DIGITS), **task}
            | {"top": [{"label": name, "probability": round(share, DIGITS)} for name, share in best]}
            for label, task, best in zip(self.labels, tasks, self.top(top), strict=True)
        ]


def require_confidence(abstain: float | None) -> None:
    """ConfigError unless ``abstain`` is None or a probability below 1."""
    number = isinstance(abstain, int | float | np.floating) and not isinstance(abstain, bool)
    if abstain is not None and not (number and 0 <= abstain < 1):
        raise ConfigError(
            f"abstain is {abstain!r}; give the confidence below which there is no answer, from 0 to below 1."
        )


def classify(learner: Learner, images: Images, task: Told, abstain: float | None) -> Predictions:
    """One pass over ``images``; see :meth:`Learner.classify`."""
    require_confidence(abstain)
    return predictions(learner, *ask(learner, readable(learner, images), task), abstain)


def predictions(learner: Learner, scores: Tensor, numbers: Tensor | None, abstain: float | None = None) -> Predictions:
    """What scores [N, K] and numbers of tasks [N] mean, as :func:`ask` gives them."""
    exact = scores.double().numpy()
    best, shares = exact.argmax(axis=1), softmax(exact, temperature_of(learner)).astype(np.float32)
    tied = np.flatnonzero(shares.argmax(axis=1) != best)  # by rounding: the answer stays the likeliest
    shares[tied, best[tied]] = np.nextafter(shares[tied].max(axis=1), np.float32(2))
    doubted = shares.max(axis=1) < (abstain or 0.0)
    return Predictions(
        learner.classes,
        shares,
        [None if doubt else learner.classes[i] for i, doubt in zip(best.tolist(), doubted.tolist(), strict=True)],
        None if numbers is None else _names(learner, numbers),
    )


def _names(learner: Learner, numbers: Tensor) -> list[str]:
    """Of tasks [N]; a folder from others may tell of fewer tasks than its tensors tell apart."""
    names = [str(entry["task"]) for entry in learner.history]
    if len(numbers) and int(numbers.max()) >= len(names):
        raise StorageError(
            f"An example is taken to be of task {int(numbers.max())}, and the learner's history has {len(names)}: its "
            "folder is damaged; restore it from a copy."
        )
    return [names[t] for t in numbers.tolist()]


def temperature_of(learner: Learner) -> float:
    """What the scores are divided by: 1 until the learner is calibrated."""
    return 1.0 if learner.temperature is None else learner.temperature.value


def ask(learner: Learner, source: Source, task: Told = None, *, remember: bool = False) -> tuple[Tensor, Tensor | None]:
    """Scores [N, K] and the number of the task [N], told or inferred (None if neither), in one pass of the backbone.

    ``remember`` as in :meth:`Engine.compute`. A told task leaves −∞ for the classes of others.
    """
    method = learner.method
    told = None if task is None else task_numbers(learner.history, task, len(source))

    def read(passes: Passes) -> dict[str, Tensor]:
        if told is not None:
            return {"scores": method.told(passes, told[passes.rows])}
        scores, tasks = next(iter(method.scores(passes).values())), method.identify(passes)
        return {"scores": scores} if tasks is None else {"scores": scores, "tasks": tasks}

    method.eval()
    found = learner.engine.compute(source, method.branches, read, remember=remember)
    if told is None:
        return found["scores"], found["tasks"].long() if "tasks" in found else None
    others = ~classes_of_tasks(learner.history, learner.classes)[told]
    return found["scores"].masked_fill(others, -torch.inf), told


def readable(learner: Learner, images: Images) -> Source:
    """``images`` as a source that the learner can be asked about.

    Raises
    ------
    StreamError
        The learner has learned nothing.
    DataError
        There are no images, or they are none.
    """
    if not learner.classes:
        raise StreamError("This learner has learned nothing yet: call learn(task) first.")
    source = unlabelled(images, learner.backbone.modality)
    if not len(source):
        raise DataError(f"{source.name}: there are no {learner.backbone.modality}s.")
    return source


def truth_of(learner: Learner, test: Source) -> tuple[Source, Tensor]:
    """``test`` and the place among the learner's classes of each of its labels, [N].

    Raises
    ------
    StreamError
        It holds classes that were never learned.
    """
    unknown = [name for name in test.present() if name not in learner.classes]
    if unknown:
        raise StreamError(
            f"{test.name} holds classes that were never learned: {', '.join(unknown[:10])}. "
            "Learn them or leave them out."
        )
    source = readable(learner, test)
    position = {name: i for i, name in enumerate(learner.classes)}
    return source, torch.tensor([position.get(name, -1) for name in test.classes])[torch.as_tensor(test.labels)]
