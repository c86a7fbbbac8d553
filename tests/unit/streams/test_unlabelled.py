"""Images to predict, in every form they may come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evertune.errors import DataError
from evertune.streams import open_data
from evertune.streams.unlabelled import unlabelled


def test_paths_pictures_and_arrays_are_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in pixels]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    forms = [pixels, pictures, sorted(tmp_path.iterdir()), [str(p) for p in sorted(tmp_path.iterdir())]]
    for form in forms:
        source = unlabelled(form)
        assert len(source) == 3 and np.array_equal(np.asarray(source.load(1)), pixels[1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cat.png", "list of one"),
        ([1, 2], "list of int"),
        (np.full((1, 4, 4), 200.0), "divide by 255"),
        (np.full((1, 4, 4), np.nan), "NaN|nan|finite"),
    ],
)
def test_what_is_no_list_of_images(images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        unlabelled(images)  # type: ignore[arg-type]


def test_bad_pictures_are_named_when_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 0 has no pixels"):
        unlabelled([Image.new("RGB", (0, 0))]).load(0)
    with pytest.raises(DataError, match="image 1 cannot be used"):
        unlabelled([Image.new("RGB", (1, 1)), Image.new("F", (2, 2))]).load(1)
    with pytest.raises(DataError, match=r"nowhere\.png cannot be opened"):
        unlabelled([tmp_path / "nowhere.png"]).load(0)


def test_skip_bad_leaves_out_a_picture_cut_in_its_middle(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(noise).save(tmp_path / name / f"{i}.jpg", quality=90)
    whole = (tmp_path / "a/0.jpg").read_bytes()
    (tmp_path / "a/0.jpg").write_bytes(whole[: len(whole) // 2])
    train, test = open_data(tmp_path, skip_bad=True)
    assert len(train) + len(test) == 7
    assert any("a/0.jpg" in entry for entry in train.skipped)
