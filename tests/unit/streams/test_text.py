"""The view of a text: tokens, padding, what is too long, and what is remembered."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evertune.backbones import HFEncoder
from evertune.errors import ConfigError, DataError
from evertune.streams import ArraySource, Batches, TestView, TextView, TrainView, text, unlabelled
from evertune.streams.texts import TextSource

pytest.importorskip("transformers")

Make = Callable[..., HFEncoder]
ROWS = ["w10 w11", "w20 " * 30, "w12", "w13 w14 w15 w16 w17 w18 w19", "w30 " * 31, "w40 w41 w42"]


@pytest.fixture
def tokenizer(encoder: Make) -> Any:
    return encoder().tokenizer


@pytest.fixture
def source() -> TextSource:
    return TextSource(ROWS, [0, 1, 0, 1, 0, 1], ["a", "b"], name="notes")


def test_a_text_becomes_the_tokenizers_ids(tokenizer: Any) -> None:
    view = TextView(tokenizer, 16)
    for row in (ROWS[0], "unknown ☃ w79!", "w1"):
        assert view(row).tolist() == tokenizer(row)["input_ids"] and view(row).dtype == torch.int64


@pytest.mark.parametrize(("rows", "length"), [((0,), 8), ((0, 2), 8), ((0, 3), 16), ((3, 5, 0), 16)])
def test_a_batch_is_padded_to_the_next_multiple_of_8(tokenizer: Any, rows: tuple[int, ...], length: int) -> None:
    view = TextView(tokenizer, 40)
    batch = view.collate([view(ROWS[row]) for row in rows])
    assert batch.shape == (len(rows), length)
    for row, ids in zip(rows, batch.tolist(), strict=True):
        real = tokenizer(ROWS[row])["input_ids"]
        assert ids == real + [tokenizer.pad_token_id] * (length - len(real))


def test_a_batch_is_never_longer_than_is_read(tokenizer: Any) -> None:
    view = TextView(tokenizer, 13)
    assert view.collate([view("w10 " * 9), view("w10")]).shape == (2, 13)
    assert view.collate([]).shape == (0, 8)


def test_texts_that_are_too_long_are_counted_before_anything(tokenizer: Any, source: TextSource) -> None:
    TextView(tokenizer, 33).check(source)
    with pytest.raises(
        DataError, match=r"notes: 1 of 6 texts are longer than the 32 tokens .*\(notes row 4\).*truncate"
    ):
        TextView(tokenizer, 32).check(source)
    with pytest.raises(DataError, match=r"6 of 6 .*row 0, notes row 1, notes row 2, notes row 3, notes row 4 …\)"):
        TextView(tokenizer, 3).check(TextSource(["w10 w11"] * 6, [0] * 6, name="notes"))
    with pytest.raises(DataError, match=r"33 tokens is longer than the 32 .*begins 'w30 w30"):
        TextView(tokenizer, 32)(ROWS[4])


def test_a_cut_text_keeps_its_end_token(tokenizer: Any, source: TextSource) -> None:
    view = TextView(tokenizer, 5, truncate=True)
    view.check(source)
    wanted = tokenizer("w30 w30 w30")["input_ids"]
    assert view(ROWS[4]).tolist() == wanted and len(wanted) == 5
    assert view(ROWS[2]).tolist() == tokenizer(ROWS[2])["input_ids"]


def test_the_order_is_from_short_to_long(tokenizer: Any, source: TextSource) -> None:
    view = TextView(tokenizer, 40)
    assert view.lengths(source).tolist() == [4, 32, 3, 9, 33, 5]
    assert view.order(source).tolist() == [2, 0, 5, 3, 1, 4]
    assert view.order(source.select([4, 2, 0])).tolist() == [1, 2, 0]
    assert TestView(32).order(source) is None and TrainView(32).order(source) is None


def test_every_text_is_taken_apart_once(tokenizer: Any, source: TextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting:
        pad_token_id = 0

        def __call__(self, one: str, **options: Any) -> Any:
            asked.append(one)
            return tokenizer(one, **options)

    view = TextView(Counting(), 40)
    for _ in range(3):
        view.check(source)
        for row in ROWS:
            view(row)
    assert asked == ROWS
    monkeypatch.setattr(text, "REMEMBERED", 40)  # tokens: not all texts fit
    view = TextView(Counting(), 40)
    wanted = [tokenizer(row)["input_ids"] for row in ROWS]
    for _ in range(2):
        assert [view(row).tolist() for row in ROWS] == wanted
        assert sum(map(len, view._known.values())) <= 40


def test_batches_are_the_same_with_processes_and_ranks(tokenizer: Any, source: TextSource) -> None:
    view = TextView(tokenizer, 40)
    made: dict[str, Any] = {"shuffle": True, "seed": (1,), "epoch": 0}
    alone = list(Batches(source, view, 4, **made))
    for other in (list(Batches(source, view, 4, workers=2, **made)), list(Batches(source, view, 4, **made))):
        for one, two in zip(alone, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    rows, inputs, labels = alone[0]
    assert torch.equal(labels, torch.from_numpy(source.labels[rows.numpy()]))
    for row, ids in zip(rows.tolist(), inputs, strict=True):
        assert ids[ids != tokenizer.pad_token_id].tolist() == tokenizer(ROWS[row])["input_ids"]
    ranks = [list(Batches(source, view, 4, rank=rank, world=3, **made))[1] for rank in range(3)]
    assert torch.equal(torch.cat([part[0] for part in ranks]), alone[1][0])
    assert ranks[2][1].shape == (0, 8)  # two texts for three


def test_a_text_that_is_too_long_is_an_error_from_a_process_too(tokenizer: Any, source: TextSource) -> None:
    with pytest.raises(DataError, match="longer than the 20"):
        list(Batches(source, TextView(tokenizer, 20), 6, shuffle=False, seed=(0,), epoch=0, workers=1))


def test_a_view_travels_and_describes_itself(tokenizer: Any, source: TextSource) -> None:
    view = TextView(tokenizer, 20, truncate=True)
    view.lengths(source)
    again = pickle.loads(pickle.dumps(view))  # noqa: S301  # what a loader process gets
    assert again(ROWS[4]).tolist() == view(ROWS[4]).tolist()
    said = json.loads(json.dumps(view.describe()))
    assert said == {"view": "text", "max_length": 20, "truncate": True} == again.describe()


def test_a_length_that_holds_no_text(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        TextView(tokenizer, 2)


def test_what_is_given_to_predict() -> None:
    for given in (["a b", "c"], np.array(["a b", "c"]), ("a b", "c")):
        made = unlabelled.unlabelled(given, "text")
        assert made.modality == "text" and [made.load(i) for i in range(2)] == ["a b", "c"]
    assert unlabelled.unlabelled(made, "text") is made
    with pytest.raises(DataError, match="list of one"):
        unlabelled.unlabelled("a b", "text")
    with pytest.raises(DataError, match="list of strings, not of int"):
        unlabelled.unlabelled(["a", 3], "text")  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"1 of 2 texts are empty \(rows 1\)"):
        unlabelled.unlabelled(["a", " "], "text")
    with pytest.raises(DataError, match="list of strings"):
        unlabelled.unlabelled(np.zeros((2, 8, 8), dtype=np.uint8), "text")
    assert isinstance(unlabelled.unlabelled(np.zeros((2, 8, 8), dtype=np.uint8)), ArraySource)
