"""A sum of LoRAs, one for each task, with a magnitude for each (SD-LoRA; with magnitudes of 1 InfLoRA)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.errors import ConfigError
from evertune.tuning.lora import LoRABlock, LowRank
from evertune.tuning.tuning import add_product, uniform


class Directions(LowRank):
    """ΔW = Σ_k α_k A_k B_k for each map, A_k [D, r_k], B_k [r_k, D]; direction k is that of all maps together.

    The directions of earlier tasks are closed: only their magnitudes α may learn. The last one may be open, and then
    its A and B learn too. One pass serves the sum, whose cost is bounded by that of one projection more for each map.

    Parameters
    ----------
    targets
        Which maps, as letters: ``"qv"``, ``"kv"`` …
    """

    kind = "directions"
    magnitudes: nn.Parameter
    owner: Tensor

    def __init__(self, shape: Shape, blocks: Iterable[int], *, targets: str = "qv") -> None:
        super().__init__(shape, blocks, targets)
        self.magnitudes = nn.Parameter(torch.zeros(0))
        self._products: dict[int, tuple[list[tuple[int, int]], LoRABlock]] = {}  # by block, as long as nothing changes
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long))  # [R], the direction of each closed rank
        for i in self.indices:
            self.blocks[str(i)] = nn.ModuleDict({name: Map(shape.width) for name in targets})

    def maps_of(self, index: int) -> dict[str, Map]:
        """The maps of a block by name."""
        return {name: cast(Map, part) for name, part in cast(nn.ModuleDict, self.blocks[str(index)]).items()}

    @property
    def maps(self) -> Iterator[Map]:
        """Those of all blocks."""
        return (m for i in self.indices for m in self.maps_of(i).values())

    def block(self, index: int) -> LoRABlock | None:
        """The sum in one block, as the values are now; multiplied out where that is cheaper and nothing learns."""
        if index not in self.indices:
            return None
        own = list(self.blocks[str(index)].parameters())
        rank = next(self.maps).a.shape[1] + len(self.owner)
        if 2 * rank <= self.shape.width or any(p.requires_grad for p in (self.magnitudes, *own)):
            return self.factored(index)
        if not own:  # a graph that is being exported
            return Product(self.factored(index))
        versions = [(p.data_ptr(), p._version) for p in (self.magnitudes, *own)]
        if index not in self._products or self._products[index][0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                self._products[index] = versions, Product(self.factored(index))
        return self._products[index][1]

    def factored(self, index: int) -> LoRABlock:
        closed, last = self.magnitudes[self.owner, None], self.magnitudes[-1:, None]
        maps = self.maps_of(index)
        a = {name: torch.cat([m.down, m.a], dim=1) for name, m in maps.items()}
        return LoRABlock(a, {name: torch.cat([closed * m.up, last * m.b]) for name, m in maps.items()}, 1.0)

    # -- a new direction -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def open(self, rank: int, generator: torch.Generator, magnitude: float = 1.0) -> None:
        """A direction that learns, and starts from B = 0; all magnitudes learn.

        Raises
        ------
        ConfigError
            The rank is no positive number.
        """
        if rank < 1:
            raise ConfigError(f"{self.kind}: rank={rank} must be at least 1.")
        width = self.shape.width
        for m in self.maps:
            m.a = nn.Parameter(uniform((width, rank), 1 / math.sqrt(width), generator).to(m.a))
            m.b = nn.Parameter(m.b.new_zeros(rank, width))
        self.magnitudes = nn.Parameter(torch.cat([self.magnitudes, self.magnitudes.new_tensor([magnitude])]))

    @torch.no_grad()
    def close(self) -> None:
        """The open direction is one of the others, and nothing learns."""
        rank = next(self.maps).a.shape[1]
        self.owner = torch.cat([self.owner, self.owner.new_full((rank,), len(self.magnitudes) - 1)])
        for m in self.maps:
            m.down = nn.Parameter(torch.cat([m.down, m.a], dim=1))
            m.up = nn.Parameter(torch.cat([m.up, m.b]))
        self._empty()

    @torch.no_grad()
    def normalise(self) -> None:
        """The open direction gets the norm 1, the root mean square of ‖A B‖_F over the maps; its magnitude makes up
        for it, so that the sum stays as it is."""
        norm = self.inner()[-1, -1].sqrt()
        if norm > 0:
            for m in self.maps:
                m.b.div_(norm)
            self.magnitudes[-1] *= norm

    @torch.no_grad()
    def absorb(self, threshold: float) -> bool:
        """Replace the open direction by a combination of the others, if that leaves less than ``threshold`` of its
        squared norm (least squares); whether it did. Then nothing learns."""
        gram = self.inner()
        others, target = gram[:-1, :-1], gram[:-1, -1]
        found = torch.linalg.pinv(others, hermitian=True) @ target
        rest = gram[-1, -1] - target @ found
        if len(gram) == 1 or rest >= threshold * gram[-1, -1]:
            return False
        self.magnitudes = nn.Parameter(self.magnitudes[:-1] + self.magnitudes[-1] * found.to(self.magnitudes))
        self._empty()
        return True

    def inner(self) -> Tensor:
        """⟨A_j B_j, A_k B_k⟩ of all directions, the mean over the maps, [T, T] in float64."""
        last = torch.full((next(self.maps).a.shape[1],), len(self.magnitudes) - 1, device=self.owner.device)
        member = F.one_hot(torch.cat([self.owner, last]), len(self.magnitudes)).double()
        products = []
        for m in self.maps:
            a, b = torch.cat([m.down, m.a], dim=1).double(), torch.cat([m.up, m.b]).double()
            products.append(member.T @ ((a.T @ a) * (b @ b.T)) @ member)
        return torch.stack(products).mean(0)

    def _empty(self) -> None:
        """No direction is open."""
        self._products = {}
        for m in self.maps:
            m.a, m.b = nn.Parameter(m.a[:, :0].clone()), nn.Parameter(m.b[:0].clone())
        self.freeze()

    # -- state ---------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Any number of directions loads into any other."""
        sizes = {name: state_dict.get(prefix + name) for name, _ in (*self.named_parameters(), ("owner", None))}
        owner, magnitudes = sizes["owner"], sizes["magnitudes"]
        first = next((value for name, value in sizes.items() if name.endswith(".a")), None)
        if owner is not None and magnitudes is not None and first is not None and first.ndim == 2:
            self._products = {}
            self.magnitudes.data = self.magnitudes.new_empty(magnitudes.numel())
            self.owner = self.owner.new_empty(owner.numel())
            for m in self.maps:
                m.size(owner.numel(), first.shape[1])
            if owner.numel() and not 0 <= int(owner.min()) <= int(owner.max()) < magnitudes.numel():
                args[-1].append(f"{prefix}owner names directions that have no magnitude.")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Map(nn.Module):
    """One map's factors: ``down`` [D, R] and ``up`` [R, D] of closed directions, ``a`` [D, r] and ``b`` [r, D] of the
    open one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(width, 0)), nn.Parameter(torch.zeros(0, width))
        self.a, self.b = nn.Parameter(torch.zeros(width, 0)), nn.Parameter(torch.zeros(0, width))
        self.requires_grad_(False)

    def size(self, closed: int, rank: int) -> None:
        """Room for factors of these ranks, their values to come."""
        width = len(self.a)
        self.down.data, self.up.data = self.down.new_empty(width, closed), self.up.new_empty(closed, width)
        self.a.data, self.b.data = self.a.new_empty(width, rank), self.b.new_empty(rank, width)


class Product(LoRABlock):
    """A LoRA whose A B is multiplied out: what it costs a token does not depend on the rank."""

    def __init__(self, factored: LoRABlock) -> None:
        super().__init__({}, {}, 1.0)
        self.changes = {name: change.T.contiguous() for name, change in factored.delta().items()}

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        return add_product(y, x, self.changes[name]) if name in self.changes else y

    def delta(self) -> dict[str, Tensor]:
        return {name: change.T for name, change in self.changes.items()}
