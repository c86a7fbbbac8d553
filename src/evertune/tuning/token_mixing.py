"""Prompts that the tokens generate themselves (NTK-CL, Liu et al., arXiv 2407.17120; NTK-CL spec §4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.tuning import BlockTuning, Tuning, uniform


class TokenMixingBlock(BlockTuning):
    """q = LN(G z) + s · u, between attention and MLP: z [B, N, D] are the tokens, u [B, Q, D] the prompts so far.

    New prompts go through the MLP, old ones are what its output is added to; in the first block there are none, and
    the prompts have no residual. They stand behind the tokens: no later block asks for the order.
    """

    def __init__(
        self, shape: Shape, length: int, carry: float, init: str, first: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.carry, self.first = carry, first
        zeros = init == "zeros"
        # Kaiming-uniform with a = √5 is U(±1/√fan_in). A bias of G would be taken off again by the norm.
        self.generator_weight = uniform(
            (length, shape.tokens), 0.0 if zeros else 1 / math.sqrt(shape.tokens), generator
        )
        self.norm_weight = nn.Parameter(torch.zeros(shape.width))
        self.norm_bias = nn.Parameter(torch.zeros(shape.width))

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        length, tokens = self.generator_weight.shape
        met = x.shape[1] - (0 if self.first else length)
        if met != tokens:
            raise ConfigError(
                f"token_mixing was made for {tokens} tokens and meets {met}: it mixes them by their place, so their "
                "number must stay what it was (one input size; no padding)."
            )
        z, old = x[:, :tokens], x[:, tokens:]
        new = F.layer_norm(self.generator_weight @ z, z.shape[-1:], self.norm_weight, self.norm_bias, 1e-6)
        if self.first:
            return torch.cat([z, new], 1), F.pad(z, (0, 0, 0, length))
        return torch.cat([z, new + self.carry * old], 1), x


class TokenMixing(Tuning):
    """Prompts per tuned block, each a learned mixture of the image's own tokens, normalised.

    At the start the prompts are zero, which is not the plain model: they take part in later attentions. The
    last block has none: nothing mixes tokens after them there, so they could reach no feature.

    Parameters
    ----------
    length
        Q, prompts per block.
    carry
        s, how much of the prompts of the block before stays in the new ones.
    init
        ``"kaiming"`` draws G, the norm's scale starting at zero; with ``"zeros"``, as released, both are zero, so that
        neither ever has a gradient and only the norm's shift learns (trap T1).
    """

    kind = "token_mixing"
    spares_attention = True

    def __init__(
        self,
        shape: Shape,
        blocks: Iterable[int],
        generator: torch.Generator,
        *,
        length: int = 10,
        carry: float = 0.1,
        init: str = "kaiming",
    ) -> None:
        if shape.varies:
            raise ConfigError(
                "token_mixing mixes tokens by their place, so their number must be the same for every example; that of "
                "texts is not. Choose another tuning."
            )
        asked, last = set(blocks), {shape.depth - 1}
        if asked == last:
            raise ConfigError(
                "token_mixing: prompts of the last block cannot reach the feature any more; tune one before it."
            )
        super().__init__(shape, asked - last, carry=carry)
        if length < 1:
            raise ConfigError(f"token_mixing: length={length} must be at least 1.")
        if init not in ("kaiming", "zeros"):
            raise ConfigError(f"token_mixing: init {init!r} does not exist; choose 'kaiming' or 'zeros' (released).")
        self.appended = length
        for i in self.indices:
            self.blocks[str(i)] = TokenMixingBlock(shape, length, carry, init, i == self.indices[0], generator)
