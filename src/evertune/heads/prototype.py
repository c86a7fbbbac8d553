"""Nearest class mean under the cosine (SimpleCIL, APER; SAFE spec §4), and by sections (NTK-CL spec §8; EASE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.statistics import ClassMeans


class PrototypeHead(ClassMeans):
    """cos(x, p_c), with p_c the mean of all features of class c added so far. No parameter is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, L] to scores [B, K] in [−1, 1]."""
        return F.normalize(x, dim=1) @ F.normalize(self.means.to(x), dim=1).T


def section_scores(x: Tensor, prototypes: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Σ_i ω_i cos(x^(i), Φ_c^(i)) over equal sections i of x [B, d] and Φ [K, d]: [B, K] (8.1).

    The weights are the same for all classes, [S], or each class has its own, [K, S]. A prototype of zeros, a class
    without data, scores 0.
    """
    scale = torch.as_tensor(weights, device=x.device, dtype=x.dtype)
    parts = [F.normalize(z.view(z.shape[0], scale.shape[-1], -1), dim=2) for z in (x, prototypes.to(x))]
    return torch.einsum("bsw,ksw,ks->bk" if scale.ndim == 2 else "bsw,ksw,s->bk", *parts, scale)
