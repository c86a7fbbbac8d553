from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from evertune.bench.tables import Table, read_table
from evertune.comparison import KeptRun
from evertune.errors import ConfigError

Write = Callable[..., Path]
ENTRIES = ["pacs-safe", "pacs-means", "birds-safe"]


@pytest.fixture
def finished(write_run: Write, tmp_path: Path) -> dict[str, list[KeptRun]]:
    """Final accuracies of 70, 80 and 60 by order; the slow part has 40 less; nearest means of 30 and 40."""
    found = {}
    for name in ("pacs-safe", "pacs-means"):
        folders = [
            write_run(
                tmp_path / name / str(order),
                [[9], [right, right]],
                order=order,
                parts={"slow": [[9], [right - 4, right - 4]]},
                references={"nearest mean": 10.0 * right - 40},
            )
            for order, right in ((1993, 7), (1994, 8), (1995, 6))
        ]
        found[name] = [KeptRun.read(folder) for folder in folders]
    return found


def table(**given: Any) -> Table:
    return read_table(given, ENTRIES, "[tables.x]")


def cells(found: Table, finished: dict[str, list[KeptRun]]) -> list[str]:
    """The first row without its label."""
    return [cell.strip() for cell in found.markdown(finished).splitlines()[2].split("|")[2:-1]]


def test_a_cell_is_what_its_row_and_column_say(finished: dict[str, list[KeptRun]]) -> None:
    found = table(
        title="data",
        places=1,
        rows=[{"label": "PACS", "stream": "pacs"}, {"label": "birds", "stream": "birds", "run": "{stream}-safe"}],
        columns=[
            {"label": "safe", "run": "{stream}-{method}", "method": "safe", "spread": "none"},
            {"label": "slow", "run": "{stream}-safe", "part": "slow", "spread": "each", "places": 0},
            {"label": "nearest", "run": "{stream}-means", "reference": "nearest mean", "orders": [1993]},
        ],
    )
    assert found.needs() == ("pacs-safe", "pacs-means", "birds-safe")
    assert found.markdown(finished) == (
        "| data | safe | slow | nearest |\n|---|---|---|---|\n| PACS | 70.0 | 30 / 40 / 20 | 30.0 |\n| birds |  |  |  |"
    )


def test_what_stands_behind_a_mean(finished: dict[str, list[KeptRun]]) -> None:
    columns = [{"label": spread, "spread": spread} for spread in ("interval", "deviation", "none", "each")]
    half = stats.t.ppf(0.975, 2) * stats.sem([70, 80, 60])
    assert cells(table(rows=[{"label": "a", "run": "pacs-safe"}], columns=columns), finished) == [
        f"70.00 ± {half:.2f}", "70.00 ± 10.00", "70.00", "70.00 / 80.00 / 60.00",
    ]  # fmt: skip
    one = table(rows=[{"label": "a", "run": "pacs-safe", "orders": [1994]}], columns=columns)
    assert cells(one, finished) == ["80.00"] * 4


def test_runs_of_several_entries_and_other_metrics(finished: dict[str, list[KeptRun]]) -> None:
    found = table(
        run=["pacs-safe", "pacs-means"],
        spread="each",
        places=0,
        rows=[{"label": "a"}],
        columns=[
            {"label": "final", "orders": [1993]},
            {"label": "mammoth", "metric": "mammoth.backward_transfer", "orders": [1995]},
            {"label": "task", "metric": "task_identity_task"},
        ],
    )
    assert cells(found, finished) == ["70 / 70", "-30 / -30", ""]  # from 9 of 10 to 6; no task was inferred


def test_a_part_that_a_run_lacks(finished: dict[str, list[KeptRun]]) -> None:
    found = table(rows=[{"label": "a", "run": "pacs-safe", "part": "slwo"}], columns=[{"label": "b"}])
    with pytest.raises(ConfigError, match=r"\[tables.x\]: .*1993 has no part 'slwo'. Did you mean 'slow'"):
        found.markdown(finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": [{"label": "a", "run": "pacs-saef"}]},
            "no entry of .* is called 'pacs-saef'. Did you mean 'pacs-safe'",
        ),
        ({"rows": [{"label": "a", "run": "{strem}-safe"}]}, "{strem} stands for nothing"),
        ({"rows": [{"label": "a"}]}, "neither the row 'a' nor its columns name a run"),
        ({"rows": []}, "lacks rows: a list of tables"),
        ({"rows": ["a"]}, "lacks rows: a list of tables"),
        ({"rows": [{"run": "pacs-safe"}]}, "lacks its label"),
        ({"columns": [{"label": "b", "metrc": "x"}]}, "columns: there is no 'metrc' here. Did you mean 'metric'"),
        ({"columns": [{"label": "b", "metric": "acc"}]}, "there is no metric 'acc'"),
        ({"spread": "range"}, "there is no spread 'range'"),
        ({"places": -1}, "places = -1 must be a whole number"),
        ({"orders": 1993}, "orders = 1993 must be a list"),
        ({"titel": "x"}, "there is no 'titel' here"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"rows": [{"label": "a", "run": "pacs-safe"}], "columns": [{"label": "b"}]}
    with pytest.raises(ConfigError, match=message) as error:
        table(**good | change)
    assert str(error.value).startswith("[tables.x]")
