"""How data is to be read, where there is a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evertune.errors import ConfigError, nearest
from evertune.streams.decode import MAX_PIXELS

ROLES = {
    "text": ("text",),
    "file": ("file", "path", "image"),
    "label": ("class", "category", "intent", "label"),
    "domain": ("domain",),
    "split": ("split",),
    "time": ("time",),
}
"""What a column can be for, and the names under which it is recognised."""


@dataclass(frozen=True)
class Reading:
    """Choices of :func:`evertune.streams.open_data`, explained there."""

    skip_bad: bool = False
    domain_level: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    normalise_labels: bool | None = None
    numbers_as_names: bool = False
    verify: bool = True
    follow_links: bool = False
    max_pixels: int = MAX_PIXELS
    root: Path | None = None

    def __post_init__(self) -> None:
        for role in self.columns:
            if role not in ROLES:
                raise ConfigError(f"columns names {role!r}, which no column is for. {nearest(role, ROLES)}")
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ConfigError(f"encoding {self.encoding!r} is not known; try utf-8, latin-1 or utf-16.") from None
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}; it must be at least 1.")
