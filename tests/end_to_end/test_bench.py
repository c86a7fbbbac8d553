"""``evertune bench`` as a user meets it: what is listed, what is run in processes of its own, and what is told."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evertune.bench import running
from evertune.cli.app import app

Write = Callable[..., Path]

FILE = """
out = "{out}"
[vars]
data = "digits"
[streams.digits]
data = "{{data}}"
first = 5
increment = 5
train_per_class = 4
flip = false
[backbones.embedded]
device = "cpu"
count = true
[methods.means]
method = "simple_cil"
[methods.ranpac]
method = "ranpac"
options = {{ features = 16, epochs = 1 }}
[[runs]]
name = "{{method}}"
stream = "digits"
backbone = "embedded"
method = ["means", "ranpac"]
references = false
[tables.main]
title = "digits"
columns = [{{ label = "final" }}, {{ label = "F", cost = "forwards_per_prediction" }}]
rows = [{{ label = "means", run = "means" }}, {{ label = "ranpac", run = "ranpac" }}]
"""


def evertune_(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("evertune: ") and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bench.toml"
    path.write_text(FILE.format(out=tmp_path / "runs"))
    return path


def test_the_list_says_how_far_everything_is_and_how_it_is_made(file: Path) -> None:
    lines = evertune_("bench", file, "--list", "--only", "r*", "--var", "data=./other.npz").stdout.splitlines()
    assert lines[0] == "# ranpac/1993: missing"
    assert shlex.split(lines[1]) == [
        "evertune", "run", "--method", "ranpac", "--data", "./other.npz", "--first", "5", "--increment", "5",
        "--train-per-class", "4", "--no-flip", "--device", "cpu", "--count", "--set", "features=16",
        "--set", "epochs=1",
        "--order-seed", "1993", "--seed", "0", "--no-references", "--out", str(file.parent / "runs/ranpac/1993"),
    ]  # fmt: skip
    assert len(lines) == 2 and not (file.parent / "runs").exists()


def test_runs_are_made_once_in_processes_of_their_own(file: Path) -> None:
    """A real run; the second time nothing is done, and its number is in the table."""
    first = evertune_("bench", file, "--only", "means/1993")
    assert first.exit_code == 0, (file.parent / "runs/means/1993.log").read_text()
    assert first.stdout.startswith("1 runs: 0 finished, 1 to do\nmeans/1993: ")
    assert "task 2 of 2" in (file.parent / "runs/means/1993.log").read_text()
    before = (file.parent / "runs/means/1993/summary.json").stat().st_mtime_ns
    assert evertune_("bench", file, "--only", "means").stdout == "1 runs: 1 finished, 0 to do\n"
    assert (file.parent / "runs/means/1993/summary.json").stat().st_mtime_ns == before
    table = evertune_("bench", file, "--table", "main")
    assert [line.count("|") for line in table.stdout.splitlines()] == [4] * 4
    assert " | 1.00 |" in table.stdout and "| ranpac |  |  |" in table.stdout
    assert "main: 0 of 1 runs of ranpac are finished" in table.stderr
    drawn = evertune_("bench", file, "--plot", f"main={file.parent / 'costs.svg'}")
    assert drawn.exit_code == 0 and drawn.stdout == "" and "costs.svg lacks ranpac: no finished run" in drawn.stderr
    assert "means" in (file.parent / "costs.svg").read_text()
    file.write_text('records = "records.jsonl"\n' + file.read_text())
    recorded = evertune_("bench", file, "--record")
    assert recorded.stdout == f"{file.parent / 'records.jsonl'}: 1 of 2 runs\n", recorded.output
    (file.parent / "runs").rename(file.parent / "gone")
    assert evertune_("bench", file, "--table", "main").stdout == table.stdout
    assert "# means/1993: missing\n" in evertune_("bench", file, "--list").stdout  # it can be made again
    (file.parent / "gone").rename(file.parent / "runs")
    text = file.read_text()
    file.write_text(text[: text.index("[tables.main]")].replace('"means", "ranpac"', '"ranpac"'))
    emptied = evertune_("bench", file, "--record")  # a file without tables, too
    assert emptied.exit_code == 0 and ": 0 of 1 runs" in emptied.stdout
    assert "no longer has means/1993" in emptied.stderr
    file.write_text(text)
    file.write_text(file.read_text().replace("train_per_class = 4", "train_per_class = 3"))
    assert "means/1993: different (train_per_class: 4 there, 3 here)" in evertune_("bench", file, "--list").stdout
    again = evertune_("bench", file, "--only", "means")
    assert again.exit_code == 1 and "means/1993 holds another run (train_per_class: 4 there, 3 here)" in again.stderr


def test_what_failed_is_told_at_the_end(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nif 'simple_cil' in sys.argv: sys.exit('no such data')\n")
    monkeypatch.setattr(running, "EVERTUNE", (running.EVERTUNE[0], str(tmp_path / "program.py")))
    result = evertune_("bench", file)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].startswith("means/1993: failed, see ")
    assert result.stdout.splitlines()[2].startswith("ranpac/1993: ")
    assert "means/1993 failed (exit code 1: no such data)" in result.stderr
    assert "1 of 2 runs are missing" in result.stderr


def test_bad_requests_are_refused_before_anything_runs(file: Path) -> None:
    assert "matches no entry. Did you mean 'ranpac'" in refused("bench", file, "--only", "ranpack")
    assert "no table 'mian'. Did you mean 'main'" in refused("bench", file, "--table", "mian")
    assert "write it as NAME=VALUE" in refused("bench", file, "--var", "data")
    assert "write it as NAME=FILE" in refused("bench", file, "--plot", "main")
    assert "no table 'mian'" in refused("bench", file, "--plot", "mian=a.png")
    assert "names no 'records' to write" in refused("bench", file, "--record")
    assert "leave --only out" in refused("bench", file, "--record", "--only", "means")
    assert "no table 'mian'" in refused("bench", file, "--record", "--table", "mian")
    assert "no variable is called 'dta'" in refused("bench", file, "--var", "dta=x")
    text = file.read_text()
    for old, new, message in (
        ("epochs = 1", "epoch = 1", "ranpac: ranpac has no option 'epoch'. Did you mean 'epochs'"),
        ("epochs = 1", "epochs = 'x'", "ranpac: epochs='x' is not a int"),
        ('"simple_cil"', '"simple_cli"', "means: No method is called 'simple_cli'. Did you mean 'simple_cil'"),
        ("first = 5", "first = 'x'", "means: Invalid value for '--first'"),
        ("flip = false", "fliip = false", "[streams.digits]: there is no 'fliip' here. Did you mean 'flip'"),
        ("[tables.main]", "[table.main]", "the file: there is no 'table' here. Did you mean 'tables'"),
    ):
        assert old in text
        file.write_text(text.replace(old, new))
        assert message in refused("bench", file)
    assert not (file.parent / "runs").exists()


def test_the_file_of_the_published_results_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    result = evertune_("bench", root / "benchmarks/results.toml", "--list", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(line.endswith(": missing") for line in lines[::2]) and all(
        "evertune run" in line for line in lines[1::2]
    )
    assert {"# safe-paper/1995: missing", "# banking-safe-evertune/1993: missing"} <= set(lines[::2])
