"""Small image folders, made where a test needs them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImages = Callable[..., Path]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """``make_images({"train/cat": 3})`` writes 0.png … 2.png of different colours into folders below a fresh one."""

    def make(folders: dict[str, int], root: str = "photos", size: tuple[int, int] = (12, 10)) -> Path:
        base = tmp_path / root
        base.mkdir(exist_ok=True)
        rng = np.random.default_rng(len(folders))
        for folder, count in folders.items():
            (base / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / folder / f"{i}.png")
        return base

    return make


@pytest.fixture
def zip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Zip a folder; names start with ``inside`` if given."""

    def make(folder: Path, inside: str = "", name: str = "data.zip") -> Path:
        target = tmp_path / name
        with zipfile.ZipFile(target, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, f"{inside}{file.relative_to(folder).as_posix()}")
        return target

    return make
