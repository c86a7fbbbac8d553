"""Runs read from their folders and put side by side: rows, means with intervals, differences in pairs."""

from __future__ import annotations

from evertune.comparison.comparing import METRICS, Comparison, chosen_metrics, compare
from evertune.comparison.kept import KeptRun, completed_options, is_run, metric_names
from evertune.comparison.records import read_records, write_records
from evertune.comparison.rows import By, Row

__all__ = [
    "METRICS",
    "By",
    "Comparison",
    "KeptRun",
    "Row",
    "chosen_metrics",
    "compare",
    "completed_options",
    "is_run",
    "metric_names",
    "read_records",
    "write_records",
]
