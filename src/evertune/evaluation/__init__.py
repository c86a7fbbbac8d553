"""What a run achieved: integer counts, every metric under a named convention, and the protocol a number belongs to.

All accuracies of this room are percentages, 0 to 100.
"""

from __future__ import annotations

from evertune.evaluation.calibration import Calibration
from evertune.evaluation.conventions import CONVENTIONS, what_would_print
from evertune.evaluation.intervals import Interval, Paired, binomial_interval, interval, paired
from evertune.evaluation.matrix import AccuracyMatrix
from evertune.evaluation.metrics import (
    Weight,
    accuracy_curve,
    area_under_curve,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    summary,
)
from evertune.evaluation.protocol import Protocol, require_same
from evertune.evaluation.protocol_likeness import likeness
from evertune.evaluation.protocol_presets import PRESETS, ProtocolPreset
from evertune.evaluation.protocol_text import Difference

__all__ = [
    "CONVENTIONS",
    "PRESETS",
    "AccuracyMatrix",
    "Calibration",
    "Difference",
    "Interval",
    "Paired",
    "Protocol",
    "ProtocolPreset",
    "Weight",
    "accuracy_curve",
    "area_under_curve",
    "average_accuracy",
    "backward_transfer",
    "binomial_interval",
    "final_accuracy",
    "forgetting",
    "interval",
    "likeness",
    "paired",
    "require_same",
    "summary",
    "what_would_print",
]
