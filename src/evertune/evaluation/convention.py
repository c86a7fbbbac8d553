"""What a convention is: which numbers a code base prints for a run, each with its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from evertune.evaluation.matrix import Counts
from evertune.evaluation.rates import Rates, mean
from evertune.evaluation.transfer import NotMeasured

Quantity = Literal["final_accuracy", "average_accuracy", "forgetting", "backward_transfer", "forward_transfer"]
Curve = Callable[["Measured"], Rates]


@dataclass(frozen=True)
class Measured:
    """What the formulas read: counts (−1 above the diagonal where nobody measured) and accuracies before learning."""

    correct: Counts
    totals: Counts
    baseline: Sequence[float] | float | None = None


@dataclass(frozen=True)
class Number:
    """One number: its formula in plain text, how it is computed (in percent), and the decimals it is printed with."""

    formula: str
    compute: Callable[[Measured], float]
    digits: int | None = None

    def printed(self, measured: Measured) -> dict[str, Any]:
        """The value as it would be printed, or None and the reason, beside the formula."""
        told: dict[str, Any] = {"value": None, "digits": self.digits, "formula": self.formula}
        try:
            value = self.compute(measured)
        except NotMeasured as reason:
            return told | {"reason": str(reason)}
        if math.isnan(value):
            return told | {"reason": "needs test examples, or cells of tasks to come that were not measured"}
        return told | {"value": _rounded(value, self.digits)}


@dataclass(frozen=True)
class Convention:
    """The numbers of one code base or paper.

    Parameters
    ----------
    name, source
        What it is called here, and the files that compute it, or the paper.
    accuracy
        Formula of A(t), the accuracy after stage t.
    curve
        A(t) of all stages [T], in percent, NaN where it cannot be said.
    averaged
        Whether the mean of A(t) over the stages is printed.
    digits
        Decimals the accuracies are printed with; None where they are not rounded.
    others
        Forgetting and transfer, as far as they are printed.
    note
        What else has to be known to compare with it.
    """

    name: str
    source: str
    accuracy: str
    curve: Curve
    averaged: bool = False
    digits: int | None = None
    others: Mapping[Quantity, Number] = field(default_factory=dict)
    note: str = ""

    @property
    def numbers(self) -> dict[Quantity, Number]:
        """All numbers it prints at the end of a run."""
        curve = self.curve
        final = Number(f"A(T), {self.accuracy}", lambda measured: float(curve(measured)[-1]), self.digits)
        average = Number(f"1/T Σ_t A(t), {self.accuracy}", lambda measured: mean(curve(measured)), self.digits)
        return {"final_accuracy": final, **({"average_accuracy": average} if self.averaged else {}), **self.others}

    def printed(self, measured: Measured) -> dict[str, Any]:
        """All that it would have printed: the curve (None where it cannot be said) and the numbers, as plain values."""
        curve = [None if np.isnan(value) else _rounded(value, self.digits) for value in self.curve(measured)]
        numbers = {quantity: number.printed(measured) for quantity, number in self.numbers.items()}
        return {"source": self.source, "note": self.note, "curve": curve, "numbers": numbers}


def _rounded(value: float, digits: int | None) -> float:
    return float(value) if digits is None else float(f"{value:.{digits}f}") + 0.0  # no minus before zero
