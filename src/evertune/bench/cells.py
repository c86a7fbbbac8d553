"""A cell of a bench: one run, what it was asked for, and the ``evertune run`` command that makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evertune.errors import nearest

OPTIONS, REFERENCES = "options", "references"
"""Settings that ``evertune run`` spells in another way: --set KEY=VALUE, and --no-references where false."""


@dataclass(frozen=True)
class Flag:
    """How an option of ``evertune run`` is written.

    A switch has no value, and ``off`` where it can be denied; one that may come ``often`` is written for every value.
    """

    on: str
    off: str | None = None
    switch: bool = False
    often: bool = False


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of the entry ``name``; ``settings`` are options of ``evertune run`` by name, without its folder."""

    name: str
    folder: Path
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Its name among all cells: NAME/ORDER, as its folder's."""
        return f"{self.name}/{self.folder.name}"

    @property
    def order(self) -> int | None:
        """The seed of the order of arrival; None for the data's own order."""
        seed = self.settings["order_seed"]
        return None if seed == "none" else int(seed)

    def arguments(self, flags: Mapping[str, Flag]) -> list[str]:
        """What follows ``evertune``: the whole command that makes this cell."""
        words = ["run"]
        for name, value in self.settings.items():
            if name == OPTIONS:
                for key, chosen in value.items():
                    words += ["--set", f"{key}={_text(chosen)}"]
            elif name == REFERENCES:
                words += [] if value else ["--no-references"]
            elif name in flags:
                words += _written(flags[name], value)
            else:
                words += ["--stream", f"{name}={_text(value)}"]
        return [*words, "--out", str(self.folder)]


def _written(flag: Flag, value: Any) -> list[str]:
    if flag.switch:
        return [flag.on] if value else [flag.off] if flag.off else []
    values = [_text(one) for one in (value if isinstance(value, list) else [value])]
    return [word for one in values for word in (flag.on, one)] if flag.often else [flag.on, *values]


def _text(value: Any) -> str:
    """As a command line says it: true and false in small letters, lists as JSON."""
    if isinstance(value, bool | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def fill(text: Any, values: Mapping[str, Any], error: Callable[[str], Exception]) -> str:
    """``text`` with every ``{name}`` replaced by its value; ``error`` makes what is raised of an unknown one."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise error(f"{{{match[1]}}} stands for nothing. {nearest(match[1], values)}")
        return str(values[match[1]])

    return re.sub(r"\{([^{}]*)\}", value, str(text))
