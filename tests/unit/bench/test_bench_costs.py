"""What runs cost, in tables and in a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evertune.bench import picture
from evertune.bench.tables import Table, read_table
from evertune.comparison import KeptRun
from evertune.errors import ConfigError
from evertune.report import Priced

Write = Callable[..., Path]


def cost(learning: float) -> dict[str, float]:
    return {"forwards_per_training_example": learning, "forwards_per_prediction": 2.0, "stored": 3000.0}


@pytest.fixture
def finished(write_run: Write, tmp_path: Path) -> dict[str, list[KeptRun]]:
    """Three orders of "safe", of which the first was run before costs were noted; "old" has no run that noted them."""
    found: dict[str, list[KeptRun]] = {"safe": [], "old": [], "none": []}
    for name, right, costs in (("safe", 7, None), ("safe", 8, cost(10)), ("safe", 6, cost(12)), ("old", 5, None)):
        order = 1993 + len(found[name])
        folder = write_run(tmp_path / name / str(order), [[9], [right, right]], order=order, costs=costs)
        found[name].append(KeptRun.read(folder))
    return found


def table(**given: Any) -> Table:
    rows = [
        {"label": "**`safe`**", "run": "safe"},
        {"label": "old", "run": "old", "mark": True},
        {"label": "older", "run": "old"},
        {"label": "none", "run": "none"},
    ]
    columns = [{"label": "final"}, {"label": "F", "cost": "forwards_per_training_example", "places": 1}]
    return read_table({"rows": rows, "columns": columns} | given, ["safe", "old", "none"], "[tables.x]")


def cells(found: Table, finished: dict[str, list[KeptRun]]) -> list[list[str]]:
    lines = found.markdown(finished).splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]


def test_a_cost_is_the_mean_of_the_runs_that_noted_it(finished: dict[str, list[KeptRun]]) -> None:
    columns = [
        {"label": "F", "cost": "forwards_per_training_example", "places": 1},
        {"label": "±", "cost": "forwards_per_training_example", "places": 1, "spread": "deviation"},
        {"label": "kB", "cost": "stored", "per": 1000, "places": 0},
        {"label": "s", "cost": "learning_seconds", "places": 1},  # the log of every run has it
    ]
    assert cells(table(columns=columns), finished) == [
        ["11.0", "11.0 ± 1.4", "3", "3.0"], ["", "", "", "3.0"], ["", "", "", "3.0"], ["", "", "", ""],
    ]  # fmt: skip


def test_the_picture_is_of_the_first_column(
    finished: dict[str, list[KeptRun]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(picture, "draw_costs", lambda *given, note: told.extend([*given, note]))
    assert picture.draw_table(table(caption="all of it"), finished, tmp_path / "a.png") == ["older", "none"]
    (row,), path, title, marks, note = told
    assert isinstance(row, Priced) and (row.name, row.learning, row.answering, row.strong) == ("safe", 11.0, 2.0, True)
    assert row.accuracies.tolist() == [70.0, 80.0, 60.0]
    assert (path, title, marks) == (tmp_path / "a.png", "all of it", {"old": 50.0})
    assert note == "intervals of 95 % over class orders"
    told.clear()
    picture.draw_table(table(orders=[1994]), finished, tmp_path / "a.png")
    assert told[0][0].accuracies.tolist() == [80.0] and told[-1] == "one class order"
    with pytest.raises(ConfigError, match="count = true"):
        picture.draw_table(table(), {"old": finished["old"]}, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": "storage"}, "there is no cost 'storage'. Did you mean 'stored'"),
        ({"per": 0}, "per = 0 must be a positive number"),
        ({"per": "kB"}, "per = 'kB' must be a positive number"),
        ({"columns": [{"label": "a", "mark": True}]}, "columns: there is no 'mark' here"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(**change)
