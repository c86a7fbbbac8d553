"""Several tunings of one kind as one (EMR-Merging: Huang et al., NeurIPS 2024, arXiv 2405.17461, without its masks)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evertune.tuning.tuning import Tuning


@torch.no_grad()
def fuse(target: Tuning, tunings: Sequence[Tuning]) -> None:
    """Each number of ``target`` ← s · max |θ_t| over the tunings t whose θ_t has the sign s of Σ_t θ_t; 0 if that is 0.

    The tunings have the kind, blocks and sizes of the target, as the slots of a :class:`Bank` have. Each number is
    fused with its namesakes alone: this has a meaning where they stand for the same thing, as those of tunings do that
    began as each other.
    """
    for name, value in target.named_parameters():
        each = torch.stack([tuning.get_parameter(name) for tuning in tunings])
        sign = each.sum(0).sign()
        value.copy_(sign * (sign * each).amax(0))
