"""Many tunings of one kind, one per task (HiDe-PET spec §4, §7.3)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from evertune.backbones.passes import Branch
from evertune.errors import ConfigError
from evertune.tuning.lora import LoRA, LoRABlock
from evertune.tuning.tuning import TRAINED, BlockTuning, Tuning


class Bank(nn.Module):
    """Slots 0, 1, …, each a :class:`Tuning` with parameters of its own.

    Nothing is pooled: an optimiser that is given the parameters of one slot cannot move another, whatever its weight
    decay or momentum (HiDe-PET spec §14.2, trap 1). A state of any number of slots loads into a bank of any other.

    Parameters
    ----------
    template
        What the slots are like; copied, and no part of the state. The first slot starts from its values.
    """

    of_data: ClassVar[dict[str, str]] = {"*": TRAINED}

    def __init__(self, template: Tuning) -> None:
        super().__init__()
        # In a tuple, where nn.Module does not find it.
        self._template = (copy.deepcopy(template).requires_grad_(True),)
        self.slots = nn.ModuleList()

    @property
    def template(self) -> Tuning:
        return self._template[0]

    @property
    def mixes(self) -> bool:
        """Whether :meth:`select` can serve different slots in one batch."""
        return self.template.mixes

    @property
    def nbytes(self) -> int:
        """Bytes of one slot's parameters."""
        return self.template.nbytes

    @property
    def last(self) -> Tuning:
        """The slot opened last; an error as for any slot that is not there."""
        return self[len(self) - 1]

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Tuning]:
        return (cast(Tuning, slot) for slot in self.slots)

    def __getitem__(self, slot: int) -> Tuning:
        """One slot.

        Raises
        ------
        ConfigError
            There is no such slot; negative numbers do not count from the end.
        """
        self._check(slot)
        return cast(Tuning, self.slots[slot])

    def open(self, source: Tuning | int | None = None) -> Tuning:
        """A new slot at the end, trainable, with the values of ``source``.

        Parameters
        ----------
        source
            A tuning of the same kind, blocks and sizes, or the number of a slot. By default the last slot, or the
            template where there is none.

        Raises
        ------
        ConfigError
            The source is another kind of thing, or no slot.
        """
        if source is None:
            source = self.last if len(self) else self.template
        elif isinstance(source, int):
            source = self[source]
        if _described(source) != _described(self.template):
            raise ConfigError(
                f"This bank's slots are {self.template.kind} on blocks {list(self.template.indices)}; a "
                f"{source.kind} on blocks {list(source.indices)} of other sizes or settings cannot be copied into one."
            )
        slot = self._append()
        slot.load_state_dict(source.state_dict())
        return slot

    def freeze(self, *slots: int) -> None:
        """No more gradients for these slots, or for all, for good."""
        for slot in slots or range(len(self)):
            self[slot].freeze()

    def drop(self, slots: Collection[int]) -> None:
        """Remove ``slots``; those behind them move down."""
        self._check(*slots)
        self.slots = nn.ModuleList(slot for i, slot in enumerate(self.slots) if i not in slots)

    def select(self, ids: Tensor) -> Branch:
        """What steers each sample of a batch by the slot ``ids[b]``, [B]; the slot itself if it is the same for all.

        Its cost depends on the slots that occur, not on how many the bank holds. Gradients reach the slots; make it
        anew after their values changed.

        Raises
        ------
        ConfigError
            Ids that are no slots or no whole numbers, or several slots of a kind that does not mix.
        """
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ConfigError(f"Slots are chosen by whole numbers [B], got {ids.dtype} of shape {list(ids.shape)}.")
        found, rows = torch.unique(ids, return_inverse=True)
        wanted: list[int] = found.tolist() or [0]  # a batch of none is steered by any slot
        self._check(*wanted)
        if len(wanted) == 1:
            return self[wanted[0]]
        if not self.mixes:
            raise ConfigError(
                f"Slots {wanted} in one batch: a {self.template.kind} steers all samples of a batch alike. Pass the "
                f"samples of each slot alone, or choose a kind that mixes, like 'lora'."
            )
        return Mixed([self[slot] for slot in wanted], rows)

    @torch.no_grad()
    def ensemble(self, slot: int, weight: float, space: str = "parameters") -> None:
        """e_t ← (1 − m) e_t + m · mean of e_0 … e_{t−1}, for t = ``slot`` and m = ``weight`` (spec §7.3).

        Parameters
        ----------
        slot
            To change; slot 0 has nothing before it and stays.
        weight
            m, from 0 (nothing changes) to 1.
        space
            ``"parameters"``: every tensor by itself, as published; for LoRA the mean of the A times the mean of the B
            is not the mean of the A B. ``"delta"``, LoRA only: the change of the weights is averaged and brought back
            to rank r (:meth:`LoRABlock.blend`).

        Raises
        ------
        ConfigError
            No such slot, weight or space, or a frozen slot, which stays as it is for ever.
        """
        current = self[slot]
        if not 0 <= weight <= 1:
            raise ConfigError(f"ensemble: weight={weight} must be from 0 to 1.")
        if space not in ("parameters", "delta"):
            raise ConfigError(f"ensemble: space {space!r} does not exist; choose 'parameters' or 'delta'.")
        if space == "delta" and not isinstance(current, LoRA):
            raise ConfigError(f"ensemble: only LoRA is a change of weights; give a {current.kind} space='parameters'.")
        if slot == 0 or weight == 0:
            return
        if current.frozen:
            raise ConfigError(f"ensemble: slot {slot} is frozen; ensemble it before it is frozen.")
        earlier = list(self)[:slot]
        if space == "parameters":
            for name, value in current.named_parameters():
                value.lerp_(torch.stack([e.get_parameter(name) for e in earlier]).mean(dim=0), weight)
            return
        for i in current.indices:
            block, *others = (cast(LoRABlock, tuning.block(i)) for tuning in (current, *earlier))
            block.blend(others, weight)

    def _append(self) -> Tuning:
        slot = copy.deepcopy(self.template).train(self.training)
        self.slots.append(slot)
        return slot

    def _check(self, *slots: int) -> None:
        """Raise unless all of them are there."""
        for slot in slots:
            if not 0 <= slot < len(self):
                having = f"it has slots 0 to {len(self) - 1}" if len(self) else "it has none: open one first"
                raise ConfigError(f"The bank has no slot {slot}; {having}.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.template._apply(fn, recurse)  # type: ignore[no-untyped-call]  # new slots are made where the others are
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = {name: p.shape for name, p in self.template.state_dict().items()}
        left = {name: value.shape for name, value in state_dict.items() if name.startswith(f"{prefix}slots.")}
        count = 0  # of slots that are there whole, and one more if there is anything else: to be told, not to be made
        while left and own and all(left.pop(f"{prefix}slots.{count}.{name}", None) == own[name] for name in own):
            count += 1
        count += bool(left)
        del self.slots[count:]
        while len(self) < count:
            self._append()
        super()._load_from_state_dict(state_dict, prefix, *args)


class Mixed:
    """The tunings of a batch's samples as one: sample b is steered as by ``slots[rows[b]]``."""

    tunes_embedding = False

    def __init__(self, slots: Sequence[Tuning], rows: Tensor) -> None:
        self._slots, self._rows = slots, rows
        self.prepended = slots[0].prepended
        self.appended = slots[0].appended
        self.reads_prompts = slots[0].reads_prompts
        self.begins = slots[0].begins
        self._blocks: dict[int, BlockTuning] = {}
        for i in slots[0].indices:
            blocks = [cast(BlockTuning, slot.block(i)) for slot in slots]
            self._blocks[i] = type(blocks[0]).mixed(blocks, rows)

    def block(self, index: int) -> BlockTuning | None:
        return self._blocks.get(index)

    def normed(self, name: str, y: Tensor) -> Tensor:
        return y

    @property
    def frozen(self) -> bool:
        return all(slot.frozen for slot in self._slots)

    def fingerprint(self) -> str:
        """A digest of the slots' values and of which sample has which."""
        described = f"{[slot.fingerprint() for slot in self._slots]}{self._rows.tolist()}"
        return hashlib.sha256(described.encode()).hexdigest()


def _described(tuning: Tuning) -> tuple[Any, ...]:
    """What two tunings must share for one's values to do in the other what they did."""
    sizes = {name: p.shape for name, p in tuning.named_parameters()}
    return tuning.kind, tuning.indices, tuning.settings, tuning.shape.heads, sizes
