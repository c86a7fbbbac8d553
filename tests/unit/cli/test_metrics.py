from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evertune.cli.app import app
from evertune.evaluation import AccuracyMatrix, Protocol


def metrics(*args: object) -> Result:
    return CliRunner().invoke(app, ["metrics", *map(str, args)], prog_name="evertune", env={"COLUMNS": "200"})


def kept(folder: Path, kind: str) -> Path:
    """What a run of two tasks leaves of its numbers."""
    folder.mkdir()
    matrix = AccuracyMatrix("mixture")
    for part, rows in {"mixture": [[9], [7, 20]], "slow": [[8], [6, 10]]}.items():
        for stage, row in enumerate(rows):
            for group, correct in enumerate(row):
                matrix.record(stage, group, correct, [10, 40][group], part=part)
    fields = {name: {} for name in ("backbone", "preprocessing", "views", "seeds")}
    protocol = Protocol({"stream": {"kind": kind}, "metric": "top-1", **fields})
    (folder / "matrix.json").write_text(matrix.to_json())
    (folder / "protocol.json").write_text(protocol.to_json())
    return folder


def test_the_matrix_and_one_column_per_convention(tmp_path: Path) -> None:
    result = metrics(kept(tmp_path / "run", "class"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[2].split() == ["task", "1", "90.0", "90.0", "90.0"]
    rows = [line.split() for line in lines]
    assert ["percent", "pilot", "ntk-cl", "safe", "ranpac", "hide-pet", "mammoth"] in rows
    # 27 of 50 right; (70 + 50) / 2 by task.
    assert ["final", "accuracy", "54.00", "54.00", "54.00", "60.00", "60.0000", "60.00"] in rows
    assert "formulas: --convention NAME" in lines


def test_chosen_conventions_come_with_their_formulas(tmp_path: Path) -> None:
    output = metrics(kept(tmp_path / "run", "class"), "-c", "ranpac", "-c", "lopez-paz", "--part", "slow").stdout
    assert "final accuracy      42.50      42.50" in output
    assert "ranpac: RanPAC trainer.py" in output and "pilot" not in output


def test_what_a_stage_cannot_know_depends_on_the_stream(tmp_path: Path) -> None:
    def forward(kind: str) -> object:
        result = metrics(kept(tmp_path / kind, kind), "-c", "lopez-paz", "--baseline", 2.5, "--json")
        return json.loads(result.stdout)["conventions"]["lopez-paz"]["numbers"]["forward_transfer"]["value"]

    assert forward("class") == -2.5, "classes never learned are wrong answers"
    assert forward("domain") is None, "a domain to come was not asked about"


def test_json_holds_everything(tmp_path: Path) -> None:
    told = json.loads(metrics(kept(tmp_path / "run", "class"), "--json").stdout)
    assert set(told) == {"part", "matrix", "summary", "conventions"} and told["part"] == "mixture"
    assert AccuracyMatrix.from_json(json.dumps(told["matrix"])).accuracy(1, 1) == 50
    assert told["conventions"]["safe"]["numbers"]["final_accuracy"]["value"] == 54


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--convention", "ranpack"], "no convention 'ranpack'. Did you mean 'ranpac'"),
        (["--part", "fast"], "no part 'fast'. Known: mixture, slow"),
        (["--baseline", "-3"], "from 0 to 100 percent"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path: Path, args: list[str], message: str) -> None:
    result = metrics(kept(tmp_path / "run", "class"), *args)
    assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = metrics(tmp_path)
    assert result.exit_code == 2 and "holds no measured run (matrix.json: No such file" in result.stderr
    folder = kept(tmp_path / "run", "class")
    (folder / "matrix.json").write_text("{}")
    assert "no whole accuracy matrix" in metrics(folder).stderr
