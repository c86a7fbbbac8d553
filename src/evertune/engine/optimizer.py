"""The optimisers of training phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from evertune.errors import ConfigError
from evertune.methods import Recipe


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    recipe: Recipe,
    slowed: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam; with ``decay="matrices"`` vectors and scalars have no weight decay. Each group holds
    its ``factor`` of the rate."""
    factors = {id(p): factor for part, factor in slowed for p in part}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay = recipe.weight_decay if recipe.decay == "all" or p.ndim >= 2 else 0.0
        groups.setdefault((decay, factors.get(id(p), 1.0)), []).append(p)
    options = [
        {"params": members, "weight_decay": decay, "factor": factor} for (decay, factor), members in groups.items()
    ]
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(options, lr=recipe.rate, momentum=recipe.momentum)
        case "adam":
            return torch.optim.AdamW(options, lr=recipe.rate)
        case other:
            raise ConfigError(f"Optimizer {other!r} does not exist: choose 'sgd' or 'adam'.")


def read_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What it remembers of its parameters, by ``number.name``: they are numbered in the order of its groups."""
    return {
        f"{number}.{name}": value
        for number, kept in optimizer.state_dict()["state"].items()
        for name, value in kept.items()
        if value is not None
    }


def write_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Remember what :func:`read_state` gave; rates and other settings stay."""
    kept: dict[int, dict[str, Tensor]] = {}
    for place, value in state.items():
        number, name = place.split(".", 1)
        kept.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
