"""LoRA folded into the frozen weights for a while (HiDe-PET spec §15.2, §16.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import torch

from evertune.backbones import Backbone
from evertune.errors import ConfigError
from evertune.tuning.lora import LoRABlock, LowRank
from evertune.tuning.tuning import Tuning

_changed: WeakKeyDictionary[Backbone, set[tuple[int, str]]] = WeakKeyDictionary()
"""The weights that a scope has changed at this moment, as (block, name)."""


@contextmanager
def merged(backbone: Backbone, tuning: Tuning) -> Iterator[Backbone]:
    """Inside, ``backbone(images)`` is ``backbone(images, tuning)`` at the price of the plain pass.

    It is a scope and no new model because all learners share the one backbone, which is never forked: on leaving, also
    by an error, the changed weights get their original bytes back (subtracting would leave rounding behind).

    Inside, every pass of the backbone is steered, the plain one too; features remembered as the plain model's would be
    wrong, so do not fill a cache there. A gradient whose forward pass lies outside cannot be taken inside: torch says
    so.

    Raises
    ------
    ConfigError
        The tuning is neither a LoRA nor a sum of some, was made for another shape, or changes a weight that is
        merged already.
    """
    if not isinstance(tuning, LowRank):
        raise ConfigError(f"Only LoRA is a change of weights that can be merged; this is a {tuning.kind}.")
    if tuning.shape != backbone.shape:
        raise ConfigError(f"A LoRA made for {tuning.shape} cannot be merged into a backbone of {backbone.shape}.")
    with torch.no_grad():
        deltas = {
            (i, name): delta for i in tuning.indices for name, delta in cast(LoRABlock, tuning.block(i)).delta().items()
        }
    taken = _changed.setdefault(backbone, set())
    twice = sorted(taken & deltas.keys())
    if twice:
        raise ConfigError(
            f"Weight {twice[0][1]} of block {twice[0][0]} is merged already: leave that scope before the next."
        )
    weights = {at: backbone.weight(*at) for at in deltas}
    originals = {at: weight.clone() for at, weight in weights.items()}
    taken.update(deltas)
    try:
        with torch.no_grad():
            for at, weight in weights.items():
                weight.add_(deltas[at])
        yield backbone
    finally:
        with torch.no_grad():
            for at, weight in weights.items():
                weight.copy_(originals[at])
        taken.difference_update(deltas)
