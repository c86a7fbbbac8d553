"""Modules whose tensors grow with what was seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Growing(nn.Module):
    """Loading a state takes over its shapes: a head of 100 classes loads into a fresh one of none."""

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
