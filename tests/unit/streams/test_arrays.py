from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evertune.errors import DataError
from evertune.streams import ArraySource, open_data


def pixels(source: ArraySource, row: int = 0) -> np.ndarray[Any, Any]:
    image = source.load(row)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_is_repeated() -> None:
    x = np.arange(40, dtype=np.uint8).reshape(2, 4, 5)
    for shape in ((2, 4, 5), (2, 4, 5, 1), (2, 1, 4, 5)):
        assert (pixels(ArraySource(x.reshape(shape), [0, 1]), 1) == x[1, :, :, None]).all()


def test_channels_first_and_last_agree() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    first = ArraySource(x.transpose(0, 3, 1, 2), [0, 1])
    assert (pixels(first) == x[0]).all()
    assert (pixels(ArraySource(x, [0, 1])) == x[0]).all()


def test_transparency_lies_on_white() -> None:
    x = np.zeros((1, 1, 3, 4), np.uint8)
    x[0, 0, :, 0] = 200
    x[0, 0, :, 3] = (0, 255, 51)
    assert pixels(ArraySource(x, [0]))[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]


def test_sixteen_bits_are_scaled_to_eight() -> None:
    x = np.array([0, 128, 129, 257, 65535 - 128, 65535], np.uint16).reshape(1, 1, 6)
    assert pixels(ArraySource(x, [0]))[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_unit_range_or_byte_range(dtype: Any) -> None:
    grey = np.array([0, 51, 102, 255], dtype).reshape(1, 1, 4)
    assert pixels(ArraySource(grey, [0]))[0, :, 0].tolist() == [0, 51, 102, 255]
    assert pixels(ArraySource(grey / 255, [0]))[0, :, 0].tolist() == [0, 51, 102, 255]


def test_a_memory_mapped_array_is_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert ArraySource(mapped, [0, 1, 1]).x is mapped


def float_images(value: float, row: int = 1500) -> np.ndarray[Any, Any]:
    x = np.zeros((2000, 2, 2), np.float32)
    x[0] = 200
    x[row, 0, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (float_images(np.nan), "mine row 1500 holds NaN or infinite values; repair or remove that row"),
        (float_images(np.inf), "mine row 1500 holds NaN or infinite"),
        (float_images(-0.5), r"mine row 1500 holds values from -0.5 to 0; .* before any normalisation"),
        (float_images(256), "mine row 1500 holds values from 0 to 256"),
        (np.array([[[0.2]], [[1.003]]]), "mine row 1 reaches 1.003: slightly more than"),
        (np.zeros((2, 2, 2), np.int64), "pixels of type int64 are not understood"),
        (np.zeros((2, 2, 2), bool), "pixels of type bool are not understood"),
        (np.zeros((2, 784), np.uint8), r"shape \(2, 784\) are not understood.*reshape"),
        (np.zeros((2, 5, 5, 7), np.uint8), r"shape \(2, 5, 5, 7\) are not understood"),
        (np.zeros((2, 0, 5), np.uint8), "the images have no pixels"),
        (np.zeros((0, 5, 5), np.uint8), "holds no images"),
    ],
)
def test_impossible_images_are_named(x: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySource(x, np.zeros(len(x), int), name="mine")


def test_one_label_and_one_domain_per_image() -> None:
    x = np.zeros((3, 4, 4), np.uint8)
    with pytest.raises(DataError, match="array labels: 2 for 3 images"):
        ArraySource(x, [0, 1])
    with pytest.raises(DataError, match="array domains: 1 for 3 images"):
        ArraySource(x, [0, 1, 1], domains=["photo"])


def good_npz() -> dict[str, Any]:
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    return {"x_train": x, "y_train": np.arange(6) % 3, "x_test": x[:3], "y_test": np.arange(3)}


def save(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_npz_with_class_names(tmp_path: Path) -> None:
    train, test = open_data(save(tmp_path, **good_npz(), classes=["cat", "dog", "emu"]))
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert (len(train), len(test)) == (6, 3)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.describe(2) == "set.npz x_train row 2"


def test_npz_without_names_uses_the_labels_of_both_parts(tmp_path: Path) -> None:
    arrays = good_npz() | {"y_train": np.array([10, 2, 10, 2, 10, 2]), "y_test": np.array([2, 2, 2])}
    train, test = open_data(save(tmp_path, **arrays))
    assert train.classes == test.classes == ("2", "10")
    assert train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert test.labels.tolist() == [0, 0, 0]


def test_npz_with_names_as_labels_and_domains(tmp_path: Path) -> None:
    arrays = good_npz() | {"y_train": np.array(list("abcabc")), "y_test": np.array(list("cab"))}
    arrays |= {"domain_train": np.array(["day", "night"] * 3), "domain_test": np.array(["night", "day", "day"])}
    train, test = open_data(save(tmp_path, **arrays))
    assert train.domain_names == test.domain_names == ("day", "night")
    assert test.labels.tolist() == [2, 0, 1]
    assert test.domains is not None
    assert test.domains.tolist() == [1, 0, 0]


def test_npz_lacking_arrays_says_which(tmp_path: Path) -> None:
    arrays = good_npz()
    del arrays["y_test"]
    with pytest.raises(DataError, match="lacks y_test; it holds x_train, y_train, x_test"):
        open_data(save(tmp_path, **arrays))


def test_npz_with_one_kind_of_domain_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="domain_train without domain_test"):
        open_data(save(tmp_path, **good_npz(), domain_train=np.zeros(6, int)))


def test_npz_with_names_in_one_part_and_numbers_in_the_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names in one part and numbers in the other"):
        open_data(save(tmp_path, **good_npz() | {"y_test": np.array(["a", "b", "c"])}))


class Bomb:
    def __reduce__(self) -> Any:
        return exec, ("raise AssertionError('a pickle was run')",)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    objects = np.empty(6, dtype=object)
    objects[:] = Bomb()
    arrays = good_npz() | {"y_train": objects}
    with pytest.raises(DataError, match="Python objects, which are never unpickled"):
        open_data(save(tmp_path, **arrays))


def test_a_pickle_named_npz_is_never_run(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "x.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="never unpickled"):
        open_data(tmp_path / "x.npz")


def test_damaged_npz(tmp_path: Path) -> None:
    path = save(tmp_path, **good_npz())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"set.npz cannot be read: it is damaged"):
        open_data(path)
    (tmp_path / "empty.npz").touch()
    with pytest.raises(DataError, match=r"empty\.npz cannot be read"):
        open_data(tmp_path / "empty.npz")


def test_a_single_array_named_npz(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="holds one unnamed array"):
        open_data(tmp_path / "x.npz")


def test_nan_in_an_npz_names_file_part_and_row(tmp_path: Path) -> None:
    arrays = good_npz()
    arrays["x_test"] = arrays["x_test"].astype(np.float32)
    arrays["x_test"][2, 1, 1, 0] = np.nan
    with pytest.raises(DataError, match=r"set\.npz x_test row 2 holds NaN"):
        open_data(save(tmp_path, **arrays))
