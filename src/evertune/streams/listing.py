"""The rows of a data set before they become sources: where each is, its class, domain and part, in columns."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError
from evertune.streams.decode import MAX_PIXELS
from evertune.streams.files import FileSource, Store
from evertune.streams.labels import tabulate, united
from evertune.streams.source import IntArray, Source
from evertune.streams.strings import Strings
from evertune.streams.texts import TextSource

PARTS = ("train", "validation", "test")
SPELLED = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
"""How a part may be called, and its position in ``PARTS``."""


class Rule(NamedTuple):
    """How rows without a part are divided: shares of each class, and the seed of the draw."""

    test: float = 0.2
    validation: float = 0.0
    seed: int = 0


class Skipped(NamedTuple):
    """A row that was left out: of which part (None if not divided), and why."""

    part: int | None
    reason: str


@dataclass(frozen=True)
class Listing:
    """N rows of image files in a store, or of texts."""

    name: str
    where: str  # for messages: the folder, zip or table
    values: Strings  # file names, or the texts
    labels: IntArray  # [N], positions in classes
    classes: tuple[str, ...]
    store: Store | None = None  # None for texts
    parts: NDArray[np.int8] | None = None  # [N], positions in PARTS
    domains: IntArray | None = None
    domain_names: tuple[str, ...] = ()
    times: NDArray[np.float64] | None = None
    numbers: IntArray | None = None  # [N], lines of a table
    unit: str = "row"
    class_numbers: Mapping[str, int] = field(default_factory=dict)  # given beside the names, to order them
    skipped: tuple[Skipped, ...] = ()
    max_pixels: int = MAX_PIXELS
    key: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def given(self) -> set[str]:
        """The parts that have rows."""
        return set() if self.parts is None else {PARTS[part] for part in np.unique(self.parts)}

    def take(self, rows: NDArray[Any]) -> Listing:
        """Some rows: positions, or a mask."""
        columns = {
            name: None if column is None else column[rows]
            for name, column in (
                ("labels", self.labels),
                ("parts", self.parts),
                ("domains", self.domains),
                ("times", self.times),
                ("numbers", self.numbers),
            )
        }
        return replace(self, values=self.values.take(rows), **columns)  # type: ignore[arg-type]

    def divided(self, rule: Rule) -> Listing:
        """Rows without a part divided class by class and domain by domain; a validation part is drawn from the rest."""
        codes = self.labels if self.domains is None else self.domains * len(self.classes) + self.labels
        named = {
            int(code): f"{self.domain_names[code // len(self.classes)] if self.domain_names else ''}"
            f"/{self.classes[code % len(self.classes)]}"
            for code in np.unique(codes)
        }
        parts = np.zeros(len(self), np.int8) if self.parts is None else self.parts.copy()
        if self.parts is None:
            drawn = _drawn(codes, named, rule.test, rule.seed, "test_fraction")
            if len(self) and not len(drawn):
                raise DataError(
                    f"{self.where}: no class has a second row that could be held out for testing. Add rows, or name a "
                    f"test part with test=… (--test)."
                )
            parts[drawn] = PARTS.index("test")
        if rule.validation and not (parts == PARTS.index("validation")).any():
            left = np.flatnonzero(parts == PARTS.index("train"))
            drawn = _drawn(codes[left], named, rule.validation, rule.seed, "validation_fraction")
            parts[left[drawn]] = PARTS.index("validation")
        return replace(self, parts=parts)

    def source(self, part: str | None = None) -> Source:
        """The rows of one part (of all, without one) as a source; skipped rows of no part are listed with train."""
        number = None if part is None else PARTS.index(part)
        chosen = self if number is None or self.parts is None else self.take(np.flatnonzero(self.parts == number))
        skipped = [reason for of, reason in self.skipped if number is None or (of or 0) == number]
        if not len(chosen):
            kind = "texts" if self.store is None else "images"
            lost = f"; {len(skipped)} unusable {'rows' if self.store is None else 'files'} were left out"
            raise DataError(f"{self.where} holds no {f'{part} {kind}' if part else kind}{lost if skipped else ''}.")
        name = f"{self.name} {part}" if part else self.name
        common: dict[str, Any] = {
            "domains": chosen.domains,
            "domain_names": self.domain_names,
            "times": chosen.times,
            "skipped": skipped,
            "name": name,
        }
        source: Source
        if self.store is None:
            place = f"{self.where} {self.unit}"
            source = TextSource(
                chosen.values, chosen.labels, self.classes, numbers=chosen.numbers, place=place, **common
            )
        else:
            source = FileSource(
                self.store, chosen.values, chosen.labels, self.classes, max_pixels=self.max_pixels, **common
            )
        source.key = self.key
        return source


def together(listings: Mapping[str, Listing], normalise: bool | None) -> dict[str, Listing]:
    """Listings of the parts of one data set (or of one, under "") over common tables of classes and domains.

    Classes that differ only in case or blanks are made one, kept or refused (:func:`evertune.streams.labels.merged`).
    """
    several = list(listings.values())
    if len({listing.store is None for listing in several}) > 1:
        raise DataError("One part holds texts and another images: all must be of one kind.")
    numbers: dict[str, int] = {}
    for listing in several:
        for name, number in listing.class_numbers.items():
            if numbers.setdefault(name, number) != number:
                raise DataError(f"{listing.where}: class {name!r} has label {number} here and {numbers[name]} before.")
    positions, classes = united(
        [listing.classes for listing in several],
        [np.bincount(listing.labels, minlength=len(listing.classes)) for listing in several],
        several[0].where,
        normalise,
        numbers,
    )
    domain_names = tuple(dict.fromkeys(name for listing in several for name in listing.domain_names))
    return {
        part: replace(
            listing,
            labels=moved[listing.labels],
            classes=classes,
            domains=None if listing.domains is None else tabulate(listing.domain_names, listing.domains, domain_names),
            domain_names=domain_names if listing.domains is not None else (),
            key=f"{part}/" if part else "",
        )
        for (part, listing), moved in zip(listings.items(), positions, strict=True)
    }


def stratified_rows(groups: Iterable[str], fraction: float, seed: int, option: str = "test_fraction") -> list[int]:
    """Rows of a part, sorted: of each group of n rows round(n · fraction), at least one and never all.

    A group of one row gives none. What is drawn from a group depends on the seed and that group alone, so that a new
    class changes the split of no other.
    """
    codes: dict[str, int] = {}
    column = np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=np.int64)
    names = {code: name for name, code in codes.items()}
    return [int(row) for row in _drawn(column, names, fraction, seed, option)]


def _drawn(codes: IntArray, names: Mapping[int, str], fraction: float, seed: int, option: str) -> IntArray:
    if not 0 < fraction < 1:
        raise ConfigError(f"{option} is {fraction}; it must lie between 0 and 1, for example 0.2.")
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(codes) else []
    chosen = [np.zeros(0, np.int64)]
    for rows in groups:
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        generator = np.random.default_rng((seed, zlib.crc32(names[int(codes[rows[0]])].encode())))
        chosen.append(rows[generator.permutation(len(rows))[:count]])
    return np.sort(np.concatenate(chosen))
