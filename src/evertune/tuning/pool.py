"""Prompts chosen for each input by a query: the feature [B, L] of the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape, digest
from evertune.errors import ConfigError
from evertune.tuning.bank import Bank, Mixed
from evertune.tuning.prompt import KeptPrompts
from evertune.tuning.tuning import BlockTuning, Tuning, uniform


class Chosen:
    """What steers the samples of one batch, each by its own. It is made for that batch and never remembered."""

    appended = 0
    tunes_embedding = False
    frozen = False

    def __init__(self, blocks: Mapping[int, BlockTuning], *, prepended: int = 0, reads_prompts: bool = False) -> None:
        self._blocks = blocks
        self.prepended, self.reads_prompts = prepended, reads_prompts
        self.begins: float = min(blocks)

    def block(self, index: int) -> BlockTuning | None:
        return self._blocks.get(index)

    def normed(self, name: str, y: Tensor) -> Tensor:
        return y

    def fingerprint(self) -> str:
        """A digest of the values that each sample is steered by."""
        found = {f"{i}.{name}": value for i, block in self._blocks.items() for name, value in vars(block).items()}
        owned = {f"{i}.{name}": p for i, block in self._blocks.items() for name, p in block.named_parameters()}
        return digest(owned | {name: value for name, value in found.items() if isinstance(value, Tensor)})


def cosines(query: Tensor, keys: Tensor) -> Tensor:
    """γ(q, k) of queries [B, D] and keys [M, D], [B, M]."""
    return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).to(query).T


class PromptPool(Tuning):
    """M prompts [p, D], each with a key [D]: those with the keys nearest to a query go in front of all tokens (L2P).

    The feature is the mean of the prompts' outputs after the last norm. Attention is blind to order, so in front of CLS
    they do what they do behind it. Each stands at the position of CLS, as in released code.

    Parameters
    ----------
    size
        M, prompts in the pool.
    length
        p, tokens of a prompt.
    top
        N, prompts that are chosen for an input.
    bound
        Of the uniform draw of prompts and keys.
    """

    kind = "pool"
    reads_prompts = True

    def __init__(
        self,
        shape: Shape,
        generator: torch.Generator,
        *,
        size: int = 10,
        length: int = 5,
        top: int = 5,
        bound: float = 1.0,
    ) -> None:
        super().__init__(shape, [0], top=top)
        if not 1 <= top <= size or length < 1:
            raise ConfigError(
                f"pool: top={top} of size={size} prompts of length={length}: lengths start at 1, and no more prompts "
                "can be chosen than there are."
            )
        self.top = top
        self.prepended = top * length
        self.prompts = uniform((size, length, shape.width), bound, generator)
        self.keys = uniform((size, shape.width), bound, generator)

    def nearest(self, query: Tensor) -> Tensor:
        """Ids [B, N] of the prompts whose keys are nearest to each query [B, D], the nearest first."""
        return cosines(query, self.keys).topk(self.top, dim=1).indices

    def voted(self, query: Tensor) -> Tensor:
        """Ids [B, N], the same for all: the prompts that most samples of the batch choose, as in released code."""
        votes = torch.bincount(self.nearest(query).flatten(), minlength=len(self.keys))
        order = votes.argsort(descending=True, stable=True)  # of equals the first
        return order[: self.top].expand(len(query), -1)

    def pull(self, query: Tensor, ids: Tensor) -> Tensor:
        """Σ of the cosines of each query [B, D] with its chosen keys ``ids`` [B, N], over B."""
        return cosines(query, self.keys).gather(1, ids).sum() / len(query)

    def close(self) -> None:
        """All of it goes on learning: there is one pool for all tasks."""

    def select(self, choice: Tensor, position: Tensor | None = None) -> Chosen:
        """The prompts with the ids [B, N] in front of each sample, each token at the ``position`` [D] of CLS."""
        prompts = self.prompts[choice].flatten(1, 2)
        prompts = prompts if position is None else prompts + position
        return Chosen({0: KeptPrompts(prompts)}, prepended=self.prepended, reads_prompts=True)


class KeyedBank(Tuning):
    """A tuning that serves every input, and one for each task with a key [D] (DualPrompt's G- and E-Prompts).

    Parameters
    ----------
    general
        For every input.
    expert
        What those of the tasks are like, on other blocks; of a kind that mixes.
    bound
        Of the uniform draw of keys.
    """

    kind = "keyed"

    def __init__(self, general: Tuning, expert: Tuning, *, bound: float = 1.0) -> None:
        super().__init__(general.shape, (*general.indices, *expert.indices))
        if not expert.mixes or set(general.indices) & set(expert.indices):
            raise ConfigError(
                f"keyed: a {expert.kind} on blocks {list(expert.indices)} beside one for all tasks on blocks "
                f"{list(general.indices)}: take a kind that mixes, like 'prefix', and blocks of their own."
            )
        expert.key = nn.Parameter(torch.zeros(self.shape.width))
        self.general, self.experts, self.bound = general, Bank(expert), bound

    @property
    def keys(self) -> Tensor:
        """[T, D]."""
        return torch.stack([cast(Tensor, slot.key) for slot in self.experts])

    def open(self, generator: torch.Generator) -> None:
        """A tuning for a new task, which starts as that of the task before, and a key drawn from U(−bound, bound)."""
        slot = self.experts.open()
        slot.get_parameter("key").data.copy_(uniform((self.shape.width,), self.bound, generator).data)

    def close(self) -> None:
        """The tunings and keys that are there no longer learn; the general one does."""
        self.experts.freeze()

    def nearest(self, query: Tensor) -> Tensor:
        """The task [B] whose key is nearest to each query [B, D]."""
        return cosines(query, self.keys).argmax(1)

    def select(self, choice: Tensor, position: Tensor | None = None) -> Chosen:
        """The general tuning and, for each sample, that of its task [B]."""
        own = Mixed(list(self.experts), choice)
        blocks = {
            i: cast(BlockTuning, (self.general if i in self.general.indices else own).block(i)) for i in self.indices
        }
        return Chosen(blocks, prepended=self.general.prepended + own.prepended)
