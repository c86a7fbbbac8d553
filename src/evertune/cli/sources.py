"""Options that say how data is to be read, and what they are turned into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evertune.cli.options import DATA
from evertune.errors import ConfigError

TestData = Annotated[
    str | None,
    typer.Option(
        "--test", metavar="DATA", help="The test part, where it is kept elsewhere than the training part.",
        show_default="in the data, or drawn from it", rich_help_panel=DATA,
    ),
]  # fmt: skip
ValidationData = Annotated[
    str | None,
    typer.Option(
        "--validation", metavar="DATA", help="The validation part, where it is kept elsewhere.",
        show_default="in the data, or none", rich_help_panel=DATA,
    ),
]  # fmt: skip
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest", metavar="FILE", help="Divide the data as this split manifest says; 'evertune data "
        "--write-manifest' writes one.", rich_help_panel=DATA,
    ),
]  # fmt: skip
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="ROLE=NAME", help="The column of a table for text, file, label, domain, split or time, "
        "where its name does not say so: --column text=sentence. May be given many times.", rich_help_panel=DATA,
    ),
]  # fmt: skip
Encoding = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="What a table is written in.", rich_help_panel=DATA)
]
DomainLevel = Annotated[
    bool,
    typer.Option("--domain-level", help="The folders have a level <domain>/ above <class>/.", rich_help_panel=DATA),
]
NormaliseLabels = Annotated[
    bool | None,
    typer.Option(
        "--normalise-labels/--no-normalise-labels", help="Make classes one whose names differ only in case or blanks, "
        "or keep them apart.", show_default="refuse them", rich_help_panel=DATA,
    ),
]  # fmt: skip
NumbersAsNames = Annotated[
    bool,
    typer.Option("--numbers-as-names", help="Let a class be called 3 where others have names.", rich_help_panel=DATA),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Read links that lead out of the data's folder.", rich_help_panel=DATA),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", metavar="N", help="Refuse images of more pixels, which could fill the memory.",
        show_default="89478485", rich_help_panel=DATA,
    ),
]  # fmt: skip


def reading(
    columns: Sequence[str] | None,
    encoding: str,
    normalise_labels: bool | None,
    numbers_as_names: bool,
    domain_level: bool,
    skip_bad: bool,
    follow_links: bool,
    max_pixels: int | None,
    data_root: Path | None,
) -> dict[str, Any]:
    """How a data set is to be read: options of :func:`evertune.open_data`, ready for JSON but for the root."""
    bound = {} if max_pixels is None else {"max_pixels": max_pixels}
    return {
        "columns": column_names(columns),
        "encoding": encoding,
        "normalise_labels": normalise_labels,
        "numbers_as_names": numbers_as_names,
        "domain_level": domain_level,
        "skip_bad": skip_bad,
        "follow_links": follow_links,
        "root": data_root,
        **bound,
    }


def column_names(columns: Sequence[str] | None) -> dict[str, str]:
    """Names by role, from ``--column ROLE=NAME``.

    Raises
    ------
    ConfigError
        A setting without ``=``, or two for one role.
    """
    told: dict[str, str] = {}
    for column in columns or ():
        role, equals, name = column.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"--column {column} names nothing: write it as ROLE=NAME, such as --column text=sentence."
            )
        if role in told:
            raise ConfigError(f"--column names {role} twice, as {told[role]!r} and {name!r}: leave one out.")
        told[role] = name
    return told
