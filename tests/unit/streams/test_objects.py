"""Data set objects of other libraries."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image

from evertune.errors import DataError
from evertune.streams import ArraySource, FileSource, TextSource, open_data, open_splits

datasets = pytest.importorskip("datasets")
MakeImages = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


def image_set(count: int = 10, names: tuple[str, ...] = ("cat", "dog")) -> Any:
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    labels = [i % 2 for i in range(count)]
    return datasets.Dataset.from_dict({"img": pictures(count), "kind": labels}, features=features)


def text_set(count: int = 10) -> Any:
    return datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(count)], "label": ["even", "odd"] * (count // 2), "domain": [3] * count}
    )


def test_a_hugging_face_data_set_of_images_is_read_row_by_row() -> None:
    data = image_set()
    train, test = open_data(data, test_fraction=0.2)
    assert train.classes == ("cat", "dog")
    assert (train.counts().tolist(), test.counts().tolist()) == ([4, 4], [1, 1])
    for part in (train, test):
        for row in range(len(part)):
            number = int(part.identify(row))
            assert np.array_equal(np.asarray(part.load(row)), np.asarray(data[number]["img"]))
            assert part.labels[row] == number % 2
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301 - our own object, as a loader process receives it
    assert np.array_equal(np.asarray(copy.load(3)), np.asarray(train.load(3)))
    assert train.digest == open_data(image_set())[0].digest


def test_nothing_is_decoded_before_it_is_loaded() -> None:
    buffer = io.BytesIO()
    pictures(1)[0].save(buffer, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = [{"bytes": buffer.getvalue(), "path": None}, *({"bytes": b"broken", "path": None} for _ in range(3))]
    broken = datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 1, 1]}, features=features)
    train, _ = open_data(broken, test=broken)
    assert train.load(0).size == (5, 6)
    with pytest.raises(DataError, match="Dataset row 2 cannot be read as an image"):
        train.load(2)
    with pytest.raises(DataError, match="more than 10 pixels"):
        open_data(broken, test=broken, max_pixels=10)[0].load(0)


def test_a_hugging_face_data_set_of_texts() -> None:
    train, _ = open_data(text_set())
    assert isinstance(train.source, TextSource)  # type: ignore[attr-defined]
    assert train.load(0).startswith("text ")  # type: ignore[union-attr]
    assert (train.classes, train.domain_names) == (("even", "odd"), ("3",))
    told = text_set().rename_columns({"text": "sentence", "label": "y"})
    with pytest.raises(DataError, match=r"Dataset needs the columns .*; it has sentence, y, domain"):
        open_data(told)
    assert len(open_data(told, columns={"text": "sentence", "label": "y"})[0]) == 8


def test_parts_of_a_data_set_dict() -> None:
    parts = {"train": text_set(8), "validation": text_set(4), "test": text_set(2), "unsupervised": text_set(2)}
    with pytest.warns(UserWarning, match="2 of 8 training texts are in the test part too"):
        splits = open_splits(datasets.DatasetDict(parts))
    assert splits.validation is not None
    assert [len(part) for part in splits] == [8, 4, 2]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has the parts a, of which none is train"):
        open_data(datasets.DatasetDict({"a": text_set()}))
    one, other = open_data(image_set(), test=image_set(4, ("ant", "bee")))
    assert one.classes == other.classes == ("ant", "bee", "cat", "dog")
    assert other.labels.tolist() == [0, 1, 0, 1]
    assert one.labels.tolist() == [2, 3] * 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: text_set().to_iterable_dataset(), "is a stream of unknown length: load it without streaming"),
        (lambda: image_set().cast_column("kind", datasets.Value("float32")), r"class \(or label\); it has img, kind"),
        (lambda: datasets.Dataset.from_dict({"text": ["a"], "label": [0.5]}), "labels must be one name or one whole"),
        (lambda: image_set(2).map(lambda row: {"kind": -1}), "is negative; leave unlabelled rows out"),
        (
            lambda: datasets.Dataset.from_dict({"image": [[1, 2]], "label": [0]}),
            r"column image holds List.*, not images; cast it with dataset.cast_column\('image', datasets.Image\(\)\)",
        ),
        (
            lambda: datasets.Dataset.from_dict({"text": ["a", "", None], "label": [0, 1, 1]}),
            r"2 texts .* \(rows 1, 2\)",
        ),
        (
            lambda: datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "X "]}),
            "differ only in case or blanks",
        ),
        (object, "object is not a kind of data that is known: give a path"),
        (lambda: 3, "int is not a kind of data"),
    ],
)
def test_objects_that_cannot_be_used(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(data())


def test_blank_texts_are_left_out_when_asked() -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "", "b", None, "c"], "label": [0, 0, 0, 1, 1]})
    train, _ = open_data(data, test=text_set(2).cast_column("label", datasets.Value("string")), skip_bad=True,
                         columns={})  # fmt: skip
    assert [train.load(i) for i in range(3)] == ["a", "b", "c"]
    assert train.skipped == ("Dataset row 1: the column text is empty", "Dataset row 3: the column text is empty")
    assert train.describe(2) == "Dataset row 4"


def test_hf_names_of_folders(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": image_set(), "test": image_set(4)}).save_to_disk(str(tmp_path / "saved"))
    train, test = open_data(f"hf:{tmp_path}/saved")
    assert (len(train), len(test), train.classes) == (10, 4, ("cat", "dog"))
    assert train.load(0).size == (5, 6)
    (tmp_path / "parquet").mkdir()
    for part, count in (("train", 8), ("test", 2)):
        text_set(count).to_parquet(str(tmp_path / "parquet" / f"{part}-00000-of-00001.parquet"))
    with pytest.warns(UserWarning, match="in the test part too"):
        train, test = open_data(f"hf:{tmp_path}/parquet", root=tmp_path / "elsewhere")
    assert (len(train), len(test)) == (8, 2)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('code of a data set was run')")
    with pytest.raises(DataError, match=r"hf:.*script cannot be opened .* Give a folder of parquet"):
        open_data(f"hf:{tmp_path}/script")


def test_hf_names_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"hf:nobody/nothing cannot be opened .*Ask for the download with download=True"
    ):
        open_data("hf:nobody/nothing")

    def load(name: str, configuration: str | None, **options: object) -> None:
        import huggingface_hub

        assert (name, configuration) == ("nobody/nothing", "plain")
        assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"\(no route to host\). Check the name and the network"):
        open_data("hf:nobody/nothing:plain", download=True)


class Drawn(torch.utils.data.Dataset[tuple[Image.Image, int]]):
    """A data set as people write them: items and targets, nothing else."""

    def __init__(self, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.targets = [0, 1, 0, 1, 2, 2]
        self.asked: list[int] = []
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.asked.append(index)
        image = pictures(6)[index]
        return (self.transform(image) if self.transform else image), self.targets[index]


def test_torchvision_objects(make_images: MakeImages) -> None:
    root = make_images({"cat": 3, "dog": 4})
    folder = torchvision.datasets.ImageFolder(str(root))
    train, test = open_data(folder, test=torch.utils.data.Subset(folder, [0, 5]))
    assert isinstance(train, FileSource)
    assert (len(train), train.classes) == (7, ("cat", "dog"))
    assert [test.describe(i) for i in range(2)] == [f"{root}/cat/0.png", f"{root}/dog/2.png"]
    own = torchvision.datasets.ImageFolder(str(root), loader=lambda path: Image.open(path).resize((3, 2)))
    assert open_data(own)[0].load(0).size == (3, 2)
    fake = torchvision.datasets.FakeData(size=6, image_size=(3, 4, 5))
    with pytest.raises(DataError, match="FakeData is not a kind of data"):
        open_data(fake)


def test_objects_with_items_and_targets() -> None:
    data = Drawn()
    train, test = open_data(data, test=Drawn())
    assert (train.classes, train.labels.tolist(), data.asked) == (("0", "1", "2"), data.targets, [])
    assert np.array_equal(np.asarray(train.load(4)), np.asarray(pictures(6)[4]))
    assert data.asked == [4]
    assert len(test.digest) == 64
    source, _ = open_data(Drawn(transform=np.asarray))
    with pytest.raises(DataError, match=r"Drawn row \d is of type ndarray, not an image: make the data set without"):
        source.load(0)


def test_torchvision_objects_of_arrays() -> None:
    class Pixels:
        data = torch.zeros(4, 5, 6, dtype=torch.uint8)
        targets = torch.tensor([0, 1, 1, 0])
        classes = ("no", "yes")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> None:
            raise AssertionError("the array is enough")

    train, _ = open_data(Pixels(), test=Pixels())
    assert isinstance(train, ArraySource)
    assert (train.classes, train.labels.tolist(), train.load(0).size) == (("no", "yes"), [0, 1, 1, 0], (6, 5))


def test_timm_objects(make_images: MakeImages) -> None:
    root = make_images({"cat": 3, "dog": 4})
    data = timm.data.ImageDataset(str(root))
    train, _ = open_data(data, test=data)
    assert (train.classes, train.counts().tolist()) == (("cat", "dog"), [3, 4])
    for row in (0, 6):
        assert np.array_equal(np.asarray(train.load(row)), np.asarray(data[row][0].convert("RGB")))
    (root / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match="ImageDataset row 0 cannot be read"):
        train.load(0)


def test_a_source_may_be_divided_like_any_data(tmp_path: Path) -> None:
    x = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    source = ArraySource(x, ["a"] * 10 + ["b"] * 10)
    train, validation, test = open_splits(source, test_fraction=0.2, validation_fraction=0.25)
    assert validation is not None
    assert [part.counts().tolist() for part in (train, validation, test)] == [[6, 6], [2, 2], [2, 2]]
    shown = sorted(
        int(np.asarray(part.load(i))[0, 0, 0]) for part in (train, validation, test) for i in range(len(part))
    )
    assert shown == list(range(20))
    assert json.dumps(source.counts().tolist()) == "[10, 10]"
