"""The temperature that turns scores into probabilities (Guo et al. 2017): one number for a whole learner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evertune.errors import DataError

Floats = NDArray[np.float64]

_WIDEST = 1e4
"""How far from the spread of the scores a temperature is looked for, up and down."""


@dataclass(frozen=True)
class Temperature:
    """What scores are divided by, from how many examples it was found, and how many tasks were known then."""

    value: float
    tasks: int
    examples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def tell(self, tasks: int) -> str:
        """One line for a learner that knows so many tasks by now.

        >>> Temperature(0.25, 2, 100).tell(3)
        'temperature 0.25, from 100 examples after task 2 of 3'
        """
        since = "" if tasks == self.tasks else f" after task {self.tasks} of {tasks}"
        return f"temperature {self.value:.4g}, from {self.examples} examples{since}"


def softmax(scores: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities [N, K] of scores [N, K] over ``temperature``; −∞ gives 0."""
    raised = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


def fit_temperature(scores: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature of least mean negative log likelihood of the true classes [N] under scores [N, K].

    If every answer is right, the likelihood grows without end towards temperature 0. Then it is the one at which the
    mean confidence is (N + 1) / (N + 2), which is what N right answers of N let one expect of the next (Laplace's rule
    of succession).

    Raises
    ------
    DataError
        There are no examples.
    """
    from scipy.optimize import brentq, minimize_scalar

    if not len(scores):
        raise DataError("There are no examples to calibrate on: give some that were not learned from.")
    below = scores - scores.max(axis=1, keepdims=True)  # [N, K], 0 for the answer
    spread = float(-below.mean()) or 1.0
    low, high = np.log(spread / _WIDEST), np.log(spread * _WIDEST)
    own = below[np.arange(len(truth)), truth]

    def loss(log: float) -> float:
        heat = np.exp(log)
        return float(np.mean(np.log(np.exp(below / heat).sum(axis=1)) - own / heat))

    def excess(log: float) -> float:
        """Of the mean confidence over what may be expected."""
        return float(np.mean(1 / np.exp(below / np.exp(log)).sum(axis=1))) - (len(truth) + 1) / (len(truth) + 2)

    if (scores.argmax(axis=1) == truth).all() and excess(low) > 0 > excess(high):
        return float(np.exp(brentq(excess, low, high)))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))
