"""A process that learns is killed, again and again, and what goes on ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = """
import os, signal, sys, tempfile, threading, time, traceback
import numpy as np, timm, torch
from evertune import Learner, Stream, load_backbone
from evertune.streams import ArraySource
from safetensors.torch import save_file
from tqdm.auto import tqdm

method = sys.argv[1]
tqdm.set_lock(threading.RLock())  # its own is common to all that are forked: killed with it, one would stop them all
torch.manual_seed(0)
save_file(timm.create_model("test_vit").state_dict(), "weights.safetensors")
backbone = load_backbone("test_vit", weights="weights.safetensors", input_size=32)
x = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
data = ArraySource(x, np.arange(48) % 4, classes="abcd", name="noise")
tasks = Stream.class_incremental(data, None, first=2, increment=2)
OPTIONS = {
    "safe": dict(features=64, epochs=3, follow_epochs=2),
    "hide_pet": dict(epochs=2, shared_epochs=2, warmup=0, shared_warmup=0, centroids=2, tii_epochs=20, tap_epochs=20),
    "ntk_cl": dict(epochs=3, views=2),
}[method] | {"batch_size": 8}


def learn(folder):
    if os.path.exists(folder + "/learner.json"):
        learner = Learner.load(folder, backbone, device="cpu", progress=False)
    else:
        learner = Learner(method, backbone, device="cpu", progress=False, seeds=3, **OPTIONS)
    for task in tasks[len(learner.history):]:
        learner.learn(task, folder=folder, every=0)
    np.save(folder + "/scores.npy", learner.scores(x).numpy())


with tempfile.TemporaryDirectory() as folder:
    learn(folder)  # so that nothing is imported any more
print("ready", flush=True)
for line in sys.stdin:
    folder, limit = line.split()
    child = os.fork()
    if not child:
        try:
            learn(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if limit != "none":
        time.sleep(float(limit))
        os.kill(child, signal.SIGKILL)  # one that has ended stays known until it is waited for
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process for every folder it is told, so that none has to import all the libraries again."""


class Server:
    """Makes processes that learn two tasks into a folder, or go on with that."""

    def __init__(self, script: Path, method: str) -> None:
        script.write_text(SERVER)
        self.process = subprocess.Popen(
            [sys.executable, str(script), method], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=script.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._answer() == "ready"

    def learn(self, folder: Path, killed_after: float | None = None) -> bool:
        """Whether it came to its end, and was not killed after so many seconds before."""
        assert self.process.stdin is not None
        folder.mkdir(exist_ok=True)
        print(folder, "none" if killed_after is None else killed_after, file=self.process.stdin, flush=True)
        code = int(self._answer())
        assert code in (0, -signal.SIGKILL)
        return code == 0

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    begun: list[Server] = []

    def begin(method: str) -> Server:
        begun.append(Server(tmp_path / "server.py", method))
        return begun[-1]

    yield begin
    for server in begun:
        server.end()


def outcome(folder: Path) -> tuple[str, bytes]:
    """The digest of the last state, and what is predicted.

    Of the updates nothing is left, or what was killed after the last save and is of the version before.
    """
    learner = json.loads((folder / "learner.json").read_text())
    if (left := folder / "update.json").exists():
        assert json.loads(left.read_text())["version"] == learner["version"] - 1
    return learner["state"]["sha256"], (folder / "scores.npy").read_bytes()


def never_stopped(server: Server, folder: Path) -> tuple[tuple[str, bytes], float]:
    """Its outcome, and the seconds that it took."""
    started = time.perf_counter()
    assert server.learn(folder)
    return outcome(folder), time.perf_counter() - started


def test_killed_three_times_and_never_stopped_are_the_same(serve: Callable[[str], Server], tmp_path: Path) -> None:
    server = serve("safe")
    expected, seconds = never_stopped(server, tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < 3:
        done = server.learn(tmp_path / "killed", rng.uniform(0.2, 0.9) * seconds / 3)
        kills += not done
        if done:  # the machine has become faster
            assert outcome(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
    assert server.learn(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["safe", "hide_pet", "ntk_cl"])
def test_killed_at_thirty_moments(
    serve: Callable[[str], Server], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One moment in each thirtieth of the time it takes, so some of them are inside writes: every step is kept."""
    server, rng = serve(method), random.Random(0)
    expected, seconds = never_stopped(server, tmp_path / "whole")
    writing = same = 0
    for number in range(30):
        folder, moment = tmp_path / f"{number}", (number + rng.random()) / 30 * seconds
        while server.learn(folder, moment):  # it was faster than that
            assert outcome(folder) == expected
            shutil.rmtree(folder)
            moment *= 0.9
        writing += any(p.suffix == ".part" for p in folder.iterdir())
        assert server.learn(folder)
        same += outcome(folder) == expected
    with capsys.disabled():
        print(f"\n{method}: {same} of 30 the same, {writing} of them killed while a file was written")
    assert same == 30
