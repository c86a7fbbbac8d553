"""Plain-text tables for a terminal or a log; accuracies in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evertune.evaluation import AccuracyMatrix, accuracy_curve

LABELS = {
    "final_accuracy_sample": "final accuracy, over test examples",
    "final_accuracy_task": "final accuracy, mean of tasks",
    "average_accuracy_sample": "average accuracy, over test examples",
    "average_accuracy_task": "average accuracy, mean of tasks",
    "forgetting_with_last_stage": "forgetting, last stage in the best",
    "forgetting_without_last_stage": "forgetting, last stage not in the best",
    "backward_transfer": "backward transfer",
}


def matrix_table(matrix: AccuracyMatrix, part: str | None = None) -> str:
    """One row per stage, one column per group; then top-1 over all test examples seen and the mean of the groups seen.

    `part` is the primary one unless named; a dash marks a group without test examples.
    """
    correct, totals = matrix.counts(part)
    over_samples = accuracy_curve(correct, totals, weight="sample")
    over_tasks = accuracy_curve(correct, totals, weight="task")
    header = ["after", *(_clip(name) for name in matrix.names), "all", "mean"]
    body = [
        [
            _clip(name),
            *(_number(matrix.accuracy(stage, group, part)) if group <= stage else "" for group in range(matrix.stages)),
            _number(over_samples[stage]),
            _number(over_tasks[stage]),
        ]
        for stage, name in enumerate(matrix.names)
    ]
    footer = ["examples", *(str(total) for total in totals), str(totals.sum()), ""]
    return _table(header, body, footer)


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """One row per metric, one column per part; `summary` is what `evertune.evaluation.summary` returns."""
    parts = list(summary)
    metrics = list(dict.fromkeys(metric for values in summary.values() for metric in values))
    body = [
        [LABELS.get(metric, metric), *(_number(summary[part].get(metric, math.nan), places=2) for part in parts)]
        for metric in metrics
    ]
    return _table(["percent", *parts], body)


def kernel_table(numbers: Mapping[str, Any]) -> str:
    """One row per task of what `evertune.diagnose` found: its own kernel, and its overlap with each task."""
    tasks, gaps = numbers["tasks"], numbers["gaps"]["tasks"]
    header = [
        "task",
        "images",
        "trace",
        "eff. rank",
        "alignment",
        "drift",
        "overlap 1",
        *map(str, range(2, len(tasks) + 1)),
    ]
    body = [
        [
            _clip(task["name"]),
            str(task["images"]),
            f"{task['trace']:.3g}",
            _number(task["effective_rank"]),
            _number(gap["alignment"], places=3),
            _number(gap["drift"], places=3),
            *(_number(value, places=2) for value in row),
        ]
        for task, gap, row in zip(tasks, gaps, numbers["overlap"], strict=True)
    ]
    return _table(header, body)


def _table(header: Sequence[str], body: Sequence[Sequence[str]], footer: Sequence[str] | None = None) -> str:
    rows = [header, *body, *([footer] if footer else [])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(1, rule)
    if footer:
        lines.insert(-1, rule)
    return "\n".join(lines)


def _number(value: float, places: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def _clip(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
