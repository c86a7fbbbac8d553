"""Which classes each task showed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from evertune.statistics.growing import Growing, moved


class ShownClasses(Growing):
    """Pairs [n] of a task and a class that occurred in it: for methods that keep something for each task."""

    of_data: ClassVar[dict[str, str]] = {"*": "which classes each task had"}
    tasks: Tensor
    classes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tasks", torch.zeros(0, dtype=torch.long))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.long))

    def add(self, task: int, present: Sequence[int]) -> None:
        shown = torch.tensor(present, dtype=torch.long, device=self.classes.device)
        self.tasks = torch.cat([self.tasks, torch.full_like(shown, task)])
        self.classes = torch.cat([self.classes, shown])

    @property
    def table(self) -> Tensor:
        """Whether each class occurred in each task, bool [T, K]."""
        tasks, classes = (int(numbers.max()) + 1 for numbers in (self.tasks, self.classes))
        occurred = torch.zeros(tasks, classes, dtype=torch.bool, device=self.tasks.device)
        occurred[self.tasks, self.classes] = True
        return occurred

    def forget(self, classes: Collection[int]) -> list[int]:
        """Leave out ``classes``; the tasks that had no others, which go. Classes and tasks behind them move down."""
        kept = ~torch.isin(self.classes, torch.tensor(sorted(classes), device=self.classes.device))
        gone = sorted(set(self.tasks.tolist()) - set(self.tasks[kept].tolist()))
        self.tasks, self.classes = moved(self.tasks[kept], gone), moved(self.classes[kept], classes)
        return gone
