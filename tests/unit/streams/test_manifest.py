"""Split manifests: the same parts again, or a refusal that names the rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evertune.errors import DataError, StorageError
from evertune.streams import ArraySource, Source, Splits, open_data, open_splits, write_manifest

MakeImages = Callable[..., Path]


def rows(source: Source | None) -> list[str]:
    assert source is not None
    return [source.identify(row) for row in range(len(source))]


def written(path: Path, splits: Splits) -> Path:
    write_manifest(path, splits.train, splits.test, splits.validation)
    return path


def table(path: Path, count: int = 20) -> Path:
    path.write_text("text,label\n" + "".join(f"text {i},class {i % 3}\n" for i in range(count)))
    return path


def test_a_folder_is_divided_as_written(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images({"a": 10, "b": 10})
    first = open_splits(root, seed=5, validation_fraction=0.2)
    manifest = written(tmp_path / "split.json", first)
    again = open_splits(root, manifest=manifest, seed=0, test_fraction=0.5)
    for one, other in zip(first, again, strict=True):
        assert rows(one) == rows(other)
        assert one is not None and other is not None and one.digest == other.digest
    content = json.loads(manifest.read_text())
    assert content["parts"]["test"]["rows"] == rows(first.test)
    name, label, digest = (content["parts"]["test"][key][0] for key in ("rows", "classes", "sha256"))
    assert (digest, label) == (hashlib.sha256((root / name).read_bytes()).hexdigest(), name.split("/")[0])
    assert list(tmp_path.glob(".*")) == []


def test_tables_arrays_and_pairs(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv")
    first = open_splits(path, seed=3)
    again = open_splits(path, manifest=written(tmp_path / "a.json", first))
    assert [first.test.load(i) for i in range(len(first.test))] == [again.test.load(i) for i in range(len(again.test))]
    assert first.test.digest == again.test.digest

    other = table(tmp_path / "b.csv", 23)
    other.write_text(other.read_text().replace("text ", "other "))
    pair = open_splits(path, test=other)
    assert rows(pair.train)[0] == "train/2" and rows(pair.test)[0] == "test/2"
    again = open_splits(path, test=other, manifest=written(tmp_path / "pair.json", pair))
    assert (rows(again.train), rows(again.test)) == (rows(pair.train), rows(pair.test))

    digits = open_splits("digits", validation_fraction=0.1)
    again = open_splits("digits", manifest=written(tmp_path / "digits.json", digits))
    assert digits.validation is not None and again.validation is not None
    for one, same in zip(digits, again, strict=True):
        assert one is not None and same is not None
        assert np.array_equal(one.labels, same.labels) and one.content(7) == same.content(7)


def test_a_part_may_be_made_of_what_lies_in_two(tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    train, test = ArraySource(x[:5], list("aabba")), ArraySource(x[5:], list("bab"))
    splits = open_splits(train, test=test)
    manifest = written(tmp_path / "split.json", splits)
    content = json.loads(manifest.read_text())
    one, other = content["parts"]["train"], content["parts"]["test"]
    for column in ("rows", "classes", "sha256"):  # one row changes sides
        one[column].append(other[column].pop())
    manifest.write_text(json.dumps(content))
    moved = open_splits(train, test=test, manifest=manifest)
    assert [int(np.asarray(moved.train.load(i))[0, 0, 0]) for i in range(6)] == [0, 1, 2, 3, 4, 7]
    assert [moved.train.classes[label] for label in moved.train.labels] == list("aabbab")
    assert len(moved.test) == 2


def test_rows_that_are_not_as_written_are_named(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images({"a": 4, "b": 4, "c": 4})
    manifest = written(tmp_path / "split.json", open_splits(root))
    (root / "a/0.png").rename(root / "a/9.png")
    (root / "b/1.png").write_bytes((root / "b/2.png").read_bytes())
    (root / "b/3.png").rename(root / "c/4.png")
    with pytest.raises(DataError) as caught:
        open_data(root, manifest=manifest)
    message = str(caught.value)
    assert message.startswith(f"3 rows are not as {manifest} says:\n")
    assert "a/0.png: does not exist" in message
    assert "b/1.png: has changed" in message
    assert "b/3.png: does not exist" in message


def test_rows_of_another_class_or_in_two_parts(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv")
    manifest = written(tmp_path / "split.json", open_splits(path))
    content = json.loads(manifest.read_text())
    for column in ("rows", "classes", "sha256"):
        content["parts"]["test"][column].append(content["parts"]["train"][column][0])
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\n  2: stands in train and in test"):
        open_data(path, manifest=manifest)
    path.write_text(path.read_text().replace("text 0,class 0", "text 0,class 1"))
    with pytest.raises(DataError, match=r"2: is of class 'class 1', not 'class 0'"):
        open_data(path, manifest=manifest)


def test_of_many_rows_ten_are_named(tmp_path: Path) -> None:
    manifest = written(tmp_path / "split.json", open_splits(table(tmp_path / "a.csv", 30)))
    with pytest.raises(DataError, match="15 rows are not as") as caught:
        open_data(table(tmp_path / "a.csv", 15), manifest=manifest)
    assert str(caught.value).count("does not exist") == 10
    assert "\n  and 5 more\n" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no split manifest: it is not JSON"),
        ("[]", "is no split manifest: its format is not 'evertune split manifest 1'"),
        ('{"format": "evertune split manifest 9"}', "its format is not"),
        ('{"format": "evertune split manifest 1", "parts": {"train": {}}}', "must hold the parts train and test"),
        (
            '{"format": "evertune split manifest 1", "parts": {"train": {"rows": [1]}, "test": {}}}',
            "the part train needs the lists rows, classes, sha256, of texts",
        ),
        (
            '{"format": "evertune split manifest 1", "parts": {"train": '
            '{"rows": ["1"], "classes": [], "sha256": []}, "test": {}}}',
            "lists of the part train are empty or of different lengths",
        ),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=message):
        open_data("digits", manifest=path)
    with pytest.raises(StorageError, match=r"nowhere\.json cannot be read"):
        open_data("digits", manifest=tmp_path / "nowhere.json")
    with pytest.raises(StorageError, match="cannot be written"):
        write_manifest(tmp_path / "no" / "where.json", *open_data("digits"))


def test_manifests_of_many_kinds_hold_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines: list[dict[str, Any]] = [{"text": f"ü {i}", "label": "größe 😀"} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    splits = open_splits(path)
    again = open_splits(path, manifest=written(tmp_path / "m.json", splits))
    assert again.train.digest == splits.train.digest
