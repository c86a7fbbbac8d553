"""A comparison as text: for a terminal, as Markdown, and as CSV with one line per value."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from evertune.report.tables import _table

PLACES = 2
CSV_HEADER = (
    "row", "method", "preset", "part", "metric", "runs", "mean", "low", "high", "pairs", "difference",
    "difference_low", "difference_high", "t_test", "stored_bytes", "trained_at_once", "seconds",
)  # fmt: skip

Lines = tuple[list[str], list[list[str]]]


def comparison_table(numbers: Mapping[str, Any]) -> str:
    """The rows, the differences from the baseline, and what has to be known; `numbers` is `Comparison.numbers()`."""
    tables = [_table(*_means(numbers))]
    if differences := _differences(numbers):
        tables.append(_table(*differences))
    return "\n\n".join([*tables, "\n".join(_remarks(numbers))])


def comparison_markdown(numbers: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    tables = [_markdown(*_means(numbers))]
    if differences := _differences(numbers):
        tables.append(_markdown(*differences))
    return "\n\n".join([*tables, "\n".join(f"- {remark}" for remark in _remarks(numbers))])


def comparison_csv(numbers: Mapping[str, Any]) -> str:
    """A line for every row and metric, unrounded; what is not known is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in numbers["rows"]:
        for metric, told in row["metrics"].items():
            less = told["difference"] or {}
            writer.writerow(
                [
                    *(row[key] for key in ("name", "method", "preset", "part")),
                    metric,
                    len(row["runs"]),
                    *(told[key] for key in ("mean", "low", "high")),
                    *(less.get(key) for key in ("pairs", "mean", "low", "high", "t_test")),
                    *(row[key] for key in ("stored_bytes", "trained_at_once", "seconds")),
                ]
            )
    return file.getvalue()


def _means(numbers: Mapping[str, Any]) -> Lines:
    costs = {
        "stored": [_bytes(row["stored_bytes"]) for row in numbers["rows"]],
        "trained at once": [_count(row["trained_at_once"]) for row in numbers["rows"]],
        "seconds": [_count(row["seconds"]) for row in numbers["rows"]],
    }
    costs = {name: cells for name, cells in costs.items() if any(cell != "-" for cell in cells)}
    body = [
        [
            row["name"],
            str(len(row["runs"])),
            *(_spread(row["metrics"][metric]) for metric in numbers["metrics"]),
            *(cells[position] for cells in costs.values()),
        ]
        for position, row in enumerate(numbers["rows"])
    ]
    whose, names = _columns(numbers)
    return [f"percent{whose}", "runs", *names, *costs], body


def _differences(numbers: Mapping[str, Any]) -> Lines | None:
    rows = [row for row in numbers["rows"] if any(told["difference"] for told in row["metrics"].values())]
    body = []
    for row in rows:
        told = [row["metrics"][metric]["difference"] for metric in numbers["metrics"]]
        pairs = next(one["pairs"] for one in told if one)
        body.append([row["name"], str(pairs), *(_spread(one, sign="+") if one else "-" for one in told)])
    return ([f"less {numbers['baseline']}", "pairs", *_columns(numbers)[1]], body) if body else None


def _columns(numbers: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Whose numbers they are, and their names: where all are of one convention it is said once."""
    split = [metric.rpartition(".") for metric in numbers["metrics"]]
    if split[0][0] and len({convention for convention, _, _ in split}) == 1:
        return f", as {split[0][0]} prints them", [name for _, _, name in split]
    return "", list(numbers["metrics"])


def _remarks(numbers: Mapping[str, Any]) -> list[str]:
    remarks = []
    if any(told["low"] is not None for row in numbers["rows"] for told in row["metrics"].values()):
        remarks.append(
            f"±: half the {100 * numbers['level']:g} % interval of the mean over runs (Student's t), of a difference "
            "over pairs"
        )
    else:
        remarks.append("one run in each row: how far another seed would be from it cannot be said")
    if numbers["pairs"]:
        remarks.append(f"paired by class order and seed: {'; '.join(numbers['pairs'])}")
    elif len(numbers["rows"]) > 1:
        remarks.append("no class order and seed is in all rows")
    unknown = [m for m in numbers["metrics"] if all(row["metrics"][m]["mean"] is None for row in numbers["rows"])]
    if unknown:
        remarks.append(f"known in no row: {', '.join(unknown)} ('evertune metrics RUN' says why)")
    hashes = list(dict.fromkeys(run["protocol"] for row in numbers["rows"] for run in row["runs"]))
    remarks.append(f"protocol{'s' if len(hashes) > 1 else ''} {', '.join(hashes)}")
    parts = {row["part"] for row in numbers["rows"]}
    remarks.append(f"answered by {', '.join(sorted(parts))}")
    return [*remarks, *numbers["notes"], *(f"left out: {text}" for text in numbers["left_out"])]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _spread(told: Mapping[str, Any], sign: str = "") -> str:
    """A mean and half its interval, where there is one."""
    if told["mean"] is None:
        return "-"
    mean = f"{told['mean']:{sign}.{PLACES}f}"
    return mean if told["high"] is None else f"{mean} ± {told['high'] - told['mean']:.{PLACES}f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}".replace(",", " ")
