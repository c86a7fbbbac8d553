"""Which rows of a task fit a model and which validate it."""

from __future__ import annotations

import torch
from torch import Tensor


def holdout(
    labels: Tensor, fraction: float, generator: torch.Generator, *, stratified: bool = True
) -> tuple[Tensor, Tensor]:
    """Row indices (fit, validation) of ``labels`` [N], ``fraction`` of them for validation.

    Stratified: every class keeps at least one row to fit, and gives ⌊fraction · n_c⌋ others, drawn at random. Otherwise
    a random ⌊(1 − fraction) · N⌋ rows, but at least one, fit as released (SAFE spec §5.3, T5, T6).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    if not stratified:
        keep = max(1, int((1 - fraction) * len(labels)))
        return shuffled[:keep], shuffled[keep:]
    labels = labels.cpu()
    fit, validation = [], []
    for c in torch.unique(labels):
        rows = shuffled[labels[shuffled] == c]
        held = min(int(fraction * len(rows)), len(rows) - 1)
        validation.append(rows[:held])
        fit.append(rows[held:])
    return torch.cat(fit), torch.cat(validation)
