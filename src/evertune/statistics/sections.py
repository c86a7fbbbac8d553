"""Class means in every task's subspace, and those that a subspace never saw (EASE: Zhou et al., CVPR 2024, arXiv
2403.12030)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.statistics.growing import Growing, others


class SectionMeans(Growing):
    """Sums [K, S, L] (float64) and counts [K, S] of the features of each class in each section, one section per task.

    ``shown`` [K, S] says which classes a section's task showed: its own ones. A class that comes again counts in all
    sections there are then, and is one of the new section's own.
    """

    of_data: ClassVar[dict[str, str]] = {
        "sums": "class means in each task's subspace, as sums",
        "counts": "how many examples each class had",
        "shown": "nothing: bookkeeping",
    }
    by_class: ClassVar[dict[str, int]] = {"sums": 0, "counts": 0, "shown": 0}
    sums: Tensor
    counts: Tensor
    shown: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, 0, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, 0, dtype=torch.long))
        self.register_buffer("shown", torch.zeros(0, 0, dtype=torch.bool))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features [B, S, L] of the task whose section is the last, with class indices [B]."""
        features, labels = features.to(self.sums.device, torch.float64), labels.to(self.sums.device)
        known, sections = self.shown.shape
        classes, width = max(known, int(labels.max()) + 1), features.shape[2]
        if (classes, features.shape[1]) != (known, sections):
            more = (0, features.shape[1] - sections, 0, classes - known)
            sums = self.sums if known else self.sums.new_zeros(0, sections, width)
            self.sums = F.pad(sums, (0, 0, *more))
            self.counts, self.shown = F.pad(self.counts, more), F.pad(self.shown, more)
        self.sums.index_add_(0, labels, features)
        self.counts += torch.bincount(labels, minlength=classes)[:, None]
        self.shown[labels, -1] = True

    def forget(self, classes: Collection[int]) -> list[int]:
        """Remove ``classes``, and the sections of which none is left, which are given."""
        self.drop(classes)
        gone = [s for s, any_left in enumerate(self.shown.any(0).tolist()) if not any_left]
        kept = others(self.shown.shape[1], gone).to(self.shown.device)
        for name in self.by_class:
            setattr(self, name, getattr(self, name).index_select(1, kept))
        return gone

    @property
    def means(self) -> Tensor:
        """[K, S, L] in float32; zero where a class was never seen."""
        return (self.sums / self.counts.clamp_min(1)[:, :, None]).float()

    def prototypes(self, *, later: bool = False) -> Tensor:
        """:attr:`means`, with those that are missing made from the section's own classes, or with ``later`` from those
        of later tasks, too."""
        known = self.counts > 0
        return complete(self.means, known, self.shown, known if later else self.shown)

    def weights(self, alpha: float) -> Tensor:
        """[K, S]: a class's own sections share the weight 1, the others the weight α."""
        own = self.shown.sum(1, keepdim=True)
        rest = (self.shown.shape[1] - own).clamp_min(1)
        return torch.where(self.shown, 1 / own, alpha / rest)


def complete(means: Tensor, known: Tensor, shown: Tensor, sources: Tensor) -> Tensor:
    """Prototypes [K, S, L] in all sections, from those ``known`` [K, S]; ``shown`` [K, S] are a section's own classes.

    A class c without a mean in section s has Σ_j a_cj P_js over its ``sources`` j [K, S], with a_c the softmax over j
    of cos(P_co, P_jo) in the last section o that c was shown in: what is alike there is taken to be alike in s.
    """
    made = means.clone()
    alike = means.new_zeros(len(means), len(means))
    last = (shown * torch.arange(1, shown.shape[1] + 1, device=shown.device)).argmax(1)
    for section in torch.unique(last).tolist():
        rows = last == section
        unit = F.normalize(means[:, section], dim=1)
        alike[rows] = (unit[rows] @ unit.T).exp()  # at most e: no maximum need be taken off
    for section in range(shown.shape[1]):
        given, missing = sources[:, section], ~known[:, section]
        shares = alike[missing][:, given]
        made[missing, section] = shares @ means[given, section] / shares.sum(1, keepdim=True)
    return made
