"""The attention of all backbones, from queries, keys and values."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v for queries [B, H, N, d] and keys and values [B, H, M, d].

    ``seen`` [B, M] says which keys may be attended to; without it, all.
    """
    mask = None if seen is None else seen[:, None, None, :]
    if slow(q):
        return _by_hand(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def slow(x: Tensor) -> bool:
    """In bfloat16 on a CPU torch's fused attention costs five times its matrix products, and twenty backwards."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same, the softmax in float32."""
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float()
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return cast(Tensor, weights.softmax(-1).to(v.dtype) @ v)
