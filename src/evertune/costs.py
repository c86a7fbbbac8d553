"""What a run cost: passes counted, parameters trained, bytes kept, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evertune.learner import Learner

LEARNING, ANSWERING = "forwards_per_training_example", "forwards_per_prediction"

COSTS = (
    LEARNING, ANSWERING, "parameters", "stored", "stored_per_task", "learning_seconds", "evaluating_seconds",
)  # fmt: skip
"""The names that :func:`total` gives: forward equivalents where they were counted, over all tasks and after the last;
the most parameters trained at once; bytes kept at the end, and what each task after the first added; seconds."""


def of_task(learner: Learner, evaluating: float, forwards: float | None = None) -> dict[str, float]:
    """What the task learned last cost, for the log: ``evaluating`` seconds, and ``forwards`` per prediction."""
    entry, phases = learner.history[-1], learner.phases
    passed: list[float] = [phase["forwards"] for phase in phases if phase.get("forwards") is not None]
    counted = len(passed) == sum(bool(phase.get("images")) for phase in phases)
    found = {
        LEARNING: sum(passed) / entry["examples"] if counted else None,
        ANSWERING: forwards,
        "parameters": max((phase.get("parameters", 0) for phase in phases), default=0),
        "stored": sum(kept.bytes for kept in learner.method.stored()),
        "learning_seconds": entry["seconds"],
        "evaluating_seconds": round(evaluating, 3),
    }
    return {name: value for name, value in found.items() if value is not None}


def total(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The cost of a run from that of its ``tasks``, entries of a log with "examples" and "cost".

    What some task did not note is left out, and all where one noted nothing.
    """
    costs = [task.get("cost", {}) for task in tasks]
    if not costs or not all(costs):
        return {}
    found: dict[str, float] = {"parameters": max(cost["parameters"] for cost in costs), "stored": costs[-1]["stored"]}
    if all(LEARNING in cost for cost in costs):
        examples = [task["examples"] for task in tasks]
        passed = sum(cost[LEARNING] * count for cost, count in zip(costs, examples, strict=True))
        found[LEARNING] = passed / sum(examples)
    if ANSWERING in costs[-1]:
        found[ANSWERING] = costs[-1][ANSWERING]
    if len(costs) > 1:
        found["stored_per_task"] = (costs[-1]["stored"] - costs[0]["stored"]) / (len(costs) - 1)
    seconds = {name: sum(cost[name] for cost in costs) for name in ("learning_seconds", "evaluating_seconds")}
    found |= seconds
    return {name: found[name] for name in COSTS if name in found}


def told(cost: Mapping[str, float]) -> list[str]:
    """What was counted, in a line for the report; nothing where it was not."""
    if LEARNING not in cost or ANSWERING not in cost:
        return []
    return [
        f"cost: {cost[LEARNING]:.2f} forwards per training example, {cost[ANSWERING]:.2f} per prediction; at most "
        f"{cost['parameters']:,.0f} parameters trained at once; {cost['stored']:,.0f} bytes kept"
    ]
