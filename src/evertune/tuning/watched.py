"""What the maps of a tuned attention read, summed up while a pass is steered (GPM; InfLoRA)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from evertune.backbones import BlockSites
from evertune.tuning.lora import LoRABlock, LowRank


class Watched:
    """Steers a pass as ``tuning`` does; afterwards ``sums`` [blocks, D, D] are Σ x xᵀ of the inputs x of the maps.

    The sum runs over all tokens of a batch that are no padding. A block's query, key and value maps read the same.

    Parameters
    ----------
    mask
        Which tokens are no padding, bool [B, N]; None where all are.
    """

    prepended = appended = 0
    reads_prompts = tunes_embedding = False
    frozen = False  # so that nobody remembers the feature and leaves out the pass

    def __init__(self, tuning: LowRank, mask: Tensor | None) -> None:
        self.tuning, self.mask = tuning, mask
        width, device = tuning.shape.width, next(tuning.parameters()).device
        self.sums = torch.zeros(len(tuning.indices), width, width, dtype=torch.float64, device=device)
        self.begins = tuning.begins

    def block(self, index: int) -> BlockSites | None:
        inner = cast(LoRABlock | None, self.tuning.block(index))
        return None if inner is None else _Watching(inner, self.sums[self.tuning.indices.index(index)], self.mask)

    def normed(self, name: str, y: Tensor) -> Tensor:
        return y

    def fingerprint(self) -> str:
        return self.tuning.fingerprint()


class _Watching(BlockSites):
    """Adds what the key map reads to ``total`` [D, D]."""

    def __init__(self, inner: LoRABlock, total: Tensor, mask: Tensor | None) -> None:
        self.inner, self.total, self.mask = inner, total, mask

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        if name == "k":
            tokens = (x.flatten(0, 1) if self.mask is None else x[self.mask]).double()
            with torch.autocast(x.device.type, enabled=False):
                self.total += tokens.T @ tokens
        return self.inner.project(x, name, y)
