"""Training a head alone, on features drawn from what is remembered of all classes (HiDe-PET spec §10.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from evertune.errors import TrainingError

DRAWN = 1 << 16
"""Pseudo-features in memory at a time."""


def cosine_rate(rate: float, epoch: int, epochs: int) -> float:
    """``rate`` at epoch 0, falling along half a cosine that would reach 0 at ``epochs``."""
    return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


def align(
    head: nn.Module,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    *,
    epochs: int,
    steps: int,
    batch: int,
    rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    fixed: Collection[str] = (),
) -> list[float]:
    """Minimise the cross-entropy of ``head`` over all its classes on drawn features; the mean loss of each epoch.

    Parameters
    ----------
    head
        From features [B, L] to logits [B, K]. Trained whether or not its parameters are frozen at the time: they stay
        so, and gain no gradient, since it is copies of them that descend.
    draw
        Called for the features [n, L] of an epoch's mini-batches with targets [n] below K, in random order; tens of
        thousands (:data:`DRAWN`) at a time where there are more. Each mini-batch is the next ``batch`` of them.
    steps, batch
        In an epoch. HiDe-PET's, as released, are C_{t−1} (the classes of earlier tasks) and 5 times the batch size of
        training. Without a step there is nothing to do.
    rate, momentum, weight_decay
        Of SGD; the rate follows :func:`cosine_rate`.
    loss
        Of logits [n, K] and targets [n], where it is not the cross-entropy itself.
    fixed
        Names of parameters that keep their values.

    Raises
    ------
    TrainingError
        The loss became infinite or not a number; the head is as it was.
    """
    if not steps:
        return []
    losses = []
    with torch.enable_grad():
        trained = {name: p for name, p in head.named_parameters() if name not in fixed}
        weights = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
        optimizer = torch.optim.SGD(weights.values(), lr=rate, momentum=momentum, weight_decay=weight_decay)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = cosine_rate(rate, epoch, epochs)
            total = torch.zeros(())
            for x, y in _batches(draw, steps, batch):
                value = loss(functional_call(head, weights, (x,)), y)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total = total.to(value.device) + value.detach()
            losses.append(float(total) / steps)
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"Alignment of the head diverged in epoch {epoch + 1}: its loss is {losses[-1]}. "
                    f"Lower its rate ({rate})."
                )
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])
    return losses


def _batches(draw: Callable[[int], tuple[Tensor, Tensor]], steps: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    at_once = max(DRAWN // batch, 1)
    for start in range(0, steps, at_once):
        features, targets = draw(min(at_once, steps - start) * batch)
        yield from zip(torch.split(features, batch), torch.split(targets, batch), strict=True)
