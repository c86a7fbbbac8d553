"""Which tunings a learner answers with, and what they are called outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.learner.told import task_numbers
from evertune.methods import Method
from evertune.tuning import Bank, Tuning

if TYPE_CHECKING:
    from evertune.learner import Learner


def tunings_of(learner: Learner, task: str | int | None = None) -> dict[str, Tuning]:
    """By name, what steers the passes that the learner answers from, and every slot of its banks.

    Names are those of the method's parts: ``slow``, ``fast``, ``g-0``, ``e-0`` … With a ``task``, by name or number,
    only what is asked for once the task is told.

    Raises
    ------
    StreamError
        There is no such task.
    """
    method = learner.method
    if task is None:
        slots = [slot for module in method.modules() if isinstance(module, Bank) for slot in module]
        wanted = {id(tuning) for tuning in (*method.branches, *slots)}
    else:
        wanted = asked(method, task_numbers(learner.history, task, 1))
    found = [(name, module) for name, module in method.named_modules() if isinstance(module, Tuning)]
    return {outside(name): tuning for name, tuning in found if id(tuning) in wanted}


def outside(name: str) -> str:
    """A part's name as a folder's, without what only holds others.

    >>> outside("e.slots.3"), outside("subnetworks.channel.cur"), outside("slow")
    ('e-3', 'channel-cur', 'slow')
    """
    return "-".join(part for part in name.split(".") if part not in ("slots", "subnetworks"))


@torch.no_grad()
def asked(method: Method, tasks: Tensor) -> set[int]:
    """Identities of the tunings whose features :meth:`Method.told` reads when these ``tasks`` [B] are given."""
    passes = _Recorder(torch.zeros(len(tasks), method.width, device=method.tasks_seen.device))
    method.told(cast(Passes, passes), tasks)
    return passes.seen


class _Recorder:
    """Stands for the passes of a batch: notes what is asked for, and answers zeros."""

    def __init__(self, feature: Tensor) -> None:
        self._feature = feature
        self.seen: set[int] = set()

    def __call__(self, tuning: Tuning | None = None) -> Tensor:
        self.seen.add(id(tuning))
        return self._feature

    def routed(self, slots: Bank, ids: Tensor) -> Tensor:
        self.seen.update(id(slots[slot]) for slot in torch.unique(ids).tolist())
        return self._feature

    def steered(self, pool: Tuning, choice: Tensor) -> Tensor:
        self.seen.add(id(pool))
        return self._feature
