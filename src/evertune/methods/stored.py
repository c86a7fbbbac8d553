"""What is kept of the data, in bytes and words: read from what heads, statistics and tunings say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

UNSAID = "unknown: the method does not say"
"""For a tensor that no ``of_data`` speaks of."""


@dataclass(frozen=True)
class Stored:
    """One thing that is kept: its name, its bytes, and what of the data it is; "nothing: …" where that is nothing."""

    name: str
    bytes: int
    of_data: str


def stored(module: nn.Module, name: str = "") -> Iterator[Stored]:
    """Everything in the state of ``module``, which is called ``name``; what is still empty counts 0 bytes."""
    said = declared(type(module))
    state = module.state_dict()
    if "*" in said:
        yield Stored(name, sum(tensor.nbytes for tensor in state.values()), said["*"])
        return
    for key, tensor in state.items():
        if "." not in key:
            yield Stored(_within(name, key), tensor.nbytes, said.get(key, UNSAID))
    for key, child in module.named_children():
        yield from stored(child, _within(name, key))


def declared(kind: type[nn.Module]) -> dict[str, str]:
    """What a class and those it descends from say of their tensors."""
    said: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        said |= vars(ancestor).get("of_data", {})
    return said


def _within(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
