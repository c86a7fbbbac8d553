"""Nearest class mean under the cosine (SimpleCIL, APER; SAFE spec §4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from evertune.statistics import ClassMeans


class PrototypeHead(ClassMeans):
    """cos(x, p_c), with p_c the mean of all features of class c added so far. No parameter is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, L] to scores [B, K] in [−1, 1]."""
        return F.normalize(x, dim=1) @ F.normalize(self.means.to(x.device), dim=1).T
