"""``evertune protocol``: what a number depends on, whose habits those are, and where two numbers part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evertune.cli.commands import Command
from evertune.cli.root import app
from evertune.errors import ConfigError, StorageError, nearest

if TYPE_CHECKING:
    from evertune.evaluation import Difference, Protocol, ProtocolPreset

NEAREST_SHOWN = 2
WHAT = "A run folder, a protocol.json, or the name of a preset."

protocols = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(protocols, name="protocol", help="What a number depends on: show it, compare it, list those of papers.")


@protocols.command(
    "list",
    cls=Command,
    epilog="\b\nExamples:\n  evertune protocol list\n  evertune protocol show hide-pet\n"
    "  evertune run --protocol ranpac --data cifar100 --download",
)
def list_presets() -> None:
    """List the protocols of papers and peers.

    Pixels are those at 224 px and are scaled to other sizes. 'evertune run --protocol NAME' measures under one.
    """
    from evertune.evaluation import PRESETS
    from evertune.evaluation.protocol_text import table

    rows: list[tuple[str, ...]] = [
        ("name", "class order", "pixels", "at test time", "training crop", "mean over", "whose")
    ]
    rows += [(preset.name, *_habits(preset), preset.about) for preset in PRESETS.values()]
    for line in table(rows):
        typer.echo(line)


@protocols.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune protocol show runs/demo\n  evertune protocol show runs/demo/protocol.json\n"
    "  evertune protocol show hide-pet",
)
def show(what: Annotated[str, typer.Argument(help=WHAT, show_default=False)]) -> None:
    """Show every field, and which presets it equals.

    The class order, preprocessing and pixels of a run are compared with those of every preset: it says which say the
    same, and what the nearest of the others say differently.
    """
    from evertune.evaluation import ProtocolPreset
    from evertune.evaluation.protocol_text import lines

    found, train_view = _read(what)
    if isinstance(found, ProtocolPreset):
        typer.echo(f"{found.name}: {found.about}")
        for line in lines(found.fields()):
            typer.echo(f"  {line}")
        typer.echo(found.sources)
        return
    typer.echo(found.show())
    for line in _whose(found, train_view):
        typer.echo(line)


@protocols.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune protocol diff runs/first runs/second\n"
    "  evertune protocol diff runs/first ranpac\n  evertune protocol diff safe hide-pet",
)
def diff(
    left: Annotated[str, typer.Argument(help=WHAT, show_default=False)],
    right: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
) -> None:
    """Show the fields that two protocols say differently, side by side.

    A run and a preset are compared in what presets settle.
    """
    from evertune.evaluation.protocol_text import table

    found = _differences(left, right)
    if not found:
        typer.echo("nothing differs")
        return
    for line in table([("field", left, right, ""), *found]):
        typer.echo(line)


def _read(what: str) -> tuple[Protocol | ProtocolPreset, dict[str, Any] | None]:
    """The protocol of a run folder (with its training view) or file, or else the preset of that name.

    Raises
    ------
    ConfigError, StorageError
        Neither a run nor a file nor a preset; a damaged file.
    """
    from evertune.evaluation import PRESETS, Protocol

    path = Path(what).expanduser()
    if not path.exists():
        try:
            return Protocol.preset(what), None
        except ConfigError as error:
            hint = nearest(what, PRESETS)
            raise ConfigError(
                f"There is no run folder or file {what!r}, and no protocol of that name. {hint}"
            ) from error
    file = path / "protocol.json" if path.is_dir() else path
    if not file.is_file():
        raise StorageError(f"{path} holds no protocol.json: name the folder that 'evertune run' wrote.")
    config = file.parent / "config.json"
    try:
        protocol = Protocol.from_json(file.read_text(encoding="utf-8"))
        said = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        return protocol, said.get("train_view")
    except (OSError, ValueError, AttributeError, StorageError) as error:
        raise StorageError(f"{file} and {config.name} beside it cannot be read: {error}") from error


def _differences(left: str, right: str) -> list[Difference]:
    from evertune.evaluation import Difference, ProtocolPreset
    from evertune.evaluation.protocol_likeness import differs
    from evertune.evaluation.protocol_text import differences

    (a, view_a), (b, view_b) = _read(left), _read(right)
    if isinstance(a, ProtocolPreset):
        if isinstance(b, ProtocolPreset):
            return differences(a.fields(), b.fields())
        return differs(a, b, view_b)
    if isinstance(b, ProtocolPreset):
        return [Difference(one.field, one.right, one.left, one.remark) for one in differs(b, a, view_a)]
    return a.diff(b)


def _whose(protocol: Protocol, train_view: dict[str, Any] | None) -> Iterator[str]:
    """Which presets the protocol equals, and what the nearest others say differently."""
    from evertune.evaluation import likeness
    from evertune.evaluation.protocol_likeness import measured_fields

    compared = measured_fields(protocol, train_view)
    if not compared:
        yield "presets settle nothing of what it says: neither a class order nor the pixels of images"
        return
    found = likeness(protocol, train_view)
    same = [preset.name for preset, unlike in found if not unlike]
    yield f"compared with the presets in {', '.join(compared)}:"
    yield f"  equals {', '.join(same) if same else 'no preset'}"
    others = [(preset, unlike) for preset, unlike in found if unlike]
    for preset, unlike in others[:NEAREST_SHOWN]:
        said = ", ".join(f"{one.field} {one.left} (here {one.right})" for one in unlike)
        yield f"  differs from {preset.name}, which says {said}"


def _habits(preset: ProtocolPreset) -> tuple[str, ...]:
    """A preset in five short cells."""
    seeds = preset.order_seeds
    order = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}" if seeds else "natural"
    test = f"{preset.test_crop[0]} → {preset.test_crop[1]}" if preset.test_crop else "224"
    low, high = preset.train_scale
    jitter = ", jitter" if any(preset.train_jitter) else ""
    return (
        order,
        preset.preprocessing,
        f"{test} {preset.test_interpolation}",
        f"{low:g}-{high:g} {preset.train_interpolation}{jitter}",
        "images" if preset.weight == "sample" else "tasks",
    )
