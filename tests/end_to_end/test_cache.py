"""The feature cache as a user meets it: runs at the same time, several processes of one run, its command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from evertune import Learner, Stream, open_data, run
from evertune.cli.app import app
from evertune.engine import DiskCache
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}
EVERTUNE = [sys.executable, "-m", "evertune.cli"]


@pytest.fixture
def data(blobs: Data, tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez(file, x_train=blobs[0].x, y_train=blobs[0].labels, x_test=blobs[1].x, y_test=blobs[1].labels)
    return file


def arguments(data: Path, order: int, out: Path, *more: object) -> list[str]:
    settings = f"--method simple_cil --first 2 --increment 2 --eval-batch 16 --quiet --order-seed {order} --out {out}"
    return ["run", "--data", str(data), *settings.split(), *map(str, more)]


@pytest.mark.slow
def test_two_runs_at_once_share_a_folder(data: Path, tmp_path: Path) -> None:
    """Their numbers are those of runs without a cache, and the next run finds all there is to know."""
    kept = tmp_path / "kept"
    at_once = [
        subprocess.Popen(
            [*EVERTUNE, *arguments(data, order, tmp_path / f"with-{order}", "--cache", kept)],
            env=ALONE, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for order in (1, 2)
    ]  # fmt: skip
    for process in at_once:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0 and told == ""
    held = sorted((entry.described["data"]["size"], entry.rows) for entry in DiskCache(kept).entries())
    assert held == [(30, 30), (72, 72)]
    segments = sorted(file.name for file in kept.rglob("*.safetensors"))
    for order, name, more in ((1, "without-1", ()), (2, "without-2", ()), (3, "with-3", ("--cache", kept))):
        done = CliRunner().invoke(app, arguments(data, order, tmp_path / name, *more), prog_name="evertune")
        assert done.exit_code == 0, done.output
    assert sorted(file.name for file in kept.rglob("*.safetensors")) == segments
    for order in (1, 2):
        one, other = ((tmp_path / f"{name}-{order}/matrix.json").read_text() for name in ("with", "without"))
        assert one == other

    shown = CliRunner().invoke(app, ["cache", "--dir", str(kept)], prog_name="evertune")
    assert shown.exit_code == 0
    assert len(re.findall(r"x_train \w{8}, 72 of 72 rows; embedded \w{8}, fp32; \d\.\d MiB", shown.stdout)) == 1
    assert f"{kept} holds 2 entries" in shown.stdout
    cleared = CliRunner().invoke(app, ["cache", "--dir", str(kept), "--clear"], prog_name="evertune")
    assert "removed" in cleared.stdout and list(kept.iterdir()) == []
    nowhere = CliRunner().invoke(app, ["cache", "--dir", str(tmp_path / "nowhere")], prog_name="evertune")
    assert nowhere.exit_code == 2 and "There is no folder" in nowhere.stderr


RANKS = """
import sys
from evertune import Learner, Stream, open_data, run
train, test = open_data(sys.argv[1])
stream = Stream.class_incremental(train, test, first=3, increment=3)
learner = Learner("aper", device="cpu", epochs=1, eval_batch=7, cache=sys.argv[2], progress=False)
run(stream, learner, sys.argv[3], references=False)
learner.engine.runtime.state.destroy_process_group()
"""


def test_the_processes_of_one_run_pass_the_same_rows(data: Path, tmp_path: Path) -> None:
    """Two processes that share batches of 7 find part of the features; if they disagreed they would wait forever."""
    (tmp_path / "job.py").write_text(RANKS)
    kept, done = tmp_path / "kept", tmp_path / "done"
    train, test = open_data(str(data))
    stream = Stream.class_incremental(train, test, first=3, increment=3)
    alone = Learner("aper", device="cpu", epochs=1, eval_batch=7, cache=kept, progress=False)
    expected = run(stream, alone, references=False)
    (whole,) = (entry for entry in DiskCache(kept).entries() if entry.described["data"]["size"] == 72)
    sorted(whole.folder.glob("*.safetensors"))[0].unlink()

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    job = subprocess.run(
        [*launch, str(tmp_path / "job.py"), str(data), str(kept), str(done)],
        env=ALONE, text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-3000:]
    assert {entry.described["data"]["size"]: entry.rows for entry in DiskCache(kept).entries()} == {72: 72, 30: 30}
    assert json.loads((done / "matrix.json").read_text()) == json.loads(expected.matrix.to_json())
    state = load_file(done / "learner/state-2.safetensors")
    for name, value in alone.method.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_a_size_needs_a_folder(data: Path, tmp_path: Path) -> None:
    given = arguments(data, 1, tmp_path / "out", "--cache-size", "1")
    result = CliRunner().invoke(app, given, prog_name="evertune")
    assert result.exit_code == 2 and "--cache-size bounds the folder of --cache" in result.stderr
    result = CliRunner().invoke(app, [*given, "--cache", str(tmp_path / "kept"), "--cache-size", "-2"])
    assert result.exit_code == 2 and "at least 1" in result.stderr
