"""Joint runs: all tasks at once, under a protocol of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evertune import Learner, Stream, run
from evertune.backbones import TimmViT
from evertune.cli.app import app
from evertune.comparison import compare
from evertune.errors import RunError
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


def learner(tiny: TimmViT) -> Learner:
    return Learner("ridge_probe", tiny, progress=False, device="cpu")


def measured(stream: Stream, tiny: TimmViT, folder: Path | None = None) -> Any:
    return run(stream, learner(tiny), folder, references=False)


def test_a_joint_run_tells_how_each_task_did(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = Stream.class_incremental(*blobs, first=2, increment=3)  # two, three and one class
    one_by_one, joint = measured(stream, tiny), measured(stream.joint(), tiny, tmp_path / "joint")
    correct, totals = one_by_one.matrix.counts()
    last = {task.name: (int(right), int(n)) for task, right, n in zip(stream, correct[-1], totals, strict=True)}
    assert joint.by_task == last  # the probe is the same however the data came
    assert one_by_one.by_task == {}
    assert [counts.tolist() for counts in joint.matrix.counts()] == [[[correct[-1].sum()]], [30]]
    rates = [100 * right / n for right, n in last.values()]
    told = f"by task, all learned at once: task 1 {rates[0]:.2f}, task 2 {rates[1]:.2f}, task 3 {rates[2]:.2f}; mean "
    assert f"{told}{np.mean(rates):.2f}" in joint.report()
    kept = json.loads((tmp_path / "joint/summary.json").read_text())["by_task"]
    assert {name: tuple(pair) for name, pair in kept.items()} == last
    again = measured(stream.joint(), tiny, tmp_path / "joint")
    assert again.by_task == last and again.report() == joint.report()


def test_domains_at_once(tiny: TimmViT, blobs: Data) -> None:
    train, test = (
        ArraySource(part.x, part.labels, part.classes, domains=np.arange(len(part)) % 2, name=part.name)
        for part in blobs
    )
    stream = Stream.domain_incremental(train, test)
    joint = measured(stream.joint(), tiny)
    assert joint.matrix.counts()[1].tolist() == [30]
    assert {name: total for name, (_, total) in joint.by_task.items()} == {t.name: len(t.test or ()) for t in stream}


def test_joint_and_one_by_one_are_not_mixed_up(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    stream = Stream.class_incremental(*blobs, first=2, increment=2)
    one_by_one = measured(stream, tiny, tmp_path / "one by one")
    joint = measured(stream.joint(), tiny, tmp_path / "joint")
    assert joint.protocol.hash != one_by_one.protocol.hash
    folders = [tmp_path / "joint", tmp_path / "one by one"]
    with pytest.raises(RunError, match=r"different protocols: they differ in stream\.joint \(true / absent\)"):
        compare(folders)
    assert len(compare(folders, allow_different=True).rows) == 2
    with pytest.raises(RunError, match="holds a different run"):
        measured(stream.joint(), tiny, tmp_path / "one by one")


def test_the_command(tmp_path: Path) -> None:
    """Of folders, each a task, whose joint run is found again by commands that open its data."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for task, names in (("monday", "ab"), ("tuesday", "bc")):
        for part, count in (("train", 3), ("test", 1)):
            for name in names:
                place = tmp_path / task / part / name
                place.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{i}.png")
    asked = ["run", "--method", "ridge_probe", "--joint", "--no-references", "--device", "cpu"]
    folders = ["--task", str(tmp_path / "monday"), "--task", str(tmp_path / "tuesday")]
    said = CliRunner().invoke(app, [*asked, *folders, "--out", str(tmp_path / "run")])
    assert said.exit_code == 0, said.output
    assert "2 tasks at once, 3 classes, 12 training and 4 test images" in said.output
    assert "by task, all learned at once: monday " in said.output
    noted = json.loads((tmp_path / "run/protocol.json").read_text())["fields"]["stream"]
    assert noted["joint"] is True and [task["name"] for task in noted["tasks"]] == ["joint"]
    from evertune.cli.origin import open_stream

    assert [task.name for task in open_stream(tmp_path / "run", None, None).merged] == ["monday", "tuesday"]
