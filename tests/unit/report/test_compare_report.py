from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evertune.errors import ConfigError, DataError
from evertune.report import comparison_csv, comparison_markdown, comparison_table, draw_comparison


def told(mean: float | None, half: float | None, difference: dict[str, Any] | None = None) -> dict[str, Any]:
    ends = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return {"values": [mean], "mean": mean, "low": ends[0], "high": ends[1], "difference": difference}


def row(name: str, **metrics: dict[str, Any]) -> dict[str, Any]:
    runs = [{"folder": "runs/a", "order": 1993, "seeds": {"init": 0}, "protocol": "0123"}] * 3
    return {
        "name": name, "method": "safe", "preset": "paper", "part": "mixture", "runs": runs, "stored_bytes": 2_500_000,
        "trained_at_once": 12345, "seconds": None, "metrics": metrics,
    }  # fmt: skip


NUMBERS = {
    "level": 0.9,
    "metrics": ["final", "forgetting"],
    "baseline": "one | a",
    "pairs": ["order 1993, seed 0"],
    "rows": [
        row("one | a", final=told(70.0, 2.5), forgetting=told(None, None)),
        row(
            "two",
            final=told(65.0, 1.0, {"pairs": 3, "mean": -5.0, "low": -6.0, "high": -4.0, "t_test": 0.25}),
            forgetting=told(3.0, None),
        ),
    ],
    "left_out": ["runs/b (unfinished: 1 of 2 tasks)"],
    "notes": ["an older run"],
}


def test_the_table_of_a_terminal() -> None:
    assert comparison_table(NUMBERS) == "\n".join(
        [
            "percent  runs         final  forgetting  stored  trained at once",
            "----------------------------------------------------------------",
            "one | a     3  70.00 ± 2.50           -  2.5 MB           12 345",
            "two         3  65.00 ± 1.00        3.00  2.5 MB           12 345",
            "",
            "less one | a  pairs         final  forgetting",
            "---------------------------------------------",
            "two               3  -5.00 ± 1.00           -",
            "",
            "±: half the 90 % interval of the mean over runs (Student's t), of a difference over pairs",
            "paired by class order and seed: order 1993, seed 0",
            "protocol 0123",
            "answered by mixture",
            "an older run",
            "left out: runs/b (unfinished: 1 of 2 tasks)",
        ]
    )


def test_one_run_in_each_row_has_no_interval_and_may_have_no_pair() -> None:
    rows = [row("a", final=told(70.0, None)), row("b", final=told(60.0, None))]
    text = comparison_table({**NUMBERS, "metrics": ["final"], "rows": rows, "pairs": []})
    assert "how far another seed would be" in text and "no class order and seed is in all rows" in text
    assert "less" not in text and "±" not in text


def test_a_convention_is_said_once_and_what_no_row_has_is_told() -> None:
    rows = [row("a", **{"gem.final": told(70.0, None), "gem.forward": told(None, None)})]
    text = comparison_table({**NUMBERS, "metrics": ["gem.final", "gem.forward"], "rows": rows})
    assert text.startswith("percent, as gem prints them  runs  final  forward ")
    assert "known in no row: gem.forward ('evertune metrics RUN' says why)" in text
    mixed = [row("a", **{"gem.final": told(70.0, None), "final": told(70.0, None)})]
    text = comparison_table({**NUMBERS, "metrics": ["gem.final", "final"], "rows": mixed})
    assert text.startswith("percent  runs  gem.final  final ")


def test_markdown_has_as_many_columns_in_every_line() -> None:
    first, second, remarks = comparison_markdown(NUMBERS).split("\n\n")
    for table in (first, second):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| one / a | 3 | 70.00 ± 2.50 | - | 2.5 MB | 12 345 |" in first.splitlines()
    assert "- protocol 0123" in remarks.splitlines()


def test_csv_has_a_line_for_every_value_unrounded() -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(NUMBERS))))
    assert [(line["row"], line["metric"]) for line in lines] == [
        ("one | a", "final"), ("one | a", "forgetting"), ("two", "final"), ("two", "forgetting"),
    ]  # fmt: skip
    assert lines[2]["difference"] == "-5.0" and lines[2]["t_test"] == "0.25" and lines[2]["low"] == "64.0"
    assert lines[1]["mean"] == lines[0]["pairs"] == lines[0]["seconds"] == ""


CURVES = {
    "safe (paper), rank=4": np.array([[90.0, 80.0, 70.0], [92.0, 84.0, 74.0]]),
    "ranpac": np.array([[88.0, 60.0]]),
}


def test_the_picture_tells_every_row(tmp_path: Path) -> None:
    draw_comparison(CURVES, tmp_path / "c.svg", "two methods", note="protocol 0123")
    text = (tmp_path / "c.svg").read_text(encoding="utf-8")
    for words in ("two methods", "safe (paper), rank=4", "ranpac", "72.0 ± 25.4", "60.0", "protocol 0123"):
        assert f"<!-- {words} -->" in text, words


def test_many_rows_and_odd_names_are_drawn_the_same_twice(tmp_path: Path) -> None:
    rows = {f"$row_{{ {i} " + "x" * 70: np.full((2, 1), 100.0 * (i % 2)) for i in range(15)}
    for name in ("a.png", "b.png"):
        draw_comparison(rows, tmp_path / name, "$\\frac{ " * 30)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'c.jpg'; end its name in .png or .svg"):
        draw_comparison(CURVES, tmp_path / "c.jpg", "")
    with pytest.raises(DataError, match="no row to draw"):
        draw_comparison({}, tmp_path / "c.png", "")
    for bad in (np.array([[101.0]]), np.array([[np.nan]]), np.zeros((0, 2)), np.zeros(3)):
        with pytest.raises(DataError, match="the curves of 'a' must be percentages"):
            draw_comparison({"a": bad}, tmp_path / "c.png", "")
    assert not list(tmp_path.iterdir())
