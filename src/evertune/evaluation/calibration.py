"""Whether a classifier that says 80 % is right 80 % of the time: sums per bin of confidence, and the error they show.

Confidence is the largest softmax probability of the scores at temperature 1 unless another is given. Methods that
answer with cosines, distances or a regression on one-hot targets give scores, not log-probabilities: their softmax is
whatever scale the scores happen to have, and its calibration error says whether the scores can be used as
probabilities as they are, not how good the method is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evertune.errors import DataError

BINS = 15
"""The usual number, of Guo et al. 2017."""

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sums over the examples whose confidence lies in each bin (edges[b], edges[b+1]]; the first bin is closed.

    Parameters
    ----------
    edges
        [B + 1], from 0 to 1.
    counts, correct, confidence
        [B]: examples, right answers, and the sum of confidences.

    Examples
    --------
    >>> first = Calibration.measure([0.9, 0.9, 0.6], [True, True, False], bins=2)
    >>> both = first + Calibration.measure([0.4], [True], bins=2)
    >>> both.counts.tolist(), round(both.error, 1)
    ([1, 3], 25.0)
    """

    edges: Floats
    counts: Whole
    correct: Whole
    confidence: Floats

    @classmethod
    def measure(
        cls, confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, adaptive: bool = False
    ) -> Calibration:
        """From the confidence [N] of each answer, 0 to 1, and whether it was right [N].

        The bins are equally wide, or with ``adaptive`` hold about equally many of these examples: their edges are
        quantiles, so examples of one confidence stay together and ties leave fewer bins.

        Raises DataError where a confidence is no probability or the lengths differ.
        """
        confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
        if confidence.ndim != 1 or confidence.shape != right.shape or bins < 1:
            raise DataError(
                f"confidence has shape {confidence.shape}, right {right.shape}, in {bins} bins; "
                "calibration needs one of each per example, and a bin."
            )
        impossible = ~((confidence >= 0) & (confidence <= 1 + 1e-6))  # NaN too; a float32 softmax may sum to 1 + 1e-7
        if impossible.any():
            row = int(np.argmax(impossible))
            raise DataError(f"row {row}: confidence {confidence[row]} is no probability; give numbers from 0 to 1.")
        confidence = confidence.clip(max=1)
        edges = np.linspace(0, 1, bins + 1)
        if adaptive and len(confidence):
            edges = np.unique(np.concatenate([[0.0], np.quantile(confidence, edges[1:-1]), [1.0]]))
        where = np.searchsorted(edges[1:-1], confidence, side="left")
        return cls(
            edges,
            np.bincount(where, minlength=len(edges) - 1).astype(np.int64),
            np.bincount(where[right], minlength=len(edges) - 1).astype(np.int64),
            np.bincount(where, weights=confidence, minlength=len(edges) - 1).astype(np.float64),
        )

    @classmethod
    def of_scores(
        cls, scores: ArrayLike, truth: ArrayLike, *, temperature: float = 1.0, bins: int = BINS, adaptive: bool = False
    ) -> Calibration:
        """From scores [N, K] (−∞ for a class that is no candidate) and the true class [N] of each row.

        Raises DataError where a row has no finite score, or NaN, or the temperature is not positive.
        """
        scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth)
        if scores.ndim != 2 or truth.shape != scores.shape[:1] or not temperature > 0:
            raise DataError(
                f"scores have shape {scores.shape}, truth {truth.shape}, temperature is {temperature}; "
                "calibration needs [N, K], [N] and a positive temperature."
            )
        best = scores.max(axis=1, initial=-np.inf)
        if not np.isfinite(best).all():
            row = int(np.argmin(np.isfinite(best)))
            raise DataError(f"row {row}: its best score is {best[row]}; scores must be numbers.")
        # The largest softmax probability is 1 over the sum of exp of the distances from the best score.
        confidence = 1 / np.exp((scores - best[:, None]) / temperature).sum(axis=1)
        return cls.measure(confidence, scores.argmax(axis=1) == truth, bins=bins, adaptive=adaptive)

    @property
    def total(self) -> int:
        """Examples in all bins."""
        return int(self.counts.sum())

    @property
    def error(self) -> float:
        """Expected calibration error in percent: Σ_b n_b/N |accuracy_b − confidence_b|; NaN without examples.

        Over equally wide bins this is ECE (Guo et al. 2017), over adaptive ones its adaptive form.
        """
        return float(np.sum(self.counts * self._gaps) / self.total) if self.total else float("nan")

    @property
    def largest_gap(self) -> float:
        """The largest |accuracy_b − confidence_b| of a bin in percent ("MCE"); NaN without examples."""
        return float(self._gaps.max()) if self.total else float("nan")

    def table(self) -> list[dict[str, float]]:
        """The reliability diagram: one row per bin that holds examples, accuracy and mean confidence in percent."""
        return [
            {
                "from": float(self.edges[b]),
                "to": float(self.edges[b + 1]),
                "examples": int(self.counts[b]),
                "accuracy": 100 * float(self.correct[b] / self.counts[b]),
                "confidence": 100 * float(self.confidence[b] / self.counts[b]),
            }
            for b in np.flatnonzero(self.counts)
        ]

    def __add__(self, other: Calibration) -> Calibration:
        """The sums over both; DataError where their bins differ."""
        if not np.array_equal(self.edges, other.edges):
            raise DataError("calibrations with different bins cannot be added; measure both with the same equal bins.")
        return Calibration(
            self.edges, self.counts + other.counts, self.correct + other.correct, self.confidence + other.confidence
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """What `as_dict` gave; DataError where it is damaged."""
        try:
            read = cls(
                edges=np.asarray(values["edges"], dtype=np.float64),
                counts=np.asarray(values["counts"], dtype=np.int64),
                correct=np.asarray(values["correct"], dtype=np.int64),
                confidence=np.asarray(values["confidence"], dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no calibration: {error}; measure it again.") from error
        bins = (len(read.edges) - 1,)
        if {read.counts.shape, read.correct.shape, read.confidence.shape} != {bins} or (
            (read.correct < 0) | (read.correct > read.counts)
        ).any():
            raise DataError("this is no calibration: its sums do not fit its bins; measure it again.")
        return read

    @property
    def _gaps(self) -> Floats:
        """|accuracy − mean confidence| of each bin in percent, 0 where it is empty."""
        gaps: Floats = 100 * np.abs(self.correct - self.confidence) / np.maximum(self.counts, 1)
        return gaps
