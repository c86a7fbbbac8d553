"""What a run achieved: integer counts, every metric under a named convention, and the protocol a number belongs to.

All accuracies of this room are percentages, 0 to 100.
"""

from __future__ import annotations

from evertune.evaluation.matrix import AccuracyMatrix
from evertune.evaluation.metrics import (
    Weight,
    accuracy_curve,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    summary,
)
from evertune.evaluation.protocol import Protocol, require_same

__all__ = [
    "AccuracyMatrix",
    "Protocol",
    "Weight",
    "accuracy_curve",
    "average_accuracy",
    "backward_transfer",
    "final_accuracy",
    "forgetting",
    "require_same",
    "summary",
]
