"""What more than one command says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from evertune.cli.commands import note

if TYPE_CHECKING:
    from evertune import Learner, Stream
    from evertune.evaluation import ProtocolPreset
    from evertune.runs import Run
    from evertune.streams import Source


def count(number: int, noun: str) -> str:
    """A number of things.

    >>> count(1, "class"), count(2, "class"), count(0, "image")
    ('1 class', '2 classes', '0 images')
    """
    return f"{number} {noun if number == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def size(number: int) -> str:
    """A number of bytes.

    >>> size(1), size(25_936), size(4_672_760)
    ('1 byte', '25.9 kB', '4.7 MB')
    """
    if number < 1000:
        return count(number, "byte")
    unit, name = (1e6, "MB") if number >= 1e6 else (1e3, "kB")
    return f"{number / unit:.1f} {name}"


def numbers(versions: Sequence[int]) -> str:
    """Versions by number.

    >>> numbers([3]), numbers([0, 1, 4])
    ('version 3', 'versions 0, 1, 4')
    """
    return f"version{'s' if len(versions) != 1 else ''} {', '.join(map(str, versions))}"


def knows(classes: Sequence[str]) -> str:
    """What a learner knows, for one line."""
    from evertune.cli.narrate import NAMES_SHOWN

    more = ", ..." if len(classes) > NAMES_SHOWN else ""
    return f"knows {count(len(classes), 'class')}{': ' if classes else ''}{', '.join(classes[:NAMES_SHOWN])}{more}"


def tell_skipped(*sources: Source) -> None:
    skipped = sorted({file for source in sources for file in source.skipped})
    for file in skipped:
        note(f"left out {file}")


def tell_unlike(preset: ProtocolPreset, stream: Stream, learner: Learner) -> None:
    """Where other options made a run differ from the protocol that was named."""
    from evertune.evaluation.protocol_likeness import differs

    said = {
        "stream": {"kind": stream.kind, "tasks": list(stream), **stream.settings},
        "preprocessing": learner.backbone.identity.as_dict(),
        "views": {"test": learner.test_view.describe()},
        "seeds": {"order": stream.settings.get("order_seed")},
    }
    if learner.backbone.modality == "text":
        note(f"protocol {preset.name} is made for images: of texts it settles the class order and the average alone")
    for one in differs(preset, said, learner.train_view.describe()):
        note(f"{one.field} is {one.right} here; protocol {preset.name} says {one.left}")


def stated(preset: ProtocolPreset, result: Run) -> str:
    """The numbers of a run that those who measure under this protocol would state."""
    if preset.convention is None:
        final = result.summary[result.matrix.primary][preset.headline]
        return f"as {preset.name} counts: final accuracy {final:.2f}"
    from evertune.evaluation.conventions import what_would_print

    printed = what_would_print(result.matrix, conventions=[preset.convention])[preset.convention]["numbers"]
    numbers = {name.replace("_", " "): told["value"] for name, told in printed.items() if told["value"] is not None}
    return f"as {preset.name} prints it: {', '.join(f'{name} {value:.2f}' for name, value in numbers.items())}"


def speaker(learner: Learner) -> Callable[[str], None]:
    """Prints, in the first of several processes."""
    return typer.echo if learner.engine.runtime.main else silent


def silent(text: str) -> None:
    pass
