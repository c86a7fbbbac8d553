"""Tunings by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch

from evertune.backbones import Shape
from evertune.errors import ConfigError, nearest
from evertune.tuning.adapter import Adapter
from evertune.tuning.full import Full
from evertune.tuning.lora import LoRA
from evertune.tuning.prefix import Prefix
from evertune.tuning.prompt import Prompt
from evertune.tuning.sequential import SequentialAdapter
from evertune.tuning.ssf import SSF
from evertune.tuning.token_mixing import TokenMixing
from evertune.tuning.tuning import Tuning
from evertune.tuning.vpt import VPT

TUNINGS: dict[str, type[Tuning]] = {
    t.kind: t for t in (Adapter, Full, LoRA, Prefix, Prompt, SequentialAdapter, SSF, TokenMixing, VPT)
}


def tuning_options(kind: str) -> dict[str, Any]:
    """The options of a kind of tuning and their defaults.

    >>> tuning_options("adapter")
    {'bottleneck': 64, 'scale': 0.1, 'dropout': 0.1}
    """
    if kind not in TUNINGS:
        raise ConfigError(f"No tuning is called {kind!r}. {nearest(kind, TUNINGS)}")
    parameters = inspect.signature(TUNINGS[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_tuning(kind: str, shape: Shape, generator: torch.Generator, *, blocks: str = "all", **options: Any) -> Tuning:
    """A fresh tuning of ``kind`` for a backbone of ``shape``; ``blocks`` as in :func:`parse_blocks`.

    Raises
    ------
    ConfigError
        The kind, an option or a block does not exist.
    """
    validate_tuning(kind, options)
    return TUNINGS[kind](shape, parse_blocks(blocks, shape.depth), generator, **options)  # type: ignore[call-arg]


def parse_blocks(blocks: str, depth: int) -> tuple[int, ...]:
    """``"all"``, single blocks and ranges, both ends included, counted from 0.

    >>> parse_blocks("0-2,5", 12)
    (0, 1, 2, 5)
    """
    if blocks == "all":
        return tuple(range(depth))
    chosen: list[int] = []
    for part in str(blocks).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ConfigError(f"blocks={blocks!r} is not understood: write 'all', '0-4' or '0,2,5-7'.")
        low, high = int(match[1]), int(match[2] or match[1])
        chosen.extend(range(low, min(high, max(low, 2 * depth)) + 1))  # some beyond, which the tuning will refuse
    return tuple(sorted(set(chosen)))


def validate_tuning(kind: str, options: Mapping[str, Any]) -> None:
    """Raise what :func:`make_tuning` would for an unknown kind or option, without a backbone."""
    known = tuning_options(kind)
    for name in options:
        if name not in known:
            raise ConfigError(f"The tuning {kind!r} has no option {name!r}. {nearest(name, known)}")
