from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from evertune.errors import DataError
from evertune.streams import NAMES, FileSource, open_data


def test_digits_are_split_as_scikit_learn_splits_them() -> None:
    train, test = open_data("digits")
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    assert (train.labels == y_train).all()
    assert (test.labels == y_test).all()
    for source, pixels in ((train, x_train), (test, x_test)):
        for row in (0, len(source) - 1):
            grey = np.asarray(source.load(row))[:, :, 0]
            assert (grey == np.rint(pixels[row].reshape(8, 8) / 16 * 255)).all()
    assert train.classes == tuple("0123456789")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'cifar_100' is neither .* nor a known data set. Did you mean 'cifar100'\?"):
        open_data("cifar-100")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"digits"}))
def test_a_set_that_is_not_there_is_not_downloaded_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"'{name}' is not in .*download=True"):
        open_data(name, root=tmp_path)


def write_idx(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(header + values.tobytes())


def test_torchvision_sets_of_arrays(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    train, test = open_data("Fashion-MNIST", root=tmp_path)
    assert (len(train), len(test)) == (20, 10)
    assert train.classes[9] == "Ankle boot"
    assert train.load(3).size == (28, 28)
    assert train.describe(3) == "fashion_mnist train row 3"


def test_torchvision_sets_of_files_without_a_split(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    home = tmp_path / "photos" / "eurosat" / "2750"
    make_images({"eurosat/2750/Forest": 10, "eurosat/2750/River": 5})
    train, test = open_data("eurosat", root=tmp_path / "photos")
    assert train.classes == ("Forest", "River")
    assert train.counts().tolist() == [8, 4]
    assert test.counts().tolist() == [2, 1]
    assert train.describe(0).startswith(str(home))
    assert train.load(0).size == (12, 10)


def test_torchvision_sets_of_files_with_a_split(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    make_images({"dtd/dtd/images/dotted": 2, "dtd/dtd/images/woven": 2})
    labels = tmp_path / "photos" / "dtd" / "dtd" / "labels"
    labels.mkdir()
    for part, i in (("train", 0), ("test", 1)):
        (labels / f"{part}1.txt").write_text(f"dotted/{i}.png\nwoven/{i}.png\n")
    train, test = open_data("dtd", root=tmp_path / "photos")
    assert isinstance(train, FileSource)
    assert train.files == ("dotted/0.png", "woven/0.png")
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]
    assert len(train.digest) == 64


def test_torchvision_sets_with_channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)

    def svhn(root: str, split: str, download: bool) -> SimpleNamespace:
        return SimpleNamespace(
            data=x if split == "train" else x[:10], labels=np.arange(20 if split == "train" else 10) % 10
        )

    monkeypatch.setattr("torchvision.datasets.SVHN", svhn)
    train, test = open_data("svhn")
    assert (len(train), len(test), train.classes) == (20, 10, tuple("0123456789"))
    assert (np.asarray(train.load(3)) == x[3].transpose(1, 2, 0)).all()


def test_faces_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((20, 6, 5, 3), dtype=np.float32)
    faces = SimpleNamespace(images=images, target=np.arange(20) % 2, target_names=np.array(["Ada", "Grace"]))

    def fetch(data_home: Path, download_if_missing: bool, color: bool, min_faces_per_person: int) -> SimpleNamespace:
        assert (data_home, download_if_missing, color) == (tmp_path, True, True)
        return faces

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    train, test = open_data("lfw_people", root=tmp_path, download=True)
    assert (len(train), len(test), train.classes) == (14, 6, ("Ada", "Grace"))


def test_a_download_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(**options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_olivetti_faces", fetch)
    with pytest.raises(DataError, match=r"'olivetti_faces' could not be downloaded .* \(no route to host\)"):
        open_data("olivetti_faces", root=tmp_path, download=True)


def test_a_folder_with_the_name_of_a_set(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images({"cat": 2, "dog": 2}, root="digits")
    monkeypatch.chdir(tmp_path)
    assert open_data("digits")[0].classes == tuple("0123456789")
    assert open_data("./digits")[0].classes == ("cat", "dog")
    assert open_data(Path("digits"))[0].classes == ("cat", "dog")
