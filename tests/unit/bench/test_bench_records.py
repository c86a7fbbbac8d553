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
from evertune.comparison.kept import CONFIG
from evertune.errors import StorageError
from evertune.evaluation import AccuracyMatrix

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


def test_a_name_may_hold_what_ends_a_line_elsewhere(write_run: Write, tmp_path: Path) -> None:
    names = {"classes": ["a\u2028b", "c\x85d"], "tasks": [{"name": "task\u2029", "classes": ["a\u2028b", "c\x85d"]}]}
    run = KeptRun.read(write_run(tmp_path / "safe/1993", [[9]], stream=names))
    write_records(tmp_path / "records.jsonl", {"safe/1993": run})
    assert read_records(tmp_path / "records.jsonl")["safe/1993"].protocol == run.protocol


def test_no_file_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none.jsonl") == {}


def test_a_record_stands_for_the_folder_of_the_same_run_alone(kept: KeptRun, tmp_path: Path) -> None:
    asked = cell(tmp_path / "safe/1993")
    recorded = {asked.label: KeptRun(**vars(kept) | {"references": {"nearest mean": 1.0}})}
    found = finished_run(asked, recorded)
    assert asked.label == "safe/1993" and found is not None and found.references == {"nearest mean": 41.5}  # the folder
    shutil.rmtree(kept.folder)
    assert finished_run(asked, recorded) is recorded[asked.label]
    assert finished_run(asked, {}) is None
    assert finished_run(cell(tmp_path / "safe/1993", seed=7), recorded) is None  # of another seed than is asked for
    assert finished_run(cell(tmp_path / "safe/1994", order_seed=1994), recorded) is None
    bare = {asked.label: KeptRun(**vars(kept) | {"references": {}})}
    assert finished_run(asked, bare) is bare[asked.label]
    assert finished_run(cell(tmp_path / "safe/1993", references=True), bare) is None  # as with its folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": {"format": "other"}}, "line 1"),
        ({"protocol": {}}, "the protocol lacks"),
        ({"config": {"protocol": "0" * 12}}, "its configuration lacks method, preset"),
        ({"config": dict.fromkeys(CONFIG) | {"protocol": "0" * 12}}, "it names 000000000000"),
        ({"matrix": json.loads(AccuracyMatrix().to_json())}, "it has 0 of 2 tasks"),
        ({"costs": None}, "no record of a run"),
        ({"references": None}, "no record of a run"),
    ],
)
def test_damage_is_told_with_its_line(kept: KeptRun, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, {"safe/1993": kept})
    file.write_text(json.dumps(json.loads(file.read_text()) | change) + "\n")
    with pytest.raises(StorageError, match=message):
        read_records(file)
    write_records(file, {"safe/1993": kept})
    file.write_text(2 * file.read_text())
    with pytest.raises(StorageError, match=r"line 2: .*safe/1993 has one already"):
        read_records(file)
    file.write_text("{")
    with pytest.raises(StorageError, match="restore the file from a copy"):
        read_records(file)
