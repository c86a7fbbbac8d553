"""Modules whose tensors grow with what was seen, and shrink with what is forgotten."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """Loading a state takes over its shapes: a head of 100 classes loads into a fresh one of none."""

    of_data: ClassVar[dict[str, str]] = {}
    """What each tensor keeps of the data, in words; ``"*"`` speaks for all of them."""
    by_class: ClassVar[dict[str, int]] = {}
    """The tensors that have a slice for each class, and the dimension that counts them."""

    def drop(self, classes: Collection[int]) -> None:
        """Remove what belongs to ``classes``; those behind them move down. The values of the others stay."""
        for name, dimension in self.by_class.items():
            own = getattr(self, name)
            kept = others(own.shape[dimension], classes).to(own.device)
            rest = own.detach().index_select(dimension, kept)
            setattr(self, name, nn.Parameter(rest, own.requires_grad) if isinstance(own, nn.Parameter) else rest)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, own in [*self._parameters.items(), *self._buffers.items()]:
            stored = state_dict.get(prefix + name)
            if own is not None and stored is not None and own.shape != stored.shape:
                fresh = torch.empty(stored.shape, dtype=own.dtype, device=own.device)
                if name in self._parameters:
                    self._parameters[name] = nn.Parameter(fresh, requires_grad=own.requires_grad)
                else:
                    self._buffers[name] = fresh
        super()._load_from_state_dict(state_dict, prefix, *args)


def others(count: int, gone: Collection[int]) -> Tensor:
    """The numbers below ``count`` that are not ``gone``.

    >>> others(5, (1, 3))
    tensor([0, 2, 4])
    """
    return torch.tensor([i for i in range(count) if i not in gone], dtype=torch.long)


def moved(numbers: Tensor, gone: Collection[int]) -> Tensor:
    """What ``numbers`` [n] are called once those ``gone``, of which there are none among them, are no longer counted.

    >>> moved(torch.tensor([0, 2, 4, 4]), (1, 3))
    tensor([0, 1, 2, 2])
    """
    left = torch.tensor(sorted(gone), dtype=numbers.dtype, device=numbers.device)
    return numbers - (numbers[:, None] > left).sum(1)
