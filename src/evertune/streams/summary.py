"""What a data set holds and what is wrong with it: classes, sizes, duplicates within and across parts, broken files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evertune.errors import DataError
from evertune.streams.source import IntArray, Modality, Source

_SHOWN = 5  # examples of each finding


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    least: int
    median: float
    most: int


@dataclass(frozen=True)
class Duplicates:
    """Rows with the same pixels, or the same text, as another.

    Within a part ``rows`` counts those that repeat an earlier one; between two parts, those of the second that are in
    the first. ``conflicts`` of these are of another class than their first twin. ``examples`` name both, and classes.
    """

    rows: int
    conflicts: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class PartSummary:
    """One part: how its rows spread over classes and domains, how large they are, and what is wrong."""

    rows: int
    counts: Mapping[str, int]  # rows of each class that has any
    per_class: Spread
    imbalance: float  # rows of the largest class for each row of the smallest
    domains: Mapping[str, int]
    sizes: Mapping[str, Spread]  # width and height in pixels, or characters and words; empty if not deep
    duplicates: Duplicates | None  # None if not deep
    broken: tuple[str, ...]  # images that cannot be decoded, each with the reason; empty if not deep
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class DataSummary:
    """What :func:`summarise` found in each part, and in two at once under "train and test"."""

    modality: Modality
    classes: tuple[str, ...]
    parts: Mapping[str, PartSummary]
    across: Mapping[str, Duplicates]

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def report(self) -> str:
        """All of it in some lines of text."""
        lines = [f"{len(self.classes)} classes of {self.modality}s: {_some(self.classes)}"]
        for name, part in self.parts.items():
            lines += ["", *_lines(name, part)]
        for pair, duplicates in self.across.items():
            second = pair.split(" and ")[1]
            of = f"of {self.parts[second].rows} {second} rows"
            lines += ["", *_told(duplicates, f"in {pair}: {duplicates.rows} {of} are in both")]
        return "\n".join(lines)


def summarise(
    train: Source, test: Source | None = None, validation: Source | None = None, *, deep: bool = True
) -> DataSummary:
    """Look a data set over.

    Parameters
    ----------
    deep : read every example once, for sizes, duplicates and broken files. Two images are the same if their decoded
        pixels are, whatever their files; two texts if they are so word for word.
    """
    given = {"train": train, "validation": validation, "test": test}
    sources = {part: source for part, source in given.items() if source is not None}
    looks = {part: _Look(source) for part, source in sources.items()} if deep else {}
    return DataSummary(
        train.modality,
        tuple(dict.fromkeys(name for source in sources.values() for name in source.present())),
        {part: _summary(source, looks.get(part)) for part, source in sources.items()},
        {f"{one} and {other}": _shared(looks[one], looks[other]) for one, other in combinations(looks, 2)},
    )


class _Look:
    """What one reading of a source shows: sizes [N, 2] and a 64-bit digest [N] of the rows that can be read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.sizes = np.zeros((len(source), 2), dtype=np.int64)
        digests = np.zeros(len(source), dtype=np.uint64)
        good = np.ones(len(source), dtype=bool)
        broken = []
        for row in range(len(source)):
            try:
                example = source.load(row)
            except DataError as error:
                good[row] = False
                broken.append(str(error))
                continue
            if isinstance(example, str):
                self.sizes[row] = len(example), len(example.split())
                content = example.encode()
            else:
                self.sizes[row] = example.size
                content = example.width.to_bytes(4, "big") + example.tobytes()
            digests[row] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
        self.broken = tuple(broken)
        self.rows = np.flatnonzero(good)
        self.digests = digests[self.rows]

    def name(self, row: int) -> str:
        return self.source.classes[int(self.source.labels[row])]


def _summary(source: Source, look: _Look | None) -> PartSummary:
    counts = {name: int(count) for name, count in zip(source.classes, source.counts(), strict=True) if count}
    domains = [] if source.domains is None else np.bincount(source.domains, minlength=len(source.domain_names)).tolist()
    rows = np.array(list(counts.values()) or [0])
    kinds = ("characters", "words") if source.modality == "text" else ("width", "height")
    return PartSummary(
        rows=len(source),
        counts=counts,
        per_class=_spread(rows),
        imbalance=float(rows.max() / max(rows.min(), 1)),
        domains={name: count for name, count in zip(source.domain_names, domains, strict=False) if count},
        sizes={}
        if look is None or not len(look.rows)
        else {kind: _spread(look.sizes[look.rows, i]) for i, kind in enumerate(kinds)},
        duplicates=None if look is None else _repeated(look),
        broken=() if look is None else look.broken,
        skipped=source.skipped,
    )


def _spread(values: NDArray[Any]) -> Spread:
    return Spread(int(values.min()), float(np.median(values)), int(values.max()))


def _repeated(look: _Look) -> Duplicates:
    """Rows that repeat an earlier row of their part."""
    _, first, group = np.unique(look.digests, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[group] != np.arange(len(group)))
    return _duplicates(look, look.rows[later], look, look.rows[first[group[later]]])


def _shared(one: _Look, other: _Look) -> Duplicates:
    """Rows of the other part that are in the one."""
    known, first = np.unique(one.digests, return_index=True)
    place = np.searchsorted(known, other.digests).clip(max=max(len(known) - 1, 0))
    found = np.flatnonzero(known[place] == other.digests) if len(known) else np.zeros(0, np.int64)
    return _duplicates(other, other.rows[found], one, one.rows[first[place[found]]])


def _duplicates(look: _Look, rows: IntArray, at: _Look, twins: IntArray) -> Duplicates:
    differ = [look.name(row) != at.name(twin) for row, twin in zip(rows, twins, strict=True)]
    order = np.argsort(np.logical_not(differ), kind="stable")[:_SHOWN]  # conflicts first
    examples = []
    for row, twin in zip(rows[order], twins[order], strict=True):
        ours, theirs = (f"{which.source.describe(int(i))} ({which.name(i)})" for which, i in ((look, row), (at, twin)))
        examples.append(f"{ours} = {theirs}")
    return Duplicates(len(rows), int(sum(differ)), tuple(examples))


def _lines(name: str, part: PartSummary) -> list[str]:
    spread = part.per_class
    lines = [
        f"{name}: {part.rows} rows of {len(part.counts)} classes; {spread.least} to {spread.most} per class "
        f"(median {spread.median:g}), imbalance {part.imbalance:.3g}"
    ]
    if part.domains:
        lines.append("  domains: " + ", ".join(f"{domain} {count}" for domain, count in part.domains.items()))
    lines += [f"  {kind}: {s.least} to {s.most} (median {s.median:g})" for kind, s in part.sizes.items()]
    if part.duplicates is not None:
        told = _told(part.duplicates, f"duplicates: {part.duplicates.rows} rows repeat an earlier one")
        lines += [f"  {line}" for line in told]
    for what, found in (("broken", part.broken), ("left out", part.skipped)):
        if found:
            more = [f"    and {len(found) - 10} more"] if len(found) > 10 else []
            lines += [f"  {what}: {len(found)}", *(f"    {reason}" for reason in found[:10]), *more]
    return lines


def _told(duplicates: Duplicates, start: str) -> list[str]:
    conflicts = f", {duplicates.conflicts} of them under another class" if duplicates.rows else ""
    return [start + conflicts, *(f"  {example}" for example in duplicates.examples)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
