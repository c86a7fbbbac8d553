"""Protocols in words: show, diff, and what long lists are shortened to."""

from __future__ import annotations

from typing import Any

from evertune.evaluation import Protocol
from evertune.evaluation.protocol_text import brief, differences

ORDER = [f"class {n}" for n in range(100)]
TASKS = [{"name": f"task {n}", "classes": ORDER[10 * n : 10 * n + 10], "train": {"size": 500}} for n in range(10)]


def protocol(**fields: Any) -> Protocol:
    said = {"kind": "class", "classes": ORDER, "tasks": TASKS, "train_per_class": None}
    return Protocol(
        {
            "stream": {**said, **fields.pop("stream", {})},
            "backbone": {"name": "tiny", "weights": "ab" * 32},
            "preprocessing": {"mean": [0, 0, 0], "input_size": 224},
            "views": {"test": {"size": 224}},
            "seeds": {"order": 1993},
            "metric": "top-1",
            **fields,
        }
    )


def test_show_is_sorted_and_shortens_long_lists() -> None:
    first, *rest = protocol().show().splitlines()
    assert first == f"protocol {protocol().hash}"
    names, values = zip(*(line.split(maxsplit=1) for line in rest), strict=True)
    assert list(names) == sorted(names)
    said = dict(zip(names, values, strict=True))
    assert said["backbone.weights"] == "ab" * 32
    assert said["stream.classes"].startswith('["class 0", "class 1", ') and said["stream.classes"].endswith(
        "… 100 in all]"
    )
    assert said["stream.tasks"] == "10 entries of classes, name, train"
    assert said["stream.train_per_class"] == "null" and said["preprocessing.mean"] == "[0, 0, 0]"
    assert max(map(len, rest)) < 110


def test_a_protocol_does_not_differ_from_itself() -> None:
    assert protocol().diff(protocol()) == []


def test_diff_says_both_values() -> None:
    (found,) = protocol().diff(protocol(seeds={"order": 0}))
    assert found == ("seeds.order", "1993", "0", "")
    (found,) = protocol(extra="1993").diff(protocol())
    assert found == ("extra", '"1993"', "absent", "")  # a string that reads like a number keeps its quotes


def test_class_orders_are_summarised() -> None:
    other = [*ORDER[:2], ORDER[3], ORDER[2], *ORDER[4:]]
    (found,) = protocol().diff(protocol(stream={"classes": other}))
    assert found.field == "stream.classes"
    assert found.remark == "the same 100 in another order, first difference at position 3"
    (found,) = protocol().diff(protocol(stream={"classes": ORDER[:50]}))
    assert found.remark == "100 and 50 entries, 50 of them the same"
    (found,) = protocol().diff(protocol(stream={"classes": [*ORDER[:98], "x", "y"]}))
    assert found.remark == "2 of 100 differ, first difference at position 99"
    (found,) = differences({"order": ["a", "b"]}, {"order": ["b", "a"]})
    assert str(found) == (
        'order (["a", "b"] / ["b", "a"]; the same 2 in another order, first difference at position 1)'
    )


def test_tasks_are_summarised_by_what_differs_in_them() -> None:
    other = [{**task, "train": {"size": 100}} if n < 3 else task for n, task in enumerate(TASKS)]
    (found,) = protocol().diff(protocol(stream={"tasks": other}))
    assert found.remark == "3 of 10 differ, in train.size"


def test_short_lists_speak_for_themselves() -> None:
    (found,) = protocol().diff(protocol(preprocessing={"mean": [0.5, 0.5, 0.5], "input_size": 224}))
    assert found == ("preprocessing.mean", "[0, 0, 0]", "[0.5, 0.5, 0.5]", "")


def test_numbers_have_one_spelling() -> None:
    assert differences({"scale": (0.05, 1.0), "size": 2.0}, {"scale": [0.05, 1], "size": 2}) == []


def test_long_texts_are_cut() -> None:
    assert brief("x" * 50) == "x" * 39 + "…" and brief("x" * 40) == "x" * 40
