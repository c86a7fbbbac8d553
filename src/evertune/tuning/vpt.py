"""Visual prompt tuning, shallow and deep (Jia et al., ECCV 2022; SAFE spec §3.3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, normal


class DeepPrompts(BlockTuning):
    """Prompts [P, D] of one block alone: what they turn into is dropped after it, so they are read and not answered."""

    def __init__(self, prompts: nn.Parameter) -> None:
        super().__init__()
        self.prompts = prompts

    def context(self) -> Tensor:
        return self.prompts


class ShallowPrompts(BlockTuning):
    """Appends prompts [P, D], if it has any, on the way in and drops the last ``drops`` tokens on the way out."""

    def __init__(self, prompts: nn.Parameter | None, drops: int) -> None:
        super().__init__()
        self.prompts = prompts
        self.drops = drops

    def tokens_in(self, x: Tensor) -> Tensor:
        if self.prompts is None:
            return x
        return torch.cat([x, self.prompts.expand(x.shape[0], -1, -1)], dim=1)

    def tokens_out(self, x: Tensor) -> Tensor:
        return x[:, : -self.drops] if self.drops else x


class VPT(Tuning):
    """Learned tokens at the end of the sequence.

    Parameters
    ----------
    prompts
        Tokens per block (deep) or in all (shallow).
    deep
        Deep: every block has its own, dropped after it. Shallow: one set enters the first block and leaves after the
        last.
    init
        ``"random"``: N(0, 0.02²). ``"zeros"``, the released behaviour: all tokens of a block then receive the same
        gradient and stay one token counted ``prompts`` times (SAFE spec, T9).
    """

    kind = "vpt"

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        prompts: int = 5,
        deep: bool = True,
        init: str = "random",
    ) -> None:
        super().__init__(shape, blocks)
        if prompts < 1:
            raise ConfigError(f"vpt: prompts={prompts} must be at least 1.")
        if init not in ("random", "zeros"):
            raise ConfigError(f"vpt: init {init!r} does not exist; choose 'random' or 'zeros'.")
        if not deep and self.indices != tuple(range(self.indices[0], self.indices[-1] + 1)):
            raise ConfigError("vpt: shallow prompts pass through neighbouring blocks; give a range such as '0-11'.")
        std = 0.02 if init == "random" else 0.0
        for i in self.indices:
            first, last = i == self.indices[0], i == self.indices[-1]
            drawn = normal((prompts, shape.width), 0.0, std, generator) if deep or first else None
            if deep and drawn is not None:
                self.blocks[str(i)] = DeepPrompts(drawn)
            elif drawn is not None or last:
                self.blocks[str(i)] = ShallowPrompts(drawn, prompts if last else 0)
