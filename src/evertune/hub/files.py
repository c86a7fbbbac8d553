"""Which files of a repository are a learner's."""

from __future__ import annotations

import re

CURRENT, CARD = "learner.json", "README.md"
VERSIONED = re.compile(r"learner-(0|[1-9]\d{0,8})\.json|state-(?:0|[1-9]\d{0,8})\.safetensors")
COMMON = (".gitattributes", CARD)
"""What lies in repositories of all kinds."""
WANTED = [CURRENT, "learner-*.json", "state-*.safetensors", CARD]
"""What is fetched, as patterns of the client; nothing else is looked at."""


def of_learner(name: str) -> bool:
    """Whether a file of this name belongs to a learner.

    >>> [of_learner(name) for name in ("state-3.safetensors", "learner-3.json/x", "model.bin")]
    [True, False, False]
    """
    return name == CURRENT or VERSIONED.fullmatch(name) is not None
