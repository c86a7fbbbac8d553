"""A learner's folder is the same for every Python: what one writes, another reads, to the last bit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from evertune import Learner, Task
from evertune.backbones import TimmViT
from evertune.streams import ArraySource

Data = tuple[ArraySource, ArraySource]

OTHERS = [python for python in os.environ.get("EVERTUNE_PYTHONS", "").split(os.pathsep) if python]

THERE = """
import sys
import numpy as np
from evertune import ArraySource, Learner, Task
folder, data = sys.argv[1:]
data = np.load(data)
learner = Learner.load(folder, device="cpu", progress=False)
before = learner.scores(data["test"]).numpy()
labels = data["labels"]
learner.learn(Task(1, "second", ArraySource(data["train"], labels, ["spot 3", "spot 4", "spot 5"])))
learner.save(folder)
np.savez(folder + ".npz", before=before, after=learner.scores(data["test"]).numpy())
"""


def first_task(blobs: Data) -> Task:
    train = blobs[0]
    return Task(0, "first", ArraySource(*of_classes(train, range(3)), [f"spot {c}" for c in range(3)]))


def of_classes(source: ArraySource, classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, counted from 0."""
    rows = np.flatnonzero(np.isin(source.labels, classes))
    return source.x[rows], source.labels[rows] - classes.start


@pytest.mark.parametrize(
    "python",
    OTHERS or [pytest.param("", marks=pytest.mark.skip("EVERTUNE_PYTHONS names no other interpreters with evertune"))],
)
def test_another_python_reads_it_and_goes_on(python: str, blobs: Data, tmp_path: Path) -> None:
    """With the same versions of what evertune needs as here: libraries decide about bits, Python does not."""
    learner = Learner("safe", epochs=1, follow_epochs=1, features=50, device="cpu", progress=False)
    learner.learn(first_task(blobs))
    folder = tmp_path / "kept"
    learner.save(folder)
    images, labels = of_classes(blobs[0], range(3, 6))
    test = blobs[1].x
    np.savez(tmp_path / "data.npz", test=test, train=images, labels=labels)
    command = [python, "-c", THERE, str(folder), str(tmp_path / "data.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = np.load(tmp_path / "kept.npz")
    assert there["before"].tobytes() == learner.scores(test).numpy().tobytes()
    back = Learner.load(folder, device="cpu", progress=False)
    assert there["after"].tobytes() == back.scores(test).numpy().tobytes() and len(back.classes) == 6
    learner.learn(Task(1, "second", ArraySource(images, labels, ["spot 3", "spot 4", "spot 5"])))
    assert there["after"].tobytes() == learner.scores(test).numpy().tobytes(), "learned there as here"


def test_the_folder_is_json_and_safetensors_and_knows_no_python(tiny: TimmViT, blobs: Data, tmp_path: Path) -> None:
    learner = Learner("ranpac", tiny, epochs=1, features=20, device="cpu", progress=False)
    learner.learn(first_task(blobs))
    learner.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), "pickle, or torch.save's zip"
        if path.suffix == ".json":
            text = content.decode("ascii" if content.isascii() else "utf-8")
            json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are Python's own, not JSON
            assert platform.python_version() not in text
            assert not re.search(rf"(?i)python|cpython|pickle|{re.escape(sys.implementation.cache_tag)}", text)
        else:
            with safe_open(path, "np") as file:
                assert file.metadata() is None
                kinds = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
            assert "object" not in kinds
