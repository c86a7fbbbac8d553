"""``evertune data``: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evertune.cli import options as o
from evertune.cli import sources as s
from evertune.cli.commands import Command, note, stoppable
from evertune.cli.root import app


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune data photos/\n"
    "  evertune data mails.csv --column text=subject --column label=team\n"
    "  evertune data train.jsonl --test test.jsonl --json\n"
    "  evertune data photos.zip --write-manifest split.json",
)
def data(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder, a .zip, .npz, .csv, .tsv, .json or .jsonl file, a data set by name, or "
            "hf:NAME.", show_default=False,
        ),
    ],
    test: s.TestData = None,
    validation: s.ValidationData = None,
    manifest: s.Manifest = None,
    columns: s.Columns = None,
    encoding: s.Encoding = "utf-8",
    normalise_labels: s.NormaliseLabels = None,
    numbers_as_names: s.NumbersAsNames = False,
    domain_level: s.DomainLevel = False,
    skip_bad: o.SkipBad = False,
    follow_links: s.FollowLinks = False,
    max_pixels: s.MaxPixels = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep/--no-deep", help="Read every example, for sizes, duplicates and broken files.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=o.OUTPUT)] = False,
    write_manifest: Annotated[
        Path | None,
        typer.Option(
            "--write-manifest", metavar="FILE", help="Write which rows make which part, with their digests, for "
            "--manifest.", rich_help_panel=o.OUTPUT,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Describe a data set: classes, counts, sizes, duplicates, broken files.

    Tells how examples spread over classes and domains, how large images or how long texts are, which examples stand in
    train and test at once or under two classes, and which files cannot be read.
    """
    with stoppable("Nothing was changed."):
        from evertune import open_splits, summarise
        from evertune import write_manifest as write

        splits = open_splits(
            data,
            test=test,
            validation=validation,
            manifest=manifest,
            verify=False,  # broken files are part of what is told
            download=download,
            **s.reading(
                columns,
                encoding,
                normalise_labels,
                numbers_as_names,
                domain_level,
                skip_bad,
                follow_links,
                max_pixels,
                data_root,
            ),
        )
        summary = summarise(splits.train, splits.test, splits.validation, deep=deep)
        typer.echo(json.dumps(summary.as_dict(), ensure_ascii=False) if as_json else summary.report())
        if write_manifest is not None:
            write(write_manifest, splits.train, splits.test, splits.validation)
            note(f"wrote {write_manifest}")
