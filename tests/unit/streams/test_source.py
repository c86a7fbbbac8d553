from __future__ import annotations

import numpy as np
import pytest

from evertune.errors import DataError
from evertune.streams import ArraySource, Subset
from evertune.streams.source import encode


def source(n: int = 12) -> ArraySource:
    rng = np.random.default_rng(0)
    return ArraySource(rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8), np.arange(n) % 3, ["a", "b", "c"])


def test_a_subset_keeps_classes_labels_and_pixels() -> None:
    whole = source()
    part = whole.select([7, 2])
    assert part.classes == whole.classes
    assert part.labels.tolist() == [1, 2]
    assert part.describe(0) == "array row 7"
    assert part.load(1).tobytes() == whole.load(2).tobytes()
    assert part.present() == ("b", "c")
    assert part.counts().tolist() == [0, 1, 1]


def test_a_mask_selects_too() -> None:
    whole = source()
    assert whole.select(whole.labels == 1).labels.tolist() == [1, 1, 1, 1]
    assert whole.rows_of(["a", "c", "elsewhere"]).tolist() == [0, 2, 3, 5, 6, 8, 9, 11]


def test_a_subset_of_a_subset_is_a_subset_of_the_whole() -> None:
    whole = source()
    nested = whole.select([7, 2, 4]).select([2, 0])
    direct = whole.select([4, 7])
    assert isinstance(nested, Subset)
    assert nested.source is whole
    assert nested.rows.tolist() == [4, 7]
    assert nested.digest == direct.digest


def test_digests_tell_apart_pixels_labels_names_rows_and_order() -> None:
    whole = source()
    x, y = np.asarray(whole.x), whole.labels
    changed = x.copy()
    changed[3, 0, 0, 0] ^= 1
    digests = {
        whole.digest,
        ArraySource(changed, y, ["a", "b", "c"]).digest,
        ArraySource(x, (y + 1) % 3, ["a", "b", "c"]).digest,
        ArraySource(x, y, ["a", "b", "d"]).digest,
        ArraySource(x, y, ["a", "b", "c"], domains=y).digest,
        ArraySource(x.reshape(12, 6, 5, 3), y, ["a", "b", "c"]).digest,
        whole.select([1, 2]).digest,
        whole.select([2, 1]).digest,
    }
    assert len(digests) == 8
    assert ArraySource(x.copy(), y, ["a", "b", "c"], name="another name").digest == whole.digest


def test_memory_layout_does_not_change_the_digest() -> None:
    whole = source()
    fortran = np.asfortranarray(whole.x)
    assert ArraySource(fortran, whole.labels, whole.classes).digest == whole.digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 12], "Row 12 does not exist: 'array' has rows 0 to 11"),
        ([-1], "Row -1 does not exist"),
        (np.ones(3, bool), r"has shape \(3,\); it needs 12 entries"),
        ([0.5], "chosen by a list of integers or a mask"),
        ([[0, 1]], "chosen by a list of integers or a mask"),
    ],
)
def test_wrong_rows_are_named(rows: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source().select(rows)  # type: ignore[arg-type]


def test_no_rows_are_a_legal_selection() -> None:
    assert len(source().select([])) == 0


def test_labels_by_name_or_number() -> None:
    assert encode(["b", "a", "b"], None, "y")[0].tolist() == [1, 0, 1]
    assert encode(["b", "a"], ["b", "a", "z"], "y")[0].tolist() == [0, 1]
    labels, names = encode([10, 2, 10], None, "y")
    assert (labels.tolist(), names) == ([1, 0, 1], ("2", "10"))
    assert encode(np.array([[1], [0]]), ["x", "y"], "y")[0].tolist() == [1, 0]
    assert encode(np.array(["u", "v"], dtype=object), None, "y")[1] == ("u", "v")


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, -1], None, "y row 1: label -1 is negative"),
        ([0, 3], ["a", "b"], "y row 1: label 3 has no name; 2 class names were given, so labels go from 0 to 1"),
        (["cat", "dgo"], ["cat", "dog"], "y row 1: 'dgo' is not a class name. Did you mean 'dog'"),
        ([0.5], None, "one name or one whole number per row, not float64"),
        ([[0, 1]], None, "one name or one whole number per row"),
        ([0], ["a", "a"], "these class names stand twice: a"),
        ([0], ["a", ""], "class name 1 is empty"),
    ],
)
def test_wrong_labels_are_named(values: object, names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(values, names, "y")  # type: ignore[arg-type]
