"""Class sums and counts: the smallest statistic there is."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from evertune.statistics.growing import Growing


class ClassMeans(Growing):
    """Sum [K, L] (float64) and count [K] of the features of each class; new domains of a class add to its sum."""

    of_data: ClassVar[dict[str, str]] = {
        "sums": "class means, as sums (of one example: its feature)",
        "counts": "how many examples each class had",
    }
    by_class: ClassVar[dict[str, int]] = {"sums": 0, "counts": 0}
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features [B, L] with class indices [B]."""
        features, labels = features.to(self.sums.device, torch.float64), labels.to(self.sums.device)
        classes = max(len(self.counts), int(labels.max()) + 1) if len(labels) else len(self.counts)
        if self.sums.shape != (classes, features.shape[1]):
            sums = features.new_zeros(classes, features.shape[1])
            if len(self.counts):
                sums[: len(self.counts)] = self.sums
            self.sums = sums
            self.counts = torch.cat([self.counts, self.counts.new_zeros(classes - len(self.counts))])
        self.sums.index_add_(0, labels, features)
        self.counts += torch.bincount(labels, minlength=classes)

    @property
    def means(self) -> Tensor:
        """Class means [K, L] in float32; a class never seen has the zero vector."""
        return (self.sums / self.counts.clamp_min(1)[:, None]).float()
