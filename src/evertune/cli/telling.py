"""What more than one command says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from evertune.cli.commands import note

if TYPE_CHECKING:
    from evertune import Learner
    from evertune.streams import Source


def tell_skipped(*sources: Source) -> None:
    skipped = sorted({file for source in sources for file in source.skipped})
    for file in skipped:
        note(f"left out {file}")


def speaker(learner: Learner) -> Callable[[str], None]:
    """Prints, in the first of several processes."""
    return typer.echo if learner.engine.runtime.main else silent


def silent(text: str) -> None:
    pass
