from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from evertune.errors import ConfigError, DataError, StorageError
from evertune.report import KernelView, draw_kernel
from evertune.report.kernel_plots import _scale


def view(tasks: int, images: int = 5, outputs: int = 2, *, names: list[str] | None = None, seed: int = 0) -> KernelView:
    """Images of the tasks in turn, with random tangent features."""
    rng = np.random.default_rng(seed)
    owner = np.tile(np.arange(tasks), images)
    features = rng.normal(size=(tasks * images * outputs, 12)) + 1
    overlap = rng.uniform(0.02, 0.98, size=(tasks, tasks))
    overlap = (overlap + overlap.T) / 2
    np.fill_diagonal(overlap, 1.0)
    return KernelView(overlap, features @ features.T, owner, names or [f"task {task + 1}" for task in range(tasks)])


@pytest.mark.parametrize(("tasks", "learners"), [(1, 1), (4, 1), (30, 1), (1, 2), (10, 2), (3, 3)])
def test_pictures_of_any_size_are_written(tasks: int, learners: int, tmp_path: Path) -> None:
    path = tmp_path / "kernel.png"
    draw_kernel({f"learner {n}": view(tasks, 3, seed=n) for n in range(learners)}, path, "kernels")
    with Image.open(path) as picture:
        assert picture.width > 1000 and picture.height > 800
        assert (picture.width > picture.height) == (learners != 2)
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 20
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.png"], "nothing is left beside the picture"


def test_names_numbers_and_notes_are_in_the_picture(tmp_path: Path) -> None:
    """An SVG notes each text as a comment beside its glyphs."""
    one, two = view(3, names=["art", "photo", "sketch"]), view(4, seed=1)
    draw_kernel({"finetune": one, "NTK-CL": two}, tmp_path / "kernel.svg", "who interferes", note="protocol 0123")
    text = (tmp_path / "kernel.svg").read_text(encoding="utf-8")
    for expected in (
        "who interferes",
        f"mean overlap of two different tasks: finetune {one.between():.2f}  ·  NTK-CL {two.between():.2f}",
        "finetune",
        "NTK-CL",
        "overlap between tasks",
        "kernel between every two images",
        "sketch",
        "4",
        "protocol 0123",
        f"{one.overlap[0, 2]:.2f}",
        f"{two.overlap[3, 1]:.2f}",
    ):
        assert f"<!-- {expected} -->" in text, expected


def test_numbers_that_do_not_fit_are_left_to_the_colours(tmp_path: Path) -> None:
    many = view(30, 2)
    draw_kernel({"learner": many}, tmp_path / "kernel.svg", "many")
    text = (tmp_path / "kernel.svg").read_text(encoding="utf-8")
    assert f"<!-- {many.overlap[3, 7]:.2f} -->" not in text
    assert "<!-- 25 -->" in text and "<!-- 24 -->" not in text


def test_the_same_kernel_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_kernel({"one": view(3), "two": view(2)}, tmp_path / name, "same", note="note")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_learners_share_their_colours(tmp_path: Path) -> None:
    """The same kernel looks the same at the left and at the right, and weaker beside one that overlaps more."""
    strong, weak = view(2), view(2)
    weak = KernelView(np.where(np.eye(2) > 0, 1.0, 0.1), weak.gram, weak.tasks, weak.names)
    strong = KernelView(np.where(np.eye(2) > 0, 1.0, 0.9), strong.gram, strong.tasks, strong.names)

    def corner(left: KernelView, right: KernelView, fraction: float) -> float:
        """Brightness in the upper right cell of the overlap of one learner."""
        draw_kernel({"a": left, "b": right}, tmp_path / "kernel.png", "colours")
        picture = imread(tmp_path / "kernel.png")[..., :3].mean(2)
        rows = picture[int(0.2 * len(picture)) : int(0.22 * len(picture))]
        at = int(fraction * picture.shape[1])
        return float(rows[:, at : at + 10].mean())

    left, right = 0.38, 0.83
    assert corner(weak, weak, left) == pytest.approx(corner(weak, weak, right), abs=0.02)
    assert corner(strong, weak, left) < corner(strong, weak, right) - 0.3
    assert corner(strong, weak, right) == pytest.approx(corner(weak, weak, right), abs=0.02)


def test_magnitudes_are_norms_by_image_with_tasks_together() -> None:
    one = view(2, images=3)
    sizes, order = one.magnitudes(), [0, 2, 4, 1, 3, 5]
    blocks = {
        (i, j): np.linalg.norm(one.gram[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]) for i in range(6) for j in range(6)
    }
    own = np.mean([blocks[i, i] for i in range(6)])
    expected = [[blocks[i, j] / own for j in order] for i in order]
    np.testing.assert_allclose(sizes, expected)
    assert one.edges() == [0, 3, 6]
    assert one.between() == one.overlap[0, 1]
    assert view(1).between() is None


def test_one_scale_holds_the_larger_kernel_and_no_single_image() -> None:
    small, large = np.full((20, 20), 0.5), np.full((20, 20), 2.0)
    large[0, 0] = 1e6
    assert _scale([small, large]).vmax == pytest.approx(2.0)
    assert _scale([np.zeros((3, 3))]).vmax == 1.0


def test_a_kernel_of_zeros_is_drawn(tmp_path: Path) -> None:
    nothing = KernelView(np.zeros((2, 2)), np.zeros((4, 4)), np.array([0, 1]), ["a", "b"])
    draw_kernel({"frozen": nothing}, tmp_path / "kernel.png", "nothing trained")


def test_dollar_signs_and_long_texts_are_only_text(tmp_path: Path) -> None:
    named = view(2, names=["$x_{", "b"])
    draw_kernel({"$\\frac{ " * 20: named, "$": named}, tmp_path / "kernel.png", "$_{ " * 60, note="$^ " * 90)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'kernel.jpg'; end its name in .png or .svg"):
        draw_kernel({"a": view(2)}, tmp_path / "kernel.jpg", "a kernel")
    with pytest.raises(DataError, match="no kernel to draw"):
        draw_kernel({}, tmp_path / "kernel.png", "a kernel")
    good = view(2)
    with pytest.raises(DataError, match=r"overlap of shape \(2, 2\) does not fit 3 tasks"):
        KernelView(good.overlap, good.gram, good.tasks, ["a", "b", "c"])
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(DataError, match="outside 0 to 1"):
            KernelView(np.array([[1.0, value], [value, 1.0]]), good.gram, good.tasks, good.names)
    with pytest.raises(DataError, match=r"kernel of shape \(19, 20\) does not fit 10 images"):
        KernelView(good.overlap, good.gram[1:], good.tasks, good.names)
    with pytest.raises(DataError, match=r"kernel of shape \(20, 20\) does not fit 0 images"):
        KernelView(good.overlap, good.gram, good.tasks[:0], good.names)
    with pytest.raises(DataError, match="NaN or infinity"):
        KernelView(good.overlap, good.gram * np.inf, good.tasks, good.names)
    for tasks in (good.tasks + 1, good.tasks * 0):
        with pytest.raises(DataError, match="must be of tasks 0 to 1, some of each"):
            KernelView(good.overlap, good.gram, tasks, good.names)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written: No such file or directory"):
        draw_kernel({"a": view(2)}, tmp_path / "missing" / "kernel.png", "a kernel")
    path = tmp_path / "kernel.png"
    path.mkdir()
    with pytest.raises(StorageError, match="could not be written: Is a directory"):
        draw_kernel({"a": view(2)}, path, "a kernel")
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.png"]
