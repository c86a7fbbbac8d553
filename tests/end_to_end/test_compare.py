"""``evertune compare`` as a user meets it, on run folders that were written, not run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from evertune.cli.app import app

Write = Callable[..., Path]


def evertune_(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("evertune: ") and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def runs(write_run: Write, tmp_path: Path) -> Path:
    """SAFE and RanPAC with two class orders each; RanPAC is 20 and 30 points worse."""
    for order, safe, ranpac in ((1993, 8, 6), (1994, 9, 6)):
        write_run(tmp_path / f"safe/{order}", [[9], [safe, safe]], order=order, parts={"slow": [[9], [5, 5]]})
        config = {"method": "ranpac", "options": {"features": 64}}
        write_run(tmp_path / f"ranpac/{order}", [[9], [ranpac, ranpac]], order=order, config=config)
    return tmp_path


def test_a_table_of_rows_and_of_differences(runs: Path) -> None:
    text = evertune_("compare", runs / "safe", runs / "ranpac", "--metric", "final_accuracy_task").stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["safe", "(evertune)", "2", "85.00", "±", "63.53"] in [line[:6] for line in lines]
    assert ["ranpac", "(evertune)", "2", "-25.00", "±", "63.53"] in lines
    assert "paired by class order and seed: order 1993, seed 0; order 1994, seed 0" in text


def test_the_other_formats_say_the_same(runs: Path) -> None:
    asked = ("compare", runs / "safe", runs / "ranpac")
    numbers = json.loads(evertune_(*asked, "--format", "json").stdout)
    assert [row["metrics"]["final_accuracy_sample"]["mean"] for row in numbers["rows"]] == [85.0, 60.0]
    lines = list(csv.DictReader(io.StringIO(evertune_(*asked, "--format", "csv").stdout)))
    assert [line["mean"] for line in lines if line["metric"] == "final_accuracy_sample"] == ["85.0", "60.0"]
    assert "| ranpac (evertune) | 2 | 60.00 ± 0.00 |" in evertune_(*asked, "--format", "markdown").stdout


def test_a_peers_numbers_and_a_part(runs: Path) -> None:
    result = evertune_("compare", runs / "safe", runs / "ranpac", "--part", "slow", "--convention", "pilot")
    assert result.stdout.startswith("percent, as pilot prints them  runs  final_accuracy  average_accuracy ")
    assert ["safe", "(evertune)", "2", "50.00", "±", "0.00"] in [
        line.split()[:6] for line in result.stdout.splitlines()
    ]
    assert f"left out: {runs / 'ranpac/1993'} (no part 'slow')" in result.stdout


def test_a_folder_gets_tables_numbers_and_a_picture(runs: Path) -> None:
    result = evertune_("compare", runs / "safe", runs / "ranpac", "--out", runs / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (runs / "out").iterdir()) == [f"comparison.{e}" for e in ("csv", "json", "md", "png")]
    assert json.loads((runs / "out/comparison.json").read_text())["baseline"] == "safe (evertune)"
    with Image.open(runs / "out/comparison.png") as picture:
        assert picture.width > 1000


def test_left_out_is_told_beside_csv_and_json(runs: Path, write_run: Write) -> None:
    write_run(runs / "safe/1995", [[9]], tasks=2, order=1995, finished=False)
    result = evertune_("compare", runs / "safe", "--format", "csv")
    assert "1995 (unfinished: 1 of 2 tasks)" in result.stderr
    assert all(line.count(",") == 16 for line in result.stdout.splitlines())


def test_bad_requests_are_one_clear_line(runs: Path) -> None:
    one = runs / "safe/1993"
    assert "holds no run" in refused("compare", one, runs / "nowhere")
    assert "Name two or more" in refused("compare", one)
    assert "is named twice" in refused("compare", one, one)
    assert "not of the same class orders" in refused("compare", one, runs / "ranpac/1994")
    assert "--format html does not exist" in refused("compare", runs / "safe", "--format", "html")
    assert "Did you mean 'backward_transfer'" in refused("compare", runs / "safe", "-m", "backwards_transfer")
    assert "level is 95" in refused("compare", runs / "safe", "--level", 95)
