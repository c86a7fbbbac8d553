"""What a run cost, from what its tasks noted."""

from __future__ import annotations

from typing import Any

import pytest

from evertune.costs import COSTS, told, total


def task(examples: int, learning: float | None, stored: int, answering: float | None = None) -> dict[str, Any]:
    cost: dict[str, Any] = {"parameters": 10 * examples, "stored": stored}
    cost |= {"learning_seconds": 2, "evaluating_seconds": 1}
    cost |= {} if learning is None else {"forwards_per_training_example": learning}
    cost |= {} if answering is None else {"forwards_per_prediction": answering}
    return {"examples": examples, "cost": cost}


def test_the_cost_of_a_run() -> None:
    found = total([task(10, 20.0, 500), task(30, 4.0, 600), task(10, 4.0, 800, 2.5)])
    assert tuple(found) == COSTS
    assert found == {
        "forwards_per_training_example": pytest.approx((10 * 20 + 40 * 4) / 50),
        "forwards_per_prediction": 2.5,
        "parameters": 300,
        "stored": 800,
        "stored_per_task": 150,
        "learning_seconds": 6,
        "evaluating_seconds": 3,
    }
    assert told(found) == [
        "cost: 7.20 forwards per training example, 2.50 per prediction; at most 300 parameters trained at once; 800 "
        "bytes kept"
    ]


def test_what_a_task_did_not_note_is_left_out() -> None:
    found = total([task(10, None, 500), task(30, 4.0, 600)])
    assert set(found) == set(COSTS) - {"forwards_per_training_example", "forwards_per_prediction"}
    assert told(found) == []
    assert "stored_per_task" not in total([task(10, 1.0, 500)])
    assert total([]) == total([{"examples": 10}, task(30, 4.0, 600)]) == {}
