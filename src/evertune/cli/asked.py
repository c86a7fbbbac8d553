"""What is to be classified, one after the other: files, those below folders, texts, what the standard input names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from evertune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from io import BufferedReader

    from evertune import Learner
    from evertune.streams import Source

STDIN = Path("-")
PIECE = 1 << 16


class Asked(NamedTuple):
    """A path or a text, and its number among all, counted from 1."""

    number: int
    value: str


def asked(
    learner: Learner, files: Sequence[Path], texts: Sequence[str], *, null: bool, follow_links: bool
) -> Iterator[Asked]:
    """One after the other, of the kind that the learner reads; ConfigError where it is of the other."""
    name = learner.backbone.identity.name
    values: Iterator[str]
    if learner.backbone.modality == "image":
        if texts:
            raise ConfigError(f"This learner reads images (its backbone is {name}): give image files, not texts.")
        if not files:
            raise ConfigError("There is nothing to classify: give image files or folders, or - and their paths.")
        values = _paths(files, null=null, follow_links=follow_links)
    else:
        named = [file for file in files if file != STDIN]
        if named:
            raise ConfigError(
                f"This learner reads texts (its backbone is {name}), and {named[0]} is taken for an image file: give "
                "--text TEXT, or - and texts on the standard input, one on each line."
            )
        if not texts and not files:
            raise ConfigError("There is nothing to classify: give --text TEXT, or - and lines on the standard input.")
        values = _texts(texts, stdin=bool(files), null=null)
    return (Asked(number, value) for number, value in enumerate(values, 1))


def _paths(files: Sequence[Path], *, null: bool, follow_links: bool) -> Iterator[str]:
    for file in files:
        named = map(os.fsdecode, _lines(null=null)) if file == STDIN else [str(file)]
        for path in filter(None, named):
            yield from _below(Path(path), follow_links) if os.path.isdir(path) else [path]


def _below(folder: Path, follow_links: bool) -> Iterator[str]:
    """The image files of a folder and of those in it, by their suffix."""
    from evertune.streams.decode import SUFFIXES
    from evertune.streams.files import Folder

    store = Folder(folder, follow_links=follow_links)
    for name in store.files:
        file = folder / name
        if file.is_dir():
            raise DataError(f"{file} lies too deep to be searched from {folder}: name it itself.")
        if file.suffix.lower() in SUFFIXES:
            if not follow_links:
                store.require_inside(file, str(file))
            yield str(file)


def _texts(texts: Sequence[str], *, stdin: bool, null: bool) -> Iterator[str]:
    yield from texts
    if stdin:
        for number, line in enumerate(_lines(null=null), 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte {error.start + 1}"
                raise DataError(f"The standard input is not UTF-8 ({where}): convert it.") from error


def _lines(*, null: bool) -> Iterator[bytes]:
    """What the standard input holds, as it comes: lines, or what NUL bytes end."""
    if not null:
        yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
        return
    rest = b""
    stdin = cast("BufferedReader", sys.stdin.buffer)
    while piece := stdin.read1(PIECE):
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole
    if rest:
        yield rest


def batches(items: Iterator[Asked], size: int) -> Iterator[list[Asked]]:
    """The items in lists of ``size``; ConfigError where there are none."""
    batch = list(islice(items, size))
    if not batch:
        raise ConfigError("There is nothing to classify: no image file or text was found in what was given.")
    while batch:
        yield batch
        batch = list(islice(items, size))


def source_of(learner: Learner, batch: Sequence[Asked]) -> Source:
    """The batch as the library reads it; DataError naming a text that is empty."""
    from evertune.streams import TextSource
    from evertune.streams.unlabelled import unlabelled

    if learner.backbone.modality == "image":
        return unlabelled([item.value for item in batch])
    import numpy as np

    empty = [item.number for item in batch if not item.value.strip()]
    if empty:
        raise DataError(f"text {empty[0]} is empty: leave it out, or say --skip-unreadable.")
    numbers = np.array([item.number for item in batch])
    texts = [item.value for item in batch]
    return TextSource(texts, np.zeros(len(texts), np.int64), name="texts", numbers=numbers, place="text")


def readable(learner: Learner, batch: Sequence[Asked]) -> tuple[list[Asked], list[str]]:
    """Those that can be read, and why each of the others cannot."""
    good, problems = [], []
    for item in batch:
        try:
            source = source_of(learner, [item])
            source.load(0)
            learner.test_view.check(source)
        except DataError as error:
            problems.append(str(error))
        else:
            good.append(item)
    return good, problems
