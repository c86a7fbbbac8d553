"""Predictions in the forms that people and programs read, written as they come."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evertune.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from evertune import Predictions

Answered = Iterable[tuple[list[str], "Predictions"]]
"""Batches of inputs and what the learner says of them."""

NO_LABEL = "-"
WIDEST = 80
"""Signs that a column is padded to; what is longer stands out."""


def table(answered: Answered, top: int) -> Iterator[str]:
    """Aligned columns under a header; what comes later may widen them."""
    widths: list[int] = []
    for inputs, said in answered:
        rows = [_cells(one, answer, top) for one, answer in zip(inputs, said.as_rows(top), strict=True)]
        if not widths:
            more = [*(["task"] if said.tasks is not None else []), *(["then"] if top > 1 else [])]
            rows.insert(0, ["input", "label", "confidence", *more])
            widths = [0] * len(rows[0])
        widths = [max(width, *(min(len(row[i]), WIDEST) for row in rows)) for i, width in enumerate(widths)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"


def _cells(one: str, answer: dict[str, Any], top: int) -> list[str]:
    label = NO_LABEL if answer["label"] is None else _shown(answer["label"])
    cells = [_shown(one), label, f"{answer['confidence']:.4f}"]
    if "task" in answer:
        cells.append(_shown(answer["task"]))
    if top > 1:
        first = 0 if answer["label"] is None else 1
        cells.append(", ".join(f"{_shown(b['label'])} {b['probability']:.4f}" for b in answer["top"][first:]))
    return cells


def _shown(text: str) -> str:
    """``text`` on one line of a terminal, without what would move its cursor."""
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)


def jsonl(answered: Answered, top: int) -> Iterator[str]:
    """A JSON object on each line."""
    for inputs, said in answered:
        for one, answer in zip(inputs, said.as_rows(top), strict=True):
            yield f"{_json({'input': one, **answer})}\n"


def as_json(answered: Answered, top: int) -> Iterator[str]:
    """One list of objects; nothing before all of it is known."""
    lines = [line.rstrip("\n") for line in jsonl(answered, top)]
    yield "[\n" + ",\n".join(lines) + "\n]\n"


def as_csv(answered: Answered, top: int) -> Iterator[str]:
    """Comma-separated values with a header; without a label where the learner abstained."""
    header: list[str] = []
    for inputs, said in answered:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        ranks = range(1, min(top, len(said.classes)) + 1) if top > 1 else ()
        if not header:
            header = ["input", "label", "confidence", *(["task"] if said.tasks is not None else [])]
            writer.writerow([*header, *(f"{what}_{rank}" for rank in ranks for what in ("label", "probability"))])
        for one, answer in zip(inputs, said.as_rows(top), strict=True):
            best = [value for other in answer["top"][: len(ranks)] for value in other.values()]
            writer.writerow([one, *(answer[name] for name in header[1:]), *best])
        yield buffer.getvalue()


def _json(value: dict[str, Any]) -> str:
    """JSON on one line; a file name that is no UTF-8 is written with escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


FORMATS: dict[str, Callable[[Answered, int], Iterator[str]]] = {
    "table": table,
    "json": as_json,
    "jsonl": jsonl,
    "csv": as_csv,
}


@contextmanager
def output(file: Path | None) -> Iterator[Callable[[str], None]]:
    """Writes UTF-8 to the standard output, or to a file that appears when it is whole.

    Raises
    ------
    ConfigError
        ``file`` is a folder.
    StorageError
        It cannot be written.
    """
    if file is None or file == Path("-"):
        yield _print
        return
    from evertune.engine.store import replacing

    if file.is_dir():
        raise ConfigError(f"--out {file} is a folder: name a file.")
    with replacing(file) as part, part.open("wb") as stream:
        yield lambda text: _write(stream, text)


def _print(text: str) -> None:
    try:
        typer.echo(text.encode("utf-8", "surrogateescape"), nl=False)
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on, which is no mistake
            raise
        raise StorageError(f"The standard output could not be written ({error.strerror}).") from error


def _write(stream: io.BufferedWriter, text: str) -> None:
    stream.write(text.encode("utf-8", "surrogateescape"))
