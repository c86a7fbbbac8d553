"""From what a user names (a file, a folder, a data set, an object) to train, validation and test sources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from evertune.errors import ConfigError, DataError
from evertune.streams.arrays import open_npz
from evertune.streams.files import Folder, Zip
from evertune.streams.hugging_face import open_hub
from evertune.streams.layout import read_layout
from evertune.streams.listing import Listing, Rule
from evertune.streams.named import NAMES, open_named
from evertune.streams.objects import open_object
from evertune.streams.reading import Reading
from evertune.streams.rows import SUFFIXES
from evertune.streams.source import Source
from evertune.streams.splits import Splits, of_listings, of_sources, own_parts, warn_of_leakage
from evertune.streams.table import read_table

HUB = "hf:"


class Options(TypedDict, total=False):
    """The options of :func:`open_data` and :func:`open_splits`, explained there."""

    test: Any
    validation: Any
    manifest: str | os.PathLike[str] | None
    test_fraction: float
    validation_fraction: float
    seed: int
    root: str | os.PathLike[str] | None
    download: bool
    skip_bad: bool
    domain_level: bool
    columns: Mapping[str, str]
    encoding: str
    normalise_labels: bool | None
    numbers_as_names: bool
    verify: bool
    follow_links: bool
    max_pixels: int


def open_data(spec: Any, **options: Unpack[Options]) -> tuple[Source, Source]:
    """Train and test examples of a data set; :func:`open_splits` gives its validation part too.

    Parameters
    ----------
    spec : one of

        - an ``.npz`` file with x_train, y_train, x_test, y_test and optionally classes, domain_train, domain_test;
        - a table, ``.csv``, ``.tsv``, ``.json`` (a list of objects) or ``.jsonl``: a column of texts (text) or of image
          files (file, path or image), one of classes (class, category, intent or label), optionally domain, split and
          time. Rows with a time are put in its order. Files are looked for below the table's folder, or ``root``;
        - a folder, or a ``.zip`` of one, with such a table of its files as ``index.csv``;
        - a folder or zip of ``train/<class>/<file>`` and ``test/<class>/<file>`` (val is used when there is no test);
        - a folder or zip of ``<class>/<file>``, which is divided here into train and test;
        - a data set of scikit-learn or torchvision by name, such as ``digits`` or ``cifar100``. A set's name wins over
          a folder of that name; write ``./digits`` for the folder;
        - ``hf:NAME`` or ``hf:NAME:CONFIGURATION``, a data set of the Hugging Face hub, or ``hf:FOLDER``;
        - a data set object of Hugging Face ``datasets``, torchvision or timm.
    test, validation : parts that are kept elsewhere, as ``spec``: ``open_data("train.csv", test="test.csv")``.
    manifest : a file of :func:`write_manifest` that says which rows make which part.
    test_fraction, validation_fraction, seed : how data without a split is divided, class by class: the same seed gives
        the same division. A validation part (by default none) is drawn from the training data.
    root : where data sets by name are kept, by default each library's own place or ``~/.cache/evertune/data``; for a
        table, the folder its files are in.
    download : allow a data set by name to be downloaded.
    skip_bad : leave out files that are no images, and rows without text, and list them in ``source.skipped``;
        otherwise they are an error.
    domain_level : a folder level ``<domain>`` stands above ``<class>``. (A table has its domain column instead.)
    columns : names of a table's columns where they are not recognised: ``{"text": "sentence", "label": "y"}``.
    encoding : of a table.
    normalise_labels : True makes classes one that differ only in case or blanks, False keeps them apart; by default
        they are refused.
    numbers_as_names : a class may be called ``3`` where others have names; otherwise such a mixture is refused.
    verify : look at the header of every image file now, rather than when it is loaded.
    follow_links : read links that lead out of the data's folder.
    max_pixels : refuse images of more pixels, which could fill the memory.

    Raises
    ------
    DataError
        If there is nothing there, or something in it cannot be used; the message names it.
    """
    splits = open_splits(spec, **options)
    return splits.train, splits.test


def open_splits(
    spec: Any,
    *,
    test: Any = None,
    validation: Any = None,
    manifest: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    columns: Mapping[str, str] | None = None,
    **choices: Any,
) -> Splits:
    """Train, validation (or None) and test examples of a data set, as :func:`open_data`."""
    given = {"train": spec, "validation": validation, "test": test}
    rule = Rule(test_fraction, validation_fraction, seed)
    parts = _parts(given, _reading(root, columns, choices), manifest, rule, download)
    return Splits(parts["train"], parts.get("validation"), parts["test"])


def open_task(
    spec: Any,
    *,
    test: Any = None,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    columns: Mapping[str, str] | None = None,
    **choices: Any,
) -> tuple[Source, Source | None]:
    """A data set as the data of one task: what says nothing of parts is training data, all of it.

    Returns
    -------
    Training examples, and the test examples where the data has some or ``test`` names them. Options as of
    :func:`open_data`; no part is drawn here.
    """
    given = {"train": spec, "test": test}
    parts = _parts(given, _reading(root, columns, choices), None, None, download)
    return parts["train"], parts.get("test")


def _reading(
    root: str | os.PathLike[str] | None, columns: Mapping[str, str] | None, choices: Mapping[str, Any]
) -> Reading:
    return Reading(root=None if root is None else Path(root).expanduser(), columns=columns or {}, **choices)


def _parts(
    given: Mapping[str, Any],
    reading: Reading,
    manifest: str | os.PathLike[str] | None,
    rule: Rule | None,
    download: bool,
) -> dict[str, Source]:
    """Sources by part, from the data that was given for each; without a rule nothing is drawn from "train"."""
    if given.get("validation") is not None and given["test"] is None:
        raise ConfigError("A validation part was given without a test part: give test too.")
    opened = {part: _open(each, reading, download) for part, each in given.items() if each is not None}
    listings = {part: each for part, each in opened.items() if isinstance(each, Listing)}
    if listings and len(listings) < len(opened):
        raise ConfigError("The parts are of different kinds: give all as folders, zips or tables, or none.")
    if listings:
        parts = of_listings(listings, reading, manifest, rule)
    else:
        own = own_parts({part: each for part, each in opened.items() if not isinstance(each, Listing)})
        parts = of_sources(own, reading, manifest, rule)
    warn_of_leakage(parts)
    return parts


def _open(spec: Any, reading: Reading, download: bool) -> Listing | dict[str, Source]:
    """A listing, or sources by part; a source that is not divided is "train" alone."""
    if not isinstance(spec, str | os.PathLike):
        return open_object(spec, reading)
    if isinstance(spec, str) and spec.startswith(HUB):
        return open_hub(spec.removeprefix(HUB), reading, download)
    name = spec.lower().replace("-", "_") if isinstance(spec, str) else ""
    path = Path(spec).expanduser()
    if name in NAMES or (name and not path.exists() and not _looks_like_path(spec)):
        return open_named(name, root=reading.root, download=download)
    if path.suffix.lower() == ".npz":
        train, test = open_npz(_existing(path))
        return {"train": train, "test": test}
    return _listing(path, reading)


def _listing(path: Path, reading: Reading) -> Listing:
    _existing(path)
    if path.is_dir():
        return read_layout(Folder(path, follow_links=reading.follow_links), reading)
    if path.suffix.lower() == ".zip":
        return read_layout(Zip(path), reading)
    if path.suffix.lower() in SUFFIXES:
        return read_table(path, reading)
    raise DataError(
        f"{path} is not a kind of data that is known: give a folder, a .zip, .npz, {', '.join(SUFFIXES[:-1])} or "
        f"{SUFFIXES[-1]} file."
    )


def _looks_like_path(spec: object) -> bool:
    text = str(spec)
    known = (".npz", ".zip", *SUFFIXES)
    return "/" in text or os.sep in text or Path(text).suffix.lower() in known or text in (".", "..")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} does not exist (looked for {path.absolute()}).")
    return path
