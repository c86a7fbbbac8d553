"""Runs as a whole: folders, resume, refusal of another run, domain streams, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch

import evertune
from evertune import Learner, LearnerFolder, Stream, Task, load_backbone, open_data, run, run_folder
from evertune.backbones import TimmViT
from evertune.costs import COSTS
from evertune.engine import PhaseReport
from evertune.errors import ConfigError, RunError, StorageError, StreamError, TrainingError
from evertune.run_folder import RunFolder
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]


def make_learner(tiny: TimmViT, **options: Any) -> Learner:
    settings = {"epochs": 2, "follow_epochs": 1, "features": 64, "progress": False} | options
    return Learner("safe", tiny, **settings)


@pytest.fixture
def stream(blobs: Data) -> Stream:
    return Stream.class_incremental(*blobs, first=2, increment=2)


def test_a_run_writes_its_folder(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    result = run(stream, make_learner(tiny), tmp_path / "run")
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files == {
        "accuracy.png", "config.json", "learner", "log.jsonl", "matrix.json", "protocol.json", "report.txt",
        "summary.json",
    }  # fmt: skip
    assert set(result.references) == {"nearest mean", "joint ridge"}
    assert result.matrix.parts == ("mixture", "slow", "fast")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["task"] for entry in log] == ["task 1", "task 2", "task 3"]
    numbers = json.loads((tmp_path / "run/summary.json").read_text())
    for entry in (*log, numbers):  # what a number may depend on besides the protocol
        assert (entry["evertune"], entry["pillow"]) == (evertune.__version__, PIL.__version__)
    assert {"final_accuracy_sample", "final_accuracy_task"} <= set(result.summary["mixture"])
    assert {p.suffix for p in (tmp_path / "run/learner").glob("[!.]*")} == {".json", ".safetensors"}


def test_a_stopped_run_goes_on_and_ends_the_same(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    whole = run(stream, make_learner(tiny), tmp_path / "whole", references=False)

    class Stop(Exception):
        pass

    def stop(stage: int, matrix: object) -> None:
        if stage == 1:
            raise Stop

    with pytest.raises(Stop):
        run(stream, make_learner(tiny), tmp_path / "stopped", references=False, on_stage=stop)
    resumed = run(stream, make_learner(tiny), tmp_path / "stopped", references=False)
    assert resumed.matrix == whole.matrix
    states = [
        next((tmp_path / name / "learner").glob("state-3.safetensors")).read_bytes() for name in ("whole", "stopped")
    ]
    assert states[0] == states[1]


def without_seconds(log: Path) -> list[dict[str, Any]]:
    """The entries of a log.jsonl, but for what the clock says."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if not k.endswith("seconds")}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return [kept(json.loads(line)) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("crash", ["before the learner is saved", "before the stage is measured", "before the matrix"])
