from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evertune.errors import ConfigError, DataError, StorageError
from evertune.evaluation import AccuracyMatrix
from evertune.report import draw_run
from evertune.report.plots import _some, _spread, _ticks


def run(stages: int, *parts: str, names: list[str] | None = None) -> AccuracyMatrix:
    rng = np.random.default_rng(stages)
    matrix = AccuracyMatrix(parts[0] if parts else "model")
    for part in parts or ("model",):
        for stage in range(stages):
            for group in range(stage + 1):
                matrix.record(stage, group, rng.integers(60, 100), 100, part=part, name=names[group] if names else None)
    return matrix


@pytest.mark.parametrize("stages", [1, 2, 5, 10, 20, 30])
def test_pictures_of_any_length_are_written(stages: int, tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    draw_run(run(stages), path, "a run")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 500
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 20
    assert [file.name for file in tmp_path.iterdir()] == ["run.png"], "nothing is left beside the picture"


def words(path: Path) -> str:
    """The texts of an SVG: matplotlib notes each as a comment beside its glyphs."""
    return path.read_text(encoding="utf-8")


def test_all_parts_baselines_numbers_and_notes_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    matrix = run(3, "mixture", "slow", "fast", names=["art", "photo", "sketch"])
    draw_run(matrix, path, "SAFE on pets", {"nearest mean": 41.25, "joint ridge": 99.0}, note="protocol 0123456789ab")
    text = words(path)
    for expected in (
        "SAFE on pets",
        "nearest mean  41.2",
        "joint ridge  99.0",
        "accuracy on each task, mixture (%)",
        "protocol 0123456789ab",
        "forgetting",
        "art",
        "sketch",
        f"{matrix.accuracy(2, 1):.1f}",
        *(f"{part}  {sum(matrix.counts(part)[0][-1]) / 3:.1f}" for part in matrix.parts),
    ):
        assert f"<!-- {expected}" in text or f"{expected} " in text, expected


def test_the_same_run_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_run(run(4, "mixture", "slow"), tmp_path / name, "same", {"floor": 50.0})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_dollar_signs_and_long_titles_are_only_text(tmp_path: Path) -> None:
    draw_run(run(2, names=["$x_{", "b"]), tmp_path / "run.png", "$\\frac{ " * 30, {"$^": 3.0}, note="$_")


def test_a_group_without_test_examples_is_drawn_as_a_dash(tmp_path: Path) -> None:
    matrix = AccuracyMatrix()
    for cell in ((0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 3, 4)):
        matrix.record(*cell)
    draw_run(matrix, tmp_path / "run.svg", "gaps")
    assert "<!-- – -->" in words(tmp_path / "run.svg")


@pytest.mark.parametrize("correct", [0, 100])
def test_extreme_accuracies_are_drawn(correct: int, tmp_path: Path) -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, 0, correct, 100)
    draw_run(matrix, tmp_path / "run.png", "extreme", {"floor": 0.0, "ceiling": 100.0})


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'run.jpg'; end its name in .png or .svg"):
        draw_run(run(2), tmp_path / "run.jpg", "a run")
    for value in (120.0, -1.0, float("nan")):
        with pytest.raises(DataError, match=r"the baseline 'ridge' is .* percent"):
            draw_run(run(2), tmp_path / "run.png", "a run", {"ridge": value})
    with pytest.raises(DataError, match="empty"):
        draw_run(AccuracyMatrix(), tmp_path / "run.png", "a run")
    unfinished = run(2)
    unfinished.record(2, 0, 1, 100)
    with pytest.raises(DataError, match="lacks the cells"):
        draw_run(unfinished, tmp_path / "run.png", "a run")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written: No such file or directory"):
        draw_run(run(2), tmp_path / "missing" / "run.png", "a run")


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.png"
    draw_run(run(2), path, "old")
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        draw_run(run(3), path, "new")
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["run.png"]


def test_pyplot_is_never_imported() -> None:
    """It would choose a backend and keep figures alive for the whole process."""
    code = "import sys, evertune.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_shown_where_they_fit() -> None:
    assert _ticks(["art", "photo"], cell=1.0) == ["art", "photo"]
    assert _ticks(["art", "a long name"], cell=0.5) == ["1", "2"]
    assert _ticks(["task 1", "task 2"], cell=0.3) == ["1", "2"]


def test_ticks_thin_out() -> None:
    assert _some(4, most=10) == [1, 2, 3, 4]
    assert _some(20, most=10) == [1, 5, 10, 15, 20]
    assert _some(60, most=10) == [1, 10, 20, 30, 40, 50, 60]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_keep_apart_in_order_and_inside(wanted: list[float]) -> None:
    heights = _spread(np.array(wanted), gap=5.0, low=0.0, high=100.0)
    ordered = heights[np.argsort(wanted, kind="stable")]
    assert (np.diff(ordered) >= 5 - 1e-9).all()
    assert ordered[0] >= -1e-9 and ordered[-1] <= 100 + 1e-9


def test_labels_that_do_not_collide_stay_and_pairs_move_evenly() -> None:
    assert _spread(np.array([90.0, 10.0, 50.0]), 5.0, 0.0, 100.0).tolist() == [90, 10, 50]
    assert _spread(np.array([50.0, 50.0, 80.0]), 4.0, 0.0, 100.0) == pytest.approx([48, 52, 80])
    assert _spread(np.array([100.0, 99.0]), 4.0, 0.0, 100.0) == pytest.approx([100, 96])
