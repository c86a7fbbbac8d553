"""Task identities: what a user says of them, and which classes belong to which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evertune.errors import StreamError

Told = str | int | Sequence[str | int] | None
"""A task identity given to a prediction: by name or number, for all images or for each."""

History = Sequence[Mapping[str, Any]]
"""What a learner has learned, an entry per task."""


def task_numbers(history: History, told: str | int | Sequence[str | int], count: int) -> Tensor:
    """The number of the task of each of ``count`` examples, [N].

    Raises
    ------
    StreamError
        Identities that are not one for all or one for each, or a task that was never learned.
    """
    given = [told] * count if isinstance(told, str | int | np.integer) else list(told)
    if len(given) != count:
        raise StreamError(f"There are {count} images and {len(given)} task identities: give one, or one for each.")
    names = {entry["task"]: number for number, entry in enumerate(history)}
    numbers: dict[str | int, int] = {}  # an int is a number, whatever tasks are called
    for number in range(len(history)):
        numbers |= {number: number, str(number): number}
    numbers |= names
    for one in given:
        if isinstance(one, bool) or one not in numbers:
            raise StreamError(
                f"No task is called {one!r}: {len(history)} were learned, {', '.join(list(names)[:10])}; give "
                f"one of these names or a number from 0 to {len(history) - 1}."
            )
    return torch.tensor([numbers[one] for one in given])


def classes_of_tasks(history: History, classes: Sequence[str]) -> Tensor:
    """Which of ``classes`` occurred in which task, [T, K]."""
    position = {name: i for i, name in enumerate(classes)}
    belongs = torch.zeros(len(history), len(classes), dtype=torch.bool)
    for number, entry in enumerate(history):
        belongs[number, [position[name] for name in entry.get("classes", entry["new_classes"])]] = True
    return belongs
