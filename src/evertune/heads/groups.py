"""Columns that belong together: tasks and their classes, classes and their parts."""

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


def normalised(logits: Tensor, owner: Tensor, temperature: float) -> Tensor:
    """Logits [B, K] over τ times their norm, which is the mean over groups of the norm of a group's columns (SLCA).

    Column j belongs to group ``owner[j]``; groups without columns do not count.

    >>> normalised(torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([0, 0, 2]), 0.5)
    tensor([[2.0000, 2.6667, 0.6667]])
    """
    found, group = torch.unique(owner.to(logits.device), return_inverse=True)
    squares = logits.new_zeros(len(logits), len(found)).index_add(1, group, logits.square())
    norm = squares.clamp_min(1e-14).sqrt().mean(1, keepdim=True)  # never 0, where it has no gradient
    return logits / (temperature * norm)
