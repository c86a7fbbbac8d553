"""What NTK-CL is made of: a subnetwork with the means of its past, and what one session needs."""

from __future__ import annotations

import copy
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from evertune.statistics import Growing
from evertune.tuning import TRAINED, Tuning


class Subnetwork(nn.Module):
    """One kind of tuning: the copy ``cur`` that learns, and frozen ones that hold means of it over past sessions."""

    def __init__(self, tuning: Tuning, frozen: int) -> None:
        super().__init__()
        self.cur = tuning
        self.pre = nn.ModuleList(copy.deepcopy(tuning).freeze() for _ in range(frozen))

    def average(self, index: int, count: int) -> None:
        """pre ← n/(n+1) · pre + 1/(n+1) · cur (7.1), after n = ``count`` earlier averages: the mean of all n + 1."""
        self.tunings[index].follow(self.cur, 1 / (count + 1))

    @property
    def tunings(self) -> tuple[Tuning, ...]:
        """Oldest first, ``cur`` last: the order of the feature's sections (4.1)."""
        return tuple(cast(Tuning, tuning) for tuning in (*self.pre, self.cur))


class Session(Growing):
    """What is needed as long as a session lasts: θ_ref, the known classes that it does not show, and their U [d, k] (or
    what the released L_orth makes of it)."""

    of_data: ClassVar[dict[str, str]] = {
        "reference": TRAINED,
        "old": "nothing: bookkeeping",
        "directions": "leading directions of class means, until the task is learned",
    }
    reference: Tensor
    old: Tensor
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reference", torch.zeros(0))
        self.register_buffer("old", torch.zeros(0, dtype=torch.long))
        self.register_buffer("directions", torch.zeros(0, 0))
