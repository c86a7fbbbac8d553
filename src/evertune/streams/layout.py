"""What the files of a folder or zip mean: split, class and domain of each, from an index.csv or from folder names."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from evertune.errors import DataError
from evertune.streams.decode import SUFFIXES
from evertune.streams.files import Store, Zip
from evertune.streams.listing import SPELLED, Listing, Skipped
from evertune.streams.reading import Reading
from evertune.streams.strings import Strings
from evertune.streams.table import read_index

INDEX = "index.csv"
_PARTS = ("train", "test", "val", "valid", "validation")  # as folders are called that are no classes


def read_layout(store: Store, reading: Reading) -> Listing:
    """The examples of a store.

    With an ``index.csv`` (file, class or label, and optionally split, domain and time) that file decides. Otherwise
    folders do: ``[train|val|test/][domain/]class/file``, the domain level only if the reading has one.
    """
    if isinstance(store, Zip):
        store = _unwrap(store, reading.domain_level)
    if not store.files and not store.empty_folders:
        raise DataError(f"{store.path} is empty; put one folder of images per class into it.")
    if INDEX in store.files:
        return read_index(store, INDEX, reading)
    return _from_folders(store, reading)


def _unwrap(store: Zip, domain_level: bool) -> Zip:
    """Look inside the one folder that many programs put around everything they zip."""
    tops = {file.split("/")[0] for file in store.files}
    if len(tops) != 1:
        return store
    top = tops.pop()
    deep = all(file.count("/") >= 2 + domain_level for file in store.files)
    if f"{top}/{INDEX}" in store.files or (deep and top.lower() not in _PARTS):
        return store.inside(top)
    return store


def _from_folders(store: Store, reading: Reading) -> Listing:
    domain_level = reading.domain_level
    wanted = "<domain>/<class>/<file>" if domain_level else "<class>/<file>"
    paths = [file.split("/") for file in store.files]
    is_split = _is_split(store, {parts[0].lower() for parts in paths if len(parts) > 1})
    files: list[str] = []
    labels: list[str] = []
    domains: list[str] = []
    parts: list[int] = []
    for file, path in zip(store.files, paths, strict=True):
        inner = path[1:] if is_split and len(path) > 1 else path
        if len(inner) == 2 + domain_level:
            files.append(file)
            labels.append(inner[-2])
            domains.append(inner[0])
            parts.append(SPELLED[path[0].lower()] if is_split else 0)
        elif len(inner) > 2 + domain_level:
            remedy = (
                "" if domain_level else f" If {inner[0]!r} is a domain, say so with domain_level=True (--domain-level)."
            )
            raise DataError(f"{store.describe(file)} lies deeper than {wanted}.{remedy}")
        elif PurePosixPath(file).suffix.lower() in SUFFIXES:
            raise DataError(f"{store.describe(file)} lies outside any class folder; {wanted} is expected.")
    if not files and not store.empty_folders:
        raise DataError(f"{store.path} holds no {wanted}; put one folder of images per class into it.")
    classes, positions = np.unique(np.array(labels, dtype=str), return_inverse=True)
    domain_names, domain_positions = np.unique(np.array(domains, dtype=str), return_inverse=True)
    return Listing(
        store.path.name,
        str(store.path),
        Strings.of(files),
        positions.astype(np.int64),
        tuple(map(str, classes)),
        store,
        parts=np.array(parts, dtype=np.int8) if is_split else None,
        domains=domain_positions.astype(np.int64) if domain_level else None,
        domain_names=tuple(map(str, domain_names)) if domain_level else (),
        skipped=tuple(
            Skipped(None, f"{store.describe(folder)}: the folder is empty") for folder in store.empty_folders
        ),
        max_pixels=reading.max_pixels,
    )


def _is_split(store: Store, tops: set[str]) -> bool:
    """Whether the uppermost folders are parts; "train" alone among others is a class."""
    test = next((name for name in _PARTS[1:] if name in tops), None)
    if "train" not in tops or (test is None and tops != {"train"}):
        return False
    if test is None:
        raise DataError(f"{store.path} has a train folder but no test or val folder beside it.")
    if not tops <= set(_PARTS):
        strangers = ", ".join(sorted(tops - set(_PARTS)))
        raise DataError(f"{store.path}: beside train and {test} there is also {strangers}. Move it elsewhere.")
    return True
