"""From what a user names (a file, a folder, a data set) to a train and a test source."""

from __future__ import annotations

import os
from pathlib import Path

from evertune.errors import DataError
from evertune.streams.arrays import open_npz
from evertune.streams.files import Folder, Zip
from evertune.streams.layout import Layout, read_layout, split_layout
from evertune.streams.named import NAMES, open_named
from evertune.streams.source import Source


def open_data(
    spec: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    domain_level: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> tuple[Source, Source]:
    """Train and test examples of a data set.

    Parameters
    ----------
    spec : one of

        - an ``.npz`` file with x_train, y_train, x_test, y_test and optionally classes, domain_train, domain_test;
        - a folder, or a ``.zip`` of one, with an ``index.csv``: columns file, class or label, optionally split, domain;
        - a folder or zip of ``train/<class>/<file>`` and ``test/<class>/<file>`` (or val, used when there is no test);
        - a folder or zip of ``<class>/<file>``, which is divided here into train and test;
        - a data set of scikit-learn or torchvision by name, such as ``digits`` or ``cifar100``. A set's name wins over
          a folder of that name; write ``./digits`` for the folder.
    skip_bad : leave out files that are no images and list them in ``source.skipped``; otherwise they are an error.
    domain_level : a folder level ``<domain>`` stands above ``<class>``. (An index.csv has its domain column instead.)
    test_fraction, seed : how data without a split is divided, class by class: the same seed gives the same division.
    root : where data sets by name are kept; by default each library's own place, or ``~/.cache/evertune/data``.
    download : allow a data set by name to be downloaded.

    Raises
    ------
    DataError
        If there is nothing there, or something in it cannot be used; the message names it.
    """
    name = spec.lower().replace("-", "_") if isinstance(spec, str) else ""
    path = Path(spec).expanduser()
    if name in NAMES or (name and not path.exists() and not _looks_like_path(spec)):
        home = None if root is None else Path(root).expanduser()
        return open_named(name, root=home, download=download, test_fraction=test_fraction, seed=seed)
    if path.suffix.lower() == ".npz":
        return open_npz(_existing(path))
    layout = open_layout(path, skip_bad=skip_bad, domain_level=domain_level)
    if not layout.is_split:
        layout = split_layout(layout, test_fraction, seed)
    return layout.source("train"), layout.source("test")


def open_layout(path: Path, *, skip_bad: bool, domain_level: bool) -> Layout:
    """The examples of a folder or zip, split or not."""
    _existing(path)
    if path.is_dir():
        return read_layout(Folder(path), domain_level=domain_level, skip_bad=skip_bad)
    if path.suffix.lower() == ".zip":
        return read_layout(Zip(path), domain_level=domain_level, skip_bad=skip_bad)
    raise DataError(f"{path} is not a kind of data that is known: give a folder, a .zip or an .npz file.")


def _looks_like_path(spec: object) -> bool:
    text = str(spec)
    return "/" in text or os.sep in text or Path(text).suffix.lower() in (".npz", ".zip") or text in (".", "..")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} does not exist (looked for {path.absolute()}).")
    return path
