"""Coarser answers read from finer ones: tasks from classes, classes from their parts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def by_group(logits: Tensor, owner: Tensor, groups: int, together: bool = False) -> Tensor:
    """Columns [B, E], of which column j belongs to group ``owner[j]``, to groups [B, G].

    The largest of each group, or with ``together`` the log of their summed exponentials (HiDe-PET spec §9). A group
    without columns gets −∞.

    >>> by_group(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0, 1, 0]), 2)
    tensor([[2., 5.]])
    """
    if together:
        top = logits.amax(1, keepdim=True)
        return ((logits - top).exp() @ F.one_hot(owner.to(logits.device), groups).to(logits)).log() + top
    index = owner.to(logits.device).expand(logits.shape[0], -1)
    return logits.new_full((logits.shape[0], groups), -torch.inf).scatter_reduce(1, index, logits, "amax")
