"""``evertune forget`` and ``evertune info`` on a learner of a few small images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from evertune import Learner, LearnerFolder, Task
from evertune.cli.app import app
from evertune.streams import ArraySource

NAMES = [f"colour {c}" for c in range(12)]


def evertune_(*args: object, answer: str = "") -> Result:
    return CliRunner().invoke(
        app, [str(arg) for arg in args], input=answer, prog_name="evertune", env={"COLUMNS": "200"}
    )


def works(*args: object, answer: str = "") -> str:
    result = evertune_(*args, answer=answer)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = evertune_(*args)
    assert result.exit_code == 2 and not result.stdout, result.output
    return result.stderr


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RanPAC of three tasks of four classes, a version for each."""
    folder = tmp_path_factory.mktemp("taught") / "kept"
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 12
    images = rng.integers(0, 256, (12, 1, 1, 3))[labels] // 2 + rng.integers(0, 100, (36, 8, 8, 3))
    data = ArraySource(images.astype(np.uint8), labels, NAMES, name="colours")
    me = Learner("ranpac", "embedded", progress=False, epochs=0, features=30)
    for t in range(3):
        names = NAMES[4 * t : 4 * t + 4]
        me.learn(Task(t, f"part {t}", data.select(data.rows_of(names))))
        me.save(folder)
    return folder


@pytest.fixture
def kept(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "kept"))


# -- forget ------------------------------------------------------------------------------------------------------------


def test_a_class_goes_from_the_folder_and_its_versions_too(kept: Path) -> None:
    said = works("forget", kept, "colour 3", "colour 11", "--yes")
    assert "forgotten: colour 3, colour 11; " in said and "the other 10 classes" in said
    assert "16 of 16 inputs" in said and "second moments" in said
    assert "earlier versions, which may hold it: 1, 2, 3 (to be removed)" in said and "evertune cache" in said
    assert f"{kept} is version 4 now and knows 10 classes" in said
    assert [version.number for version in LearnerFolder(kept).versions()] == [4]
    assert not any("colour 3" in file.read_text() for file in kept.glob("*.json"))
    assert sorted(file.name for file in kept.iterdir() if not file.name.startswith(".")) == [
        "learner-4.json", "learner.json", "state-4.safetensors"
    ]  # fmt: skip
    assert Learner.load(kept, progress=False).classes == tuple(n for n in NAMES if n not in ("colour 3", "colour 11"))


def test_a_task_goes_and_versions_may_stay(kept: Path) -> None:
    said = works("forget", kept, "--task", "part 1", "--yes", "--keep-versions")
    assert "and with them part 1" in said and "1, 2, 3 (kept)" in said
    assert [version.number for version in LearnerFolder(kept).versions()] == [1, 2, 3, 4]
    assert [entry["task"] for entry in LearnerFolder(kept).content()["history"]] == ["part 0", "part 2"]


@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_nothing_happens_without_consent(kept: Path, answer: str) -> None:
    before = {file.name: file.read_bytes() for file in kept.iterdir() if file.name != ".lock"}
    assert "nothing was changed" in works("forget", kept, "colour 3", answer=answer)
    assert {file.name: file.read_bytes() for file in kept.iterdir() if file.name != ".lock"} == before
    works("forget", kept, "colour 3", answer="y\n")
    assert len(LearnerFolder(kept).content()["classes"]) == 11


def test_what_cannot_be_forgotten_is_refused(kept: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in kept.iterdir() if file.name != ".lock"}
    assert "did you mean 'colour 3'" in refused("forget", kept, "color 3", "--yes")
    assert "nothing to forget" in refused("forget", kept, "--yes")
    assert "No task is called 'part 9'" in refused("forget", kept, "--task", "part 9", "--yes")
    assert "all 12 classes" in refused("forget", kept, *NAMES, "--yes")
    assert "holds no learner" in refused("forget", tmp_path / "nothing", "colour 3", "--yes")
    (kept / "update.json").write_text("{}")
    assert "unfinished update" in refused("forget", kept, "colour 3", "--yes")
    (kept / "update.json").unlink()
    (kept / "update-3.safetensors").write_bytes(b"features")  # of a process that was killed while it tidied
    assert "unfinished update" in refused("forget", kept, "colour 3", "--yes")
    works("rollback", kept, "--to", "3")
    assert not (kept / "update-3.safetensors").exists()
    assert {file.name: file.read_bytes() for file in kept.iterdir() if file.name != ".lock"} == before


# -- info --------------------------------------------------------------------------------------------------------------


def test_info_tells_what_is_known_and_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evertune.backbones.load.load_backbone", None)  # is not needed
    said = works("info", kept)
    weights = LearnerFolder(kept).content()["backbone"]["weights"]
    assert f"embedded, weights {weights[:16]}, not stored here" in said
    assert "ranpac, preset evertune with epochs=0, features=30" in said
    assert "12: colour 0, colour 1" in said and "colour 11" not in said
    assert "colour 8, colour 9, colour 10 … (4)" in said
    assert "colour 11" in works("info", kept, "--classes")
    for words in ("second moments of all classes together", "class means, as sums", "nothing: random numbers"):
        assert words in said
    assert "unfinished" not in said


def test_info_as_json_counts_the_bytes_of_the_state(kept: Path) -> None:
    found = json.loads(works("info", kept, "--format", "json"))
    tensors = LearnerFolder(kept).read()[1]
    assert sum(one["bytes"] for one in found["stored"]) == sum(tensor.nbytes for tensor in tensors.values())
    assert found["classes"] == NAMES and [version["number"] for version in found["versions"]] == [1, 2, 3]
    assert found["bytes"] == sum(file.stat().st_size for file in kept.iterdir())
    assert found["changed"] == {"epochs": 0, "features": 30} and found["unfinished"] is None


def test_info_names_an_unfinished_update_and_what_is_wrong(kept: Path, tmp_path: Path) -> None:
    (kept / "update.json").write_text("{}")
    assert "unfinished" in works("info", kept)
    assert "--format xml does not exist" in refused("info", kept, "--format", "xml")
    assert "is missing" in refused("info", tmp_path / "nothing")
    file = kept / "learner.json"
    file.write_bytes(file.read_bytes().replace(b"colour 0", b"colour O", 1))
    assert "Version 3 is whole" in refused("info", kept)
