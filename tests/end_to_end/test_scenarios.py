"""Streams of every scenario, learned and measured; runs that later tasks go on with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evertune import Learner, Stream, Task, run
from evertune.backbones import Passes, TimmViT
from evertune.errors import RunError, StreamError
from evertune.evaluation import accuracy_curve
from evertune.runs import stream_of
from evertune.streams import ArraySource, make_stream

Data = tuple[ArraySource, ArraySource]

METHODS: dict[str, dict[str, Any]] = {
    "simple_cil": {},
    "aper": {"epochs": 1},
    "ranpac": {"epochs": 1, "features": 64},
    "safe": {"epochs": 1, "follow_epochs": 1, "features": 64},
    "finetune": {"epochs": 1},
    "hide_pet": {"preset": "evertune", "epochs": 1, "shared_epochs": 1, "blocks": "0-1"},
    "ntk_cl": {"epochs": 1},
}


def learner(tiny: TimmViT, method: str = "simple_cil", **options: Any) -> Learner:
    return Learner(method, tiny, progress=False, **{**METHODS[method], **options})


def part(data: ArraySource, names: list[int], rows: slice = slice(None)) -> Any:
    chosen = [data.rows_of([f"spot {i}"])[rows] for i in names]
    return data.select(np.concatenate(chosen))


def mixed(blobs: Data) -> list[Task]:
    """Two classes; a new one with more of an old one; more of one old class alone, and its tests nowhere."""
    train, test = blobs
    return [
        Task(0, "monday", part(train, [0, 1], slice(6)), part(test, [0, 1]), kind="mixed"),
        Task(1, "tuesday", part(train, [1, 2], slice(6, 12)), part(test, [2]), kind="mixed"),
        Task(2, "wednesday", part(train, [0], slice(6, 12)), kind="mixed"),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_mixed_stream(tiny: TimmViT, blobs: Data, method: str) -> None:
    me = learner(tiny, method)
    result = run(Stream(mixed(blobs)), me, references=False)
    assert me.classes == ("spot 0", "spot 1", "spot 2")
    assert result.matrix.counts()[1].tolist() == [10, 5, 0]
    assert math.isnan(result.matrix.accuracy(2, 2))
    assert [entry["kind"] for entry in me.history] == ["mixed"] * 3
    assert me.scores(blobs[1].select([0])).isfinite().all()


@pytest.mark.parametrize("method", ["simple_cil", "ranpac", "safe", "hide_pet"])
def test_a_single_pass_in_small_chunks(tiny: TimmViT, blobs: Data, method: str) -> None:
    whole = Stream.class_incremental(*blobs, first=2, increment=2, order_seed=None)
    stream = Stream.online(whole, chunk=10)
    result = run(stream, learner(tiny, method))
    assert result.matrix.stages == len(stream) == 8
    totals = result.matrix.counts()[1]
    assert totals.sum() == len(blobs[1])
    assert (totals > 0).sum() < len(stream)
    assert set(result.references) == {"nearest mean", "joint ridge"}


def test_nearest_means_do_not_care_how_the_data_arrives(tiny: TimmViT, blobs: Data) -> None:
    """Class means of all examples are the same in chunks, blurred, in parts and at once."""
    settings: list[dict[str, Any]] = [
        {"increment": 6},
        {"increment": 2, "online": 7, "boundary": 0.3},
        {"kind": "blurry", "tasks": 3, "blur": 0.3},
        {"kind": "data", "tasks": 4},
    ]
    finals = []
    for one in settings:
        result = run(make_stream(*blobs, **one), learner(tiny), references=False)
        correct, totals = result.matrix.counts()
        assert totals.sum() == len(blobs[1])
        finals.append(int(correct[-1].sum()))
    assert len(set(finals)) == 1


def test_nothing_is_measured_before_there_are_tests(tiny: TimmViT, blobs: Data) -> None:
    train, test = blobs
    tasks = [
        Task(0, "a", part(train, [0, 1]), kind="mixed"),
        Task(1, "b", part(train, [2, 3]), part(test, [1, 3]), kind="mixed"),
    ]
    seen: list[float] = []
    result = run(
        Stream(tasks), learner(tiny), references=False, on_stage=lambda t, matrix: seen.append(matrix.accuracy(t, t))
    )
    assert math.isnan(seen[0])
    assert 0 <= seen[1] <= 100
    curve = accuracy_curve(*result.matrix.counts(), weight="sample")
    assert math.isnan(curve[0])
    assert curve[1] == seen[1]
    with pytest.raises(StreamError, match="The stream has no test images"):
        run(Stream(tasks[:1]), learner(tiny))


# -- task-incremental --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_within_its_task_every_method_answers_as_when_told(tiny: TimmViT, blobs: Data, method: str) -> None:
    me = learner(tiny, method)
    stream = Stream.class_incremental(*blobs, first=2, increment=2)
    for task in stream:
        me.learn(task)
    for t, task in enumerate(stream):
        assert task.test is not None
        found = me.evaluate(task.test, task=t)
        told = me.predict(task.test, task=t)
        truth = [task.test.classes[i] for i in task.test.labels]
        assert found["within task"] == (sum(a == b for a, b in zip(told, truth, strict=True)), len(truth))
        alone = me.evaluate(task.test)
        assert next(iter(found.items())) == next(iter(alone.items()))
        assert "within task" not in alone


def test_a_number_is_a_number_whatever_tasks_are_called(tiny: TimmViT, blobs: Data) -> None:
    me = learner(tiny)
    for task in Stream.class_incremental(*blobs, first=3, increment=3):
        me.learn(replace(task, name="0" if me.history else "1"))  # each bears the number of the other
    assert set(me.predict(blobs[1], task=0)) == set(me.predict(blobs[1], task="1")) <= set(me.classes[:3])
    assert set(me.predict(blobs[1], task="0")) <= set(me.classes[3:])


def test_within_task_costs_no_pass(tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    me = learner(tiny, "aper")
    for task in Stream.class_incremental(*blobs, first=3, increment=3):
        me.learn(task)
    passed: list[int] = []
    call = Passes.__call__

    def counted(self: Passes, *given: Any, **named: Any) -> torch.Tensor:
        passed.append(1)
        return call(self, *given, **named)

    monkeypatch.setattr(Passes, "__call__", counted)
    me.evaluate(blobs[1].select(range(5)))
    before = len(passed)
    me.evaluate(part(blobs[1], [0]), task=0)
    assert len(passed) == 2 * before


def test_a_task_incremental_run(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = Stream.class_incremental(*blobs, first=2, increment=2)
    plain = run(stream, learner(tiny), references=False)
    assert plain.matrix.parts == ("prototypes",)
    result = run(stream, learner(tiny), tmp_path / "run", references=False, task_incremental=True)
    assert result.matrix.parts == ("prototypes", "within task")
    assert (result.matrix.counts("within task")[0] >= result.matrix.counts()[0]).all()
    assert "within task: the task is told" in (tmp_path / "run/report.txt").read_text()
    with pytest.raises(RunError, match="task_incremental: True there, None here"):
        run(stream, learner(tiny), tmp_path / "run")
    assert run(stream, learner(tiny), tmp_path / "run", task_incremental=True).matrix == result.matrix


# -- tasks that come months apart --------------------------------------------------------------------------------------


def state(folder: Path, number: int) -> bytes:
    return (folder / f"learner/state-{number}.safetensors").read_bytes()


def test_later_tasks_go_on_with_a_run(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    tasks = mixed(blobs)
    whole = run(Stream.of(*tasks), learner(tiny, "ranpac"), tmp_path / "whole", references=False)
    hashes = []
    for count in (1, 2, 2, 3):
        result = run(Stream.of(*tasks[:count]), learner(tiny, "ranpac"), tmp_path / "run", references=False)
        assert result.matrix.stages == count
        hashes.append(result.protocol.hash)
    assert result.matrix == whole.matrix
    assert state(tmp_path / "run", 3) == state(tmp_path / "whole", 3)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["protocol"] == whole.protocol.hash
    assert config["former_protocols"] == [hashes[0], hashes[1]]
    assert json.loads((tmp_path / "run/protocol.json").read_text())["hash"] == whole.protocol.hash
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 3


def test_a_crash_while_the_tasks_are_added(
    tiny: TimmViT, blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = mixed(blobs)
    first = run(Stream.of(*tasks[:2]), learner(tiny), tmp_path, references=False)
    import evertune.run_folder

    write = evertune.run_folder.write_json

    def crash(path: Path, content: Any) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(evertune.run_folder, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        run(Stream.of(*tasks), learner(tiny), tmp_path, references=False)
    monkeypatch.undo()
    result = run(Stream.of(*tasks), learner(tiny), tmp_path, references=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["protocol"], config["former_protocols"]) == (result.protocol.hash, [first.protocol.hash])


def test_what_is_no_continuation(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    tasks = mixed(blobs)
    run(Stream.of(*tasks[:2]), learner(tiny), tmp_path, references=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Task(1, "tuesday", part(blobs[0], [1, 2]), part(blobs[1], [2]), kind="mixed")
    renamed = Task(1, "sunday", tasks[1].train, tasks[1].test, kind="mixed")
    cases = [
        ([tasks[0], other, tasks[2]], "task 2: there 'tuesday', other classes or examples"),
        ([tasks[0], renamed, tasks[2]], "task 2: there 'tuesday', here 'sunday'"),
        (tasks[:1], "it has 2 tasks, here are the first 1 of them"),
        ([tasks[1], tasks[0], tasks[2]], "task 1: there 'monday', here 'tuesday'"),
    ]
    for given, message in cases:
        with pytest.raises(RunError, match=f"different run.*{message}"):
            run(Stream.of(*given), learner(tiny), tmp_path)
    with pytest.raises(RunError, match=r"seeds\.init: 0 there, 4 here"):
        run(Stream.of(*tasks), learner(tiny, seeds=4), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_cut_of_the_same_data_is_no_continuation(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    first = Stream.class_incremental(*blobs, first=4, increment=2, order_seed=None)
    run(first, learner(tiny), tmp_path, references=False)
    more = Stream.class_incremental(*blobs, sizes=[4, 1, 1], order_seed=None)
    with pytest.raises(RunError, match=r"different run.*stream\.first \(4 / absent\)"):
        run(more, learner(tiny), tmp_path)


# -- made again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"increment": 2, "shots": 3},
        {"sizes": [2, 3, 1], "imbalance": 4},
        {"kind": "blurry", "tasks": 3},
        {"increment": 2, "order_seed": None, "online": 20},
    ],
    ids=str,
)
def test_the_stream_of_a_run_is_made_again(
    tiny: TimmViT, blobs: Data, tmp_path: Path, settings: dict[str, Any]
) -> None:
    stream = make_stream(*blobs, **settings)
    run(stream, learner(tiny), tmp_path, references=False)
    again = stream_of(tmp_path, *blobs)
    assert again.description() == stream.description()
    with pytest.raises(RunError, match="is not the data that the run"):
        stream_of(tmp_path, blobs[1], blobs[1])


def test_tasks_of_their_own_are_not_made_again_from_one_data_set(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    run(Stream.of(*mixed(blobs)), learner(tiny), tmp_path, references=False)
    with pytest.raises(RunError, match="not cut from one data set"):
        stream_of(tmp_path, *blobs)
