"""What a data set holds, against counts made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evertune.streams import ArraySource, TextSource, open_data, summarise
from evertune.streams.summary import Spread

MakeImages = Callable[..., Path]


def test_texts_counted_by_hand() -> None:
    train = TextSource(["one two", "one two", "one two", "x", "five of them are here"], ["a", "a", "b", "b", "b"],
                       domains=["home", "work", "home", "home", "home"], name="train")  # fmt: skip
    test = TextSource(["x", "x", "one two", "new"], ["b", "a", "a", "c"], name="test")
    summary = summarise(train, test)
    one, other = summary.parts["train"], summary.parts["test"]
    assert (summary.modality, summary.classes) == ("text", ("a", "b", "c"))
    assert (one.rows, one.counts, one.per_class, one.imbalance) == (5, {"a": 2, "b": 3}, Spread(2, 2.5, 3), 1.5)
    assert one.domains == {"home": 4, "work": 1}
    assert one.sizes == {"characters": Spread(1, 7.0, 21), "words": Spread(1, 2.0, 5)}
    assert one.duplicates is not None and other.duplicates is not None
    assert (one.duplicates.rows, one.duplicates.conflicts) == (2, 1)
    assert one.duplicates.examples == ("train row 2 (b) = train row 0 (a)", "train row 1 (a) = train row 0 (a)")
    assert (other.duplicates.rows, other.duplicates.conflicts, other.imbalance) == (1, 1, 2.0)
    shared = summary.across["train and test"]
    assert (shared.rows, shared.conflicts) == (3, 1)
    assert shared.examples[0] == "test row 1 (a) = train row 3 (b)"
    assert json.loads(json.dumps(summary.as_dict()))["across"]["train and test"]["rows"] == 3
    report = summary.report()
    assert "3 classes of texts: a, b, c" in report
    assert "train: 5 rows of 2 classes; 2 to 3 per class (median 2.5), imbalance 1.5" in report
    assert "in train and test: 3 of 4 test rows are in both, 1 of them under another class" in report
    assert "  domains: home 4, work 1" in report


def test_images_are_compared_by_their_pixels(make_images: MakeImages) -> None:
    root = make_images({"train/a": 3, "train/b": 2, "test/a": 1, "test/b": 1})
    Image.open(root / "train/a/0.png").save(root / "test/b/same.bmp")  # the same picture in another format
    turned = Image.open(root / "train/a/1.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(root / "test/a/turned.png")
    (root / "train/b/copy.png").write_bytes((root / "train/b/0.png").read_bytes())
    summary = summarise(*open_data(root))
    assert summary.parts["train"].duplicates is not None
    assert summary.parts["train"].duplicates.rows == 1
    assert summary.parts["test"].sizes == {"width": Spread(10, 12.0, 12), "height": Spread(10, 10.0, 12)}
    shared = summary.across["train and test"]
    assert (shared.rows, shared.conflicts) == (1, 1)
    assert shared.examples == (f"{root}/test/b/same.bmp (b) = {root}/train/a/0.png (a)",)


def test_pixels_in_another_shape_are_another_picture() -> None:
    flat, tall = np.zeros((1, 2, 8), np.uint8), np.zeros((1, 8, 2), np.uint8)
    summary = summarise(ArraySource(flat, [0]), ArraySource(tall, [0]))
    assert summary.across["train and test"].rows == 0
    assert summarise(ArraySource(flat, [0]), ArraySource(flat, [0])).across["train and test"].rows == 1


def test_broken_and_skipped_files_are_listed(make_images: MakeImages) -> None:
    root = make_images({"a": 4, "b": 4})
    content = (root / "a/0.png").read_bytes()
    (root / "a/0.png").write_bytes(content[: len(content) // 2])
    summary = summarise(*open_data(root, verify=False))
    broken = [reason for part in summary.parts.values() for reason in part.broken]
    assert len(broken) == 1 and "a/0.png cannot be read as an image" in broken[0]
    assert sum(part.duplicates.rows for part in summary.parts.values() if part.duplicates) == 0
    assert "broken: 1\n" in summary.report()
    skipped = summarise(*open_data(root, skip_bad=True)).parts["train"].skipped
    assert len(skipped) == 1 and "a/0.png: it is damaged" in skipped[0]


def test_a_shallow_look_reads_nothing(make_images: MakeImages) -> None:
    root = make_images({"a": 4, "b": 4})
    train, test = open_data(root)
    for file in root.rglob("*.png"):
        file.unlink()
    summary = summarise(train, test, deep=False)
    assert summary.parts["train"].rows == 6
    assert (summary.parts["train"].duplicates, summary.parts["train"].sizes, summary.across) == (None, {}, {})
    assert summarise(train).parts["train"].broken[0].startswith(f"{root}/a/")


def test_three_parts_are_compared_two_by_two() -> None:
    parts = [TextSource(texts, [0] * len(texts)) for texts in (["a", "b"], ["b", "c"], ["c", "a", "b"])]
    across = summarise(parts[0], parts[1], parts[2]).across
    assert {pair: found.rows for pair, found in across.items()} == {
        "train and validation": 2,
        "train and test": 1,
        "validation and test": 2,
    }


@pytest.mark.parametrize("size", [50, 500])
def test_duplicates_agree_with_sets(size: int) -> None:
    rng = np.random.default_rng(size)
    one, two = ([f"t{i}" for i in rng.integers(1, 200, n)] for n in (size, size + 7))
    summary = summarise(TextSource(one, [0] * len(one)), TextSource(two, [0] * len(two)))
    assert summary.parts["train"].duplicates is not None
    assert summary.parts["train"].duplicates.rows == len(one) - len(set(one))
    assert summary.across["train and test"].rows == sum(text in set(one) for text in two)
    assert summary.across["train and test"].conflicts == 0
    assert len(summary.across["train and test"].examples) == 5
