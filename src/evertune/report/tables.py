"""Plain-text tables for a terminal or a log; accuracies in percent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evertune.evaluation import AccuracyMatrix, accuracy_curve

LABELS = {
    "final_accuracy_sample": "final accuracy, over test examples",
    "final_accuracy_task": "final accuracy, mean of tasks",
    "average_accuracy_sample": "average accuracy, over test examples",
    "average_accuracy_task": "average accuracy, mean of tasks",
    "forgetting_with_last_stage": "forgetting, last stage in the best",
    "forgetting_without_last_stage": "forgetting, last stage not in the best",
    "backward_transfer": "backward transfer",
    "task_identity_sample": "task found, over test examples",
    "task_identity_task": "task found, mean of tasks",
}

MOST_COLUMNS = 40
"""A table with more groups than this cannot be read; streams in small chunks have hundreds."""

QUANTITIES = {
    "final_accuracy": "final accuracy",
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
}


def matrix_table(matrix: AccuracyMatrix, part: str | None = None) -> str:
    """One row per stage, one column per group; then top-1 over all test examples seen and the mean of the groups seen.

    `part` is the primary one unless named; a dash marks a group without test examples, parentheses one whose task was
    yet to come. With very many stages there are some of the rows, and no columns of groups.
    """
    correct, totals = matrix.counts(part)
    over_samples = accuracy_curve(correct, totals, weight="sample")
    over_tasks = accuracy_curve(correct, totals, weight="task")
    if matrix.stages > MOST_COLUMNS:
        shown = np.unique(np.linspace(0, matrix.stages - 1, MOST_COLUMNS // 2).round().astype(int)).tolist()
        rows = [
            [str(stage + 1), _clip(matrix.names[stage]), _number(over_samples[stage]), _number(over_tasks[stage])]
            for stage in shown
        ]
        return _table(["after", "", "all", "mean"], rows, [f"of {matrix.stages}", "", "", ""])
    header = ["after", *(_clip(name) for name in matrix.names), "all", "mean"]
    body = [
        [
            _clip(name),
            *(_cell(matrix, stage, group, part) for group in range(matrix.stages)),
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


def conventions_table(printed: Mapping[str, Mapping[str, Any]], *, across: int = 6) -> str:
    """One column per convention, in blocks of `across`; `printed` is what `evertune.evaluation.what_would_print` gives.

    A blank is a number that the code base does not print, a dash one that needs what was not measured, which is said
    below. Values have the decimals they are printed with, two to four where they are not rounded.
    """
    names = list(printed)
    blocks = [names[start : start + across] for start in range(0, len(names), across)]
    tables = []
    for block in blocks:
        rows = [quantity for quantity in QUANTITIES if any(quantity in printed[name]["numbers"] for name in block)]
        body = [
            [QUANTITIES[quantity], *(_printed(printed[name]["numbers"].get(quantity)) for name in block)]
            for quantity in rows
        ]
        tables.append(_table(["percent", *block], body))
    reasons: dict[str, list[str]] = {}
    for name in names:
        for quantity, number in printed[name]["numbers"].items():
            if number["value"] is None:
                reasons.setdefault(f"{QUANTITIES[quantity]} {number['reason']}", []).append(name)
    missing = "\n".join(f"- {reason}: {', '.join(who)}" for reason, who in reasons.items())
    return "\n\n".join([*tables, *([missing] if missing else [])])


def formulas_text(printed: Mapping[str, Mapping[str, Any]]) -> str:
    """Source, formulas and note of each convention, one line each."""
    lines = []
    for name, told in printed.items():
        lines.append(f"{name}: {told['source']}")
        lines += [f"  {QUANTITIES[quantity]:18}{number['formula']}" for quantity, number in told["numbers"].items()]
        lines += [f"  {told['note']}"] if told["note"] else []
    return "\n".join(lines)


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


def assessment_table(numbers: Mapping[str, Any]) -> str:
    """What labelled examples say of a learner: `Assessment.as_dict`."""
    (low, high), found = numbers["interval"], numbers["task_found"]
    lines = [
        f"accuracy           {numbers['accuracy']:.2f} % ({numbers['correct']} of {numbers['total']}); "
        f"95 % interval {low:.2f} to {high:.2f}",
        f"mean confidence    {numbers['confidence']:.2f} %",
        f"calibration error  {numbers['calibration_error']:.2f} (ECE, in percent)",
    ]
    if found is not None:
        lines.append(f"task found         {100 * found['correct'] / found['total']:.2f} %")
    blocks = ["\n".join(lines), _share_table("class", numbers["classes"])]
    if numbers["tasks"]:
        blocks.append(_share_table("task that brought it", numbers["tasks"]))
    return "\n\n".join(blocks)


def _share_table(what: str, shares: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [_clip(s["name"], 40), str(s["total"]), str(s["correct"]), _number(100 * s["correct"] / s["total"], 2)]
        for s in shares
    ]
    return _table([what, "examples", "correct", "%"], rows)


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


def _cell(matrix: AccuracyMatrix, stage: int, group: int, part: str | None) -> str:
    if group > stage:
        return f"({_number(matrix.accuracy(stage, group, part))})" if matrix.measured(stage, group, part) else ""
    return _number(matrix.accuracy(stage, group, part))


def _printed(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return ""
    value, digits = number["value"], number["digits"]
    if value is None:
        return "-"
    if digits is None:
        digits = max(2, len(f"{value:.4f}".rstrip("0").partition(".")[2]))
    return f"{value:.{digits}f}"


def _number(value: float, places: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def _clip(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
