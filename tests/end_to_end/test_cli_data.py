"""``evertune data`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from evertune.cli.app import app


def evertune_(*args: object) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="evertune", env={"COLUMNS": "200"})


def works(*args: object) -> Result:
    result = evertune_(*args)
    assert result.exit_code == 0, result.output
    return result


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    path = tmp_path / "mails.csv"
    path.write_text("subject,team\n" + "".join(f"mail {i},{'ab'[i % 2]}\n" for i in range(20)))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_is_described_with_its_faults(photos: Path) -> None:
    (photos / "cat" / "4.png").write_bytes((photos / "dog" / "0.png").read_bytes())
    (photos / "dog" / "3.png").write_bytes(b"no image")
    told = works("data", photos).stdout
    assert "2 classes of images: cat, dog" in told
    assert "width: 9 to 9 (median 9)" in told
    assert "under another class" in told
    assert "broken: 1" in told and "dog/3.png cannot be read as an image" in told
    left_out = works("data", photos, "--skip-bad").stdout
    assert "left out: 1" in left_out and "broken" not in left_out


def test_a_table_as_json_and_its_manifest(mails: Path, tmp_path: Path) -> None:
    assert "Did you mean 'subject'?" in refused("data", mails, "--column", "text=subjct", "--column", "label=team")
    split = tmp_path / "split.json"
    columns = ["--column", "text=subject", "--column", "label=team"]
    result = works("data", mails, *columns, "--json", "--write-manifest", split)
    summary = json.loads(result.stdout)
    assert summary["modality"] == "text"
    assert {part: found["counts"] for part, found in summary["parts"].items()} == {
        "train": {"a": 8, "b": 8},
        "test": {"a": 2, "b": 2},
    }
    assert f"wrote {split}" in result.stderr
    again = json.loads(works("data", mails, *columns, "--json", "--manifest", split).stdout)
    assert again == summary
    mails.write_text(mails.read_text().replace("mail 3,", "male 3,"))
    assert "has changed" in refused("data", mails, *columns, "--manifest", split)


def test_two_files_and_what_is_in_both(mails: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"subject": "mail 1", "team": "a"}\n{"subject": "new", "team": "b"}\n')
    columns = ["--column", "text=subject", "--column", "label=team"]
    result = works("data", mails, "--test", test, *columns)
    assert "in train and test: 1 of 2 test rows are in both, 1 of them under another class" in result.stdout
    assert "1 of 20 training texts are in the test part too" in result.stderr
    shallow = works("data", mails, "--test", test, *columns, "--no-deep").stdout
    assert "train: 20 rows of 2 classes" in shallow and "in both" not in shallow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "subject"], "write it as ROLE=NAME"),
        (["--column", "text=a", "--column", "text=b"], "--column names text twice"),
        (["--column", "body=subject"], "columns names 'body', which no column is for"),
        (["--encoding", "utf-99"], "encoding 'utf-99' is not known"),
        (["--max-pixels", "0"], "max_pixels is 0"),
        (["--validation", "x.csv"], "A validation part was given without a test part"),
    ],
)
def test_options_that_do_not_fit(mails: Path, options: list[str], message: str) -> None:
    assert message in refused("data", mails, *options)


def test_labels_of_one_spelling_or_more(mails: Path) -> None:
    columns = ["--column", "text=subject", "--column", "label=team"]
    mails.write_text(mails.read_text().replace("mail 2,a", "mail 2,A").replace("mail 4,a", "mail 4,7"))
    assert "mixes whole numbers and names" in refused("data", mails, *columns)
    assert "'A' (1 rows)" in refused("data", mails, *columns, "--numbers-as-names")
    told = works("data", mails, *columns, "--numbers-as-names", "--normalise-labels").stdout
    assert "3 classes of texts: 7, a, b" in told
    assert "4 classes" in works("data", mails, *columns, "--numbers-as-names", "--no-normalise-labels").stdout
