"""Records: what tables need of finished runs in one file, without their folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evertune.bench import Cell, finished_run
from evertune.comparison import KeptRun, read_records, write_records
from evertune.errors import StorageError

Write = Callable[..., Path]

ASKED = {
    "method": "safe", "preset": "evertune", "data": "digits", "first": 2, "increment": 2, "backbone": "embedded",
    "input_size": 32, "preprocessing": "native", "options": {}, "order_seed": 1993, "seed": 0, "references": False,
}  # fmt: skip


def cell(folder: Path, **settings: Any) -> Cell:
    return Cell("safe", folder, ASKED | settings)


@pytest.fixture
def kept(write_run: Write, tmp_path: Path) -> KeptRun:
    costs = {"forwards_per_training_example": 20.5, "stored": 3000.0}
    references = {"nearest mean": 41.5}
    parts = {"slow": [[8], [6, 5]]}
    return KeptRun.read(
        write_run(tmp_path / "safe/1993", [[9], [7, 6]], parts=parts, references=references, costs=costs)
    )


def test_a_record_says_what_the_folder_says(kept: KeptRun, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, {"safe/1993": kept})
    (again,) = read_records(file).values()
    for field in ("config", "protocol", "references", "finished", "seconds", "stored", "parameters", "costs"):
        assert getattr(again, field) == getattr(kept, field), field
    for part in (None, "slow"):
        for metric in ("final_accuracy_sample", "average_accuracy_task", "pilot.forgetting"):
            assert again.value(metric, part) == kept.value(metric, part)
    assert (again.tasks, again.stages, again.order, again.draw) == (kept.tasks, kept.stages, kept.order, kept.draw)
    write_records(tmp_path / "again.jsonl", {"safe/1993": again})
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


def test_no_file_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none.jsonl") == {}


def test_a_record_stands_for_the_folder_of_the_same_run_alone(kept: KeptRun, tmp_path: Path) -> None:
    asked = cell(tmp_path / "safe/1993")
    recorded = {asked.place: KeptRun(**vars(kept) | {"references": {"nearest mean": 1.0}})}
    found = finished_run(asked, recorded)
    assert asked.place == "safe/1993" and found is not None and found.references == {"nearest mean": 41.5}  # the folder
    shutil.rmtree(kept.folder)
    assert finished_run(asked, recorded) is recorded[asked.place]
    assert finished_run(asked, {}) is None
    assert finished_run(cell(tmp_path / "safe/1993", seed=7), recorded) is None  # of another seed than is asked for
    assert finished_run(cell(tmp_path / "safe/1994", order_seed=1994), recorded) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": {"format": "other"}}, "line 1"),
        ({"protocol": {}}, "the protocol lacks"),
        ({"config": {"protocol": "0" * 12}}, "it names 000000000000"),
        ({"run": None, "costs": None, "matrix": None}, "no record of a run"),
    ],
)
def test_damage_is_told_with_its_line(kept: KeptRun, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, {"safe/1993": kept})
    file.write_text(json.dumps(json.loads(file.read_text()) | change) + "\n")
    with pytest.raises(StorageError, match=message):
        read_records(file)
    file.write_text("{")
    with pytest.raises(StorageError, match="restore the file from a copy"):
        read_records(file)
