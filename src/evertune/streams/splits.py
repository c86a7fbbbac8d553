"""The parts of a data set: as they are given, divided by a rule, or as a manifest says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evertune.errors import DataError
from evertune.streams.checks import check_files
from evertune.streams.joined import joined
from evertune.streams.labels import united
from evertune.streams.listing import PARTS, Listing, Rule, stratified_rows, together
from evertune.streams.manifest import find_rows, read_manifest
from evertune.streams.reading import Reading
from evertune.streams.source import Source, Subset


class Splits(NamedTuple):
    """The parts of a data set."""

    train: Source
    validation: Source | None
    test: Source


def complete(listing: Listing, *, tested: bool) -> Listing:
    """A listing that is not divided, or has train and (if it must be ``tested``) test.

    A validation part stands in for a missing test part.
    """
    if listing.parts is None or (not tested and listing.given == {"train"}):
        return listing
    if "train" not in listing.given or listing.given == {"train"}:
        raise DataError(
            f"{listing.where} has only the split {', '.join(sorted(listing.given))}; it needs train and test (or val)."
        )
    if "test" not in listing.given:
        return replace(
            listing,
            parts=np.where(listing.parts == 1, 2, listing.parts).astype(np.int8),
            skipped=tuple(skipped._replace(part=2) if skipped.part == 1 else skipped for skipped in listing.skipped),
        )
    return listing


def of_listings(
    listings: Mapping[str, Listing], reading: Reading, manifest: str | os.PathLike[str] | None, rule: Rule | None
) -> dict[str, Source]:
    """The parts of one listing under "train", or of listings that were each named for one part.

    Without a rule, what is not divided is all "train".
    """
    alone = len(listings) == 1
    tested = rule is not None
    if alone:
        own = {"": complete(listings["train"], tested=tested)}
    else:
        own = {part: _own(listing, part) for part, listing in listings.items()}
    shared = together(own, reading.normalise_labels)
    checked = {part: check_files(listing, reading) for part, listing in shared.items()}
    if manifest is not None:
        return _as_written(list(checked.values()), manifest)
    if alone:
        divided = checked[""] if rule is None else checked[""].divided(rule)
        wanted = {"train"} | divided.given | ({"test"} if tested else set())
        parts = {part: divided.source(part) for part in PARTS if part in wanted}
    else:
        parts = {part: listing.source() for part, listing in checked.items()}
        if rule is not None and rule.validation and "validation" not in parts:
            train = replace(checked["train"], parts=np.zeros(len(checked["train"]), np.int8)).divided(rule)
            parts |= {part: train.source(part) for part in ("train", "validation")}
    return parts


def _as_written(listings: Sequence[Listing], manifest: str | os.PathLike[str]) -> dict[str, Source]:
    whole = [replace(listing, parts=None) for listing in listings]
    found = find_rows(read_manifest(manifest), [listing.source() for listing in whole], str(manifest))
    return {
        part: joined([replace(whole[i].take(rows), name=f"{whole[i].name} {part}").source() for i, rows in places])
        for part, places in found.items()
    }


def _own(listing: Listing, part: str) -> Listing:
    """The rows of a listing that was named for one part: those it says are of that part, or all."""
    if listing.parts is None:
        return listing
    if part not in listing.given:
        raise DataError(f"{listing.where} was given as {part} and says that its rows are {', '.join(listing.given)}.")
    return replace(listing.take(np.flatnonzero(listing.parts == PARTS.index(part))), parts=None)


def own_parts(opened: Mapping[str, Mapping[str, Source]]) -> Mapping[str, Source]:
    """The sources of one spec as they are, or of each spec its own part."""
    if len(opened) == 1:
        return opened["train"]
    return {part: sources.get(part, sources["train"]) for part, sources in opened.items()}


def of_sources(
    parts: Mapping[str, Source], reading: Reading, manifest: str | os.PathLike[str] | None, rule: Rule | None
) -> dict[str, Source]:
    """The parts as they are; of "train" alone, drawn by the rule if there is one."""
    parts = dict(parts)
    if len({id(source.source if isinstance(source, Subset) else source) for source in parts.values()}) > 1:
        for part, source in parts.items():
            source.key = f"{part}/"
    _share_classes(list(parts.values()), reading.normalise_labels)
    if manifest is not None:
        pool = list(parts.values())
        found = find_rows(read_manifest(manifest), pool, str(manifest))
        return {part: joined([pool[i].select(rows) for i, rows in places]) for part, places in found.items()}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if rule is None:
        return parts
    if "test" not in parts:
        parts["train"], parts["test"] = divided(parts["train"], rule.test, rule.seed, "test_fraction")
    if "validation" not in parts and rule.validation:
        parts["train"], parts["validation"] = divided(parts["train"], rule.validation, rule.seed, "validation_fraction")
    return parts


def divided(source: Source, fraction: float, seed: int, option: str = "test_fraction") -> tuple[Source, Source]:
    """The rows that stay and those that are drawn, class by class."""
    names = np.array(source.classes, dtype=object)[source.labels]
    rows = np.zeros(len(source), dtype=bool)
    rows[stratified_rows(names, fraction, seed, option)] = True
    if not rows.any():
        raise DataError(f"{source.name}: no class has a second row that could be held out ({option}).")
    return source.select(~rows), source.select(rows)


def _share_classes(sources: list[Source], normalise: bool | None) -> None:
    """Give sources that were opened together one table of classes, as listings have."""
    tables, counts = [source.classes for source in sources], [source.counts() for source in sources]
    positions, classes = united(tables, counts, sources[0].name, normalise)
    for source, moved in zip(sources, positions, strict=True):
        if source.classes != classes:
            source.labels, source.classes = moved[source.labels], classes


def warn_of_leakage(parts: Mapping[str, Source]) -> None:
    """Warn where a text is in train and in test; of images ``summarise`` tells, which reads them."""
    train, test = parts["train"], parts.get("test")
    if train.modality != "text" or test is None:
        return
    tested = {test.content(row) for row in range(len(test))}
    leaked = sum(train.content(row) in tested for row in range(len(train)))
    if leaked:
        warnings.warn(
            f"{train.name}: {leaked} of {len(train)} training texts are in the test part too, word for "
            f"word; summarise() (evertune data) shows them.",
            UserWarning,
            stacklevel=3,
        )
