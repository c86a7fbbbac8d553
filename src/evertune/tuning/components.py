"""Prompts composed for each input from components, more of them with each task (CODA-Prompt)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.bank import Bank
from evertune.tuning.pool import Chosen
from evertune.tuning.prefix import PrefixBlock
from evertune.tuning.tuning import BlockTuning, Tuning

PARTS = ("prompts", "keys", "attention")


class ComponentBlock(BlockTuning):
    """m components of one block: P [m, 2p, D], p keys and then p values; K and A, both [m, D]. It steers nothing."""

    def __init__(self, size: int, length: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(size, 2 * length, width))
        self.keys, self.attention = (nn.Parameter(torch.zeros(size, width)) for _ in range(2))


class Components(Tuning):
    """The components that one task adds to each of its blocks."""

    kind = "components"

    def __init__(self, shape: Shape, blocks: Iterable[int], *, size: int, length: int) -> None:
        super().__init__(shape, blocks)
        for i in self.indices:
            self.blocks[str(i)] = ComponentBlock(size, length, shape.width)


class ComponentPool(Tuning):
    """For each input and block the prefix Σ_m α_m P_m over the components of all tasks, with α_m = γ(q ⊙ A_m, K_m).

    γ is the cosine and q the query. Components of earlier tasks are frozen; those of a task start orthogonal to them
    and to each other.

    Parameters
    ----------
    size
        Components that a task adds to each block, at most the width of the backbone.
    length
        p, keys (and as many values) in each block.
    """

    kind = "component_pool"

    def __init__(self, shape: Shape, blocks: Iterable[int], *, size: int = 10, length: int = 4) -> None:
        super().__init__(shape, blocks)
        if not 1 <= size <= shape.width or length < 1:
            raise ConfigError(
                f"component_pool: {size} components of length {length} for each task: both are at least 1, and no more "
                f"than {shape.width} directions of a backbone this wide can be orthogonal."
            )
        self.tasks = Bank(Components(shape, self.indices, size=size, length=length))

    def all(self, block: int, part: str) -> Tensor:
        """The prompts [M, 2p, D], the keys or the attention [M, D] of a block, of all tasks."""
        return torch.cat([cast(Tensor, getattr(task.blocks[str(block)], part)) for task in self.tasks])

    @torch.no_grad()
    def open(self, generator: torch.Generator) -> None:
        """Components for a new task, drawn at random and made orthonormal."""
        earlier = len(self.tasks)
        task = self.tasks.open(self.tasks.template)
        for i in self.indices:
            for part in PARTS:
                own = task.blocks[str(i)].get_parameter(part)
                known = self.all(i, part).flatten(1)[: earlier * len(own)]
                own.copy_(orthonormal(known, len(own), generator).view_as(own))

    def close(self) -> None:
        """No component learns any more."""
        self.tasks.freeze()

    def weights(self, block: int, query: Tensor) -> Tensor:
        """α of queries [B, D], [B, M]."""
        keys, attention = (self.all(block, part).to(query) for part in ("keys", "attention"))
        lengths = (query.square() @ attention.square().T).sqrt()  # ‖q ⊙ A_m‖
        return query @ (attention * F.normalize(keys, dim=1)).T / lengths.clamp_min(1e-12)

    def penalty(self) -> Tensor:
        """Σ over blocks and their P, K and A of the mean square of T Tᵀ − I, where the rows of T are the components."""
        parts = [self.all(i, part).flatten(1) for i in self.indices for part in PARTS]
        return torch.stack([(t @ t.T - torch.eye(len(t)).to(t)).square().mean() for t in parts]).sum()

    def select(self, choice: Tensor, position: Tensor | None = None) -> Chosen:
        """The prefixes that the queries ``choice`` [B, D] compose."""
        blocks: dict[int, BlockTuning] = {}
        for i in self.indices:
            composed = torch.einsum("bm,mpd->bpd", self.weights(i, choice), self.all(i, "prompts").to(choice))
            key, value = composed.chunk(2, dim=1)
            blocks[i] = PrefixBlock(key, value, self.shape.heads)
        return Chosen(blocks)


def orthonormal(earlier: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows [count, D] that are orthogonal to the rows ``earlier`` [n, D] too, if D has room for all.

    Gram-Schmidt, with Householder's reflections.
    """
    drawn = torch.randn(count, earlier.shape[1], generator=generator).double()
    room = len(earlier) + count <= earlier.shape[1]
    rows = torch.cat([earlier.detach().double().cpu(), drawn]) if room else drawn
    return cast(Tensor, torch.linalg.qr(rows.T)[0].T[-count:])