def test_a_run_that_crashed_anywhere_ends_as_another(
    tiny: TimmViT, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    whole = run(stream, make_learner(tiny), tmp_path / "whole", references=False)
    owner, name = {
        "before the learner is saved": (Learner, "save"),
        "before the stage is measured": (RunFolder, "keep"),
        "before the matrix": (run_folder, "write_atomic"),
    }[crash]
    original, calls = getattr(owner, name), []

    def crashing(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == (4 if name == "write_atomic" else 2):
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, name, crashing)
    with pytest.raises(KeyboardInterrupt):
        run(stream, make_learner(tiny), tmp_path / "run", references=False)
    monkeypatch.undo()
    stages: list[int] = []
    again = run(
        stream, make_learner(tiny), tmp_path / "run", references=False, on_stage=lambda stage, _: stages.append(stage)
    )
    assert stages == [1, 2]
    assert again.matrix == whole.matrix
    assert without_seconds(tmp_path / "run/log.jsonl") == without_seconds(tmp_path / "whole/log.jsonl")
    assert (tmp_path / "run/matrix.json").read_bytes() == (tmp_path / "whole/matrix.json").read_bytes()


def test_a_run_goes_on_inside_a_task(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    whole = run(stream, make_learner(tiny), tmp_path / "whole", references=False, count=True)

    def stop(stage: int, report: PhaseReport) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(stream, make_learner(tiny), tmp_path / "run", checkpoint_every=0, on_phase=stop, count=True)
    other = make_learner(tiny, epochs=1)
    with pytest.raises(RunError, match="different run"):  # what is there is not lost to another one
        run(stream, other, tmp_path / "run")
    phases: list[str] = []
    again = run(
        stream,
        make_learner(tiny),
        tmp_path / "run",
        references=False,
        on_phase=lambda _, r: phases.append(r.name),
        count=True,
    )
    assert phases[:2] == ["slow statistics", "ridge heads"], "three phases were over"
    assert again.matrix == whole.matrix
    assert without_seconds(tmp_path / "run/log.jsonl") == without_seconds(tmp_path / "whole/log.jsonl")
    counted = [{k: v for k, v in result.cost.items() if not k.endswith("seconds")} for result in (again, whole)]
    assert counted[0] == counted[1]
    assert set(again.cost) == set(COSTS)
    assert f"{again.cost['forwards_per_prediction']:.2f} per prediction" in (tmp_path / "run/report.txt").read_text()


def test_what_a_cache_saves_is_not_counted(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    learner = Learner("simple_cil", tiny, device="cpu", progress=False, cache=tmp_path)
    with pytest.raises(ConfigError, match="leave out the cache"):
        run(stream, learner, count=True)


def test_a_run_folder_in_which_nothing_was_learned_is_free_for_another(
    tiny: TimmViT, stream: Stream, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError):
        run(stream, make_learner(tiny, rate=1e30), tmp_path / "run", checkpoint_every=0)
    with (
        LearnerFolder(tmp_path / "run/learner").lock(),
        ThreadPoolExecutor() as pool,
        pytest.raises(StorageError, match="another process"),
    ):  # somebody is at it
        pool.submit(run, stream, make_learner(tiny), tmp_path / "run").result()
    run(stream, make_learner(tiny), tmp_path / "run", references=False)
    assert json.loads((tmp_path / "run/config.json").read_text())["options"]["rate"] != 1e30


def test_the_same_run_started_twice_is_told_while_the_first_one_measures(
    tiny: TimmViT, stream: Stream, tmp_path: Path
) -> None:
    told: list[str] = []

    def again(*_: object) -> None:
        with ThreadPoolExecutor() as pool, pytest.raises(StorageError, match="another process") as refused:
            pool.submit(run, stream, make_learner(tiny), tmp_path / "run").result()
        told.append(str(refused.value))

    first = run(stream, make_learner(tiny), tmp_path / "run", references=False, on_stage=again)
    assert len(told) == first.matrix.stages == 3


def test_a_run_keeps_as_many_versions_as_it_is_told(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    run(stream, make_learner(tiny), tmp_path / "two", references=False)
    run(stream, make_learner(tiny), tmp_path / "all", references=False, versions=None)
    kept = {name: [v.number for v in LearnerFolder(tmp_path / name / "learner").versions()] for name in ("two", "all")}
    assert kept == {"two": [2, 3], "all": [1, 2, 3]}


def test_a_learner_that_was_taught_something_else_is_no_part_of_the_run(
    tiny: TimmViT, stream: Stream, blobs: Data, tmp_path: Path
) -> None:
    run(stream, make_learner(tiny), tmp_path / "run", references=False)
    kept = Learner.load(tmp_path / "run/learner", tiny, progress=False)
    kept.learn(Task(3, "elsewhere", blobs[0], kind="domain"))
    kept.save(tmp_path / "run/learner")
    with pytest.raises(RunError, match="taught something else"):
        run(stream, make_learner(tiny), tmp_path / "run", references=False)


def test_what_cannot_be_a_run_folder(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        run(stream, make_learner(tiny), tmp_path / "file")
    run(stream, make_learner(tiny), tmp_path / "run", references=False)
    (tmp_path / "run/matrix.json").unlink()
    with pytest.raises(RunError, match=r"matrix\.json cannot be read"):
        run(stream, make_learner(tiny), tmp_path / "run")


def test_a_learner_keeps_its_precision_and_every_state(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    learner = make_learner(tiny, precision="bf16")
    for task in stream:
        learner.learn(task)
        learner.save(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("state-*")) == [f"state-{t}.safetensors" for t in (1, 2, 3)]
    loaded = Learner.load(tmp_path, tiny, progress=False)
    assert loaded.engine.runtime.precision == "bf16"
    content = json.loads((tmp_path / "learner.json").read_text())
    del content["backbone"]
    (tmp_path / "learner.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r"not what was saved.* Version 3 is whole"):
        Learner.load(tmp_path, tiny)


def test_a_finished_run_is_read_again(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    first = run(stream, make_learner(tiny), tmp_path / "run", references=False)
    assert run(stream, make_learner(tiny), tmp_path / "run", references=False).matrix == first.matrix


@pytest.mark.parametrize("change", [{"epochs": 1}, {"seeds": 4}, {"method": "ranpac"}])
def test_another_run_in_the_folder_is_refused(
    tiny: TimmViT, stream: Stream, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(stream, make_learner(tiny), tmp_path / "run", references=False)
    before = (tmp_path / "run/summary.json").read_bytes()
    if change.pop("method", None):
        other = Learner("ranpac", tiny, features=64, progress=False)
    else:
        other = make_learner(tiny, **change)
    with pytest.raises(RunError, match=r"different run.*there,.*here"):
        run(stream, other, tmp_path / "run")
    assert (tmp_path / "run/summary.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tiny: TimmViT, stream: Stream, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="other files"):
        run(stream, make_learner(tiny), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_to_measure_is_said_first(tiny: TimmViT, blobs: Data) -> None:
    stream = Stream.class_incremental(blobs[0], None, first=2, increment=2)
    with pytest.raises(StreamError, match="no test images"):
        run(stream, make_learner(tiny))


@pytest.mark.parametrize("method", ["simple_cil", "aper", "ranpac", "safe", "hide_pet"])
def test_domains_arrive_one_by_one(tiny: TimmViT, blobs: Data, method: str) -> None:
    """The second domain is the first one inverted; every class is in both."""
    parts = []
    for source in blobs:
        x = np.concatenate([source.x, 255 - source.x])
        domains = np.repeat(["dark", "light"], len(source))
        parts.append(ArraySource(x, np.tile(source.labels, 2), source.classes, domains=domains, name=source.name))
    stream = Stream.domain_incremental(*parts)
    options: dict[str, Any] = {} if method == "simple_cil" else {"epochs": 2}
    if method == "hide_pet":
        options |= {"preset": "evertune", "blocks": "0-1", "epochs": 20, "shared_epochs": 20}
    learner = Learner(method, tiny, progress=False, **options)
    result = run(stream, learner)
    assert len(learner.classes) == 6 and result.matrix.stages == 2
    assert learner.scores(parts[1]).shape == (60, 6)
    if method in (
        "ranpac",
        "safe",
        "hide_pet",
    ):  # an untrained backbone's means of dark and light together tell nothing apart
        assert result.summary[result.matrix.primary]["final_accuracy_sample"] > 100 / 6


TWO = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from evertune.backbones import digest
from evertune import Learner, Stream, open_data, run, load_backbone
from evertune.engine import Progress
train, test = open_data(sys.argv[1])
stream = Stream.class_incremental(train, test, first=3, increment=3)
backbone = load_backbone("test_vit", weights=sys.argv[2], input_size=32)

def made():
    return Learner(backbone=backbone, device="cpu", epochs=2, batch_size=7, eval_batch=16, progress=False, OPTIONS)

class Stopped(Exception):
    pass

learner = made()
run(stream, learner, sys.argv[3], references=False)
Path(f"{sys.argv[3]}-{learner.engine.runtime.rank}").write_text(digest(learner.method.state_dict()))
if "stop" in sys.argv:  # in the second epoch of a training phase, in both processes
    reached, calls = Progress.reached, []
    def stop(self, *where):
        reached(self, *where)
        calls.append(where)
        if len(calls) == 9:
            raise Stopped
    Progress.reached = stop
    try:
        run(stream, made(), f"{sys.argv[3]}-stopped", references=False, checkpoint_every=0)
    except Stopped:
        Progress.reached = reached
    assert list(Path(f"{sys.argv[3]}-stopped/learner").glob("update-*-1.safetensors")), "the second process has its own"
    again = made()
    run(stream, again, f"{sys.argv[3]}-stopped", references=False)
    assert digest(again.method.state_dict()) == digest(learner.method.state_dict())
learner.engine.runtime.state.destroy_process_group()  # else gloo's threads may abort the interpreter's end
"""
SAFE = """method="safe", preset="paper", follow_epochs=1, features=64, strength=10.0, lambda_cc=0,
**{"tuning.dropout": 0.0}"""
HIDE = """method="hide_pet", preset="evertune", shared_epochs=2, blocks="0-1", contrastive=0, statistics="covariance",
rate=1e-3, shared_rate=1e-3"""


KMEANS = """method="hide_pet", preset="evertune", shared_epochs=2, blocks="0-1", centroids=3"""
NTK = """method="ntk_cl", views=1"""


@pytest.mark.parametrize(
    ("options", "as_one"),
    [
        (SAFE, True),
        pytest.param(HIDE, True, marks=pytest.mark.slow),
        pytest.param(KMEANS, False, marks=pytest.mark.slow),
        pytest.param(NTK, False, marks=pytest.mark.slow),
    ],
    ids=["safe", "hide_pet", "hide_pet-kmeans", "ntk_cl"],
)
def test_two_processes_learn_what_one_does(blobs: Data, tmp_path: Path, options: str, as_one: bool) -> None:
    """Real processes over gloo; batches of 7 so that the parts are uneven.

    All processes end with one state, to the bit. It is a single process's where losses are means over samples and no
    clustering can tip over. Where it is not, two processes that were stopped and have gone on are compared instead.
    """
    import timm
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    np.savez(
        tmp_path / "data.npz",
        x_train=blobs[0].x, y_train=blobs[0].labels, x_test=blobs[1].x, y_test=blobs[1].labels,
    )  # fmt: skip
    (tmp_path / "job.py").write_text(TWO.replace("OPTIONS", options))
    arguments = [str(tmp_path / name) for name in ("job.py", "data.npz", "w.safetensors")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", []), ("two", launch))[not as_one :]:
        done = subprocess.run(
            [sys.executable, *command, *arguments, str(tmp_path / name), *([] if as_one else ["stop"])],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two-0").read_text() == (tmp_path / "two-1").read_text()
    if not as_one:
        return
    one, two = (load_file(tmp_path / name / "learner/state-2.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=2e-3, atol=2e-4, msg=key)
    one, two = ((tmp_path / name / "matrix.json").read_text() for name in ("one", "two"))
    assert one == two


@pytest.mark.real
def test_nearest_mean_on_cifar100_is_the_fields(shared: Path) -> None:
    """The first two of the ten stages, 65.80 and 49.10, with ViT-Ti at 96 px and inputs in [0, 1]."""
    weights = shared / "data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
    backbone = load_backbone("vit_tiny_patch16_224", weights=weights, input_size=96, preprocessing="unit")
    train, test = open_data(shared / "data/images/cifar100_sub.npz")
    stream = Stream.class_incremental(train, test, first=10, increment=10, train_per_class=100)
    learner = Learner("simple_cil", backbone, progress=False)
    for task, expected in zip(stream[:2], (65.80, 49.10), strict=True):
        learner.learn(task)
        counts = [learner.evaluate(t.test)["prototypes"] for t in stream[: task.index + 1]]
        assert 100 * sum(c for c, _ in counts) / sum(n for _, n in counts) == pytest.approx(expected, abs=0.3)
