"""Data sets by name: those of scikit-learn and torchvision.

Both libraries keep some sets in caches of their own that hold pickles (CIFAR, Olivetti, LFW); they are read by these
libraries after a checksum of what was downloaded. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evertune.errors import DataError, nearest
from evertune.streams.arrays import ArraySource
from evertune.streams.objects import from_torchvision
from evertune.streams.source import Source


@dataclass(frozen=True)
class _Vision:
    """How torchvision calls a set and its two parts; no test part means: split it as an unsplit folder."""

    name: str
    train: Mapping[str, Any] = field(default_factory=lambda: {"split": "train"})
    test: Mapping[str, Any] | None = field(default_factory=lambda: {"split": "test"})


_FLAG = {"train": {"train": True}, "test": {"train": False}}
_VISION = {
    "cifar10": _Vision("CIFAR10", **_FLAG),
    "cifar100": _Vision("CIFAR100", **_FLAG),
    "mnist": _Vision("MNIST", **_FLAG),
    "fashion_mnist": _Vision("FashionMNIST", **_FLAG),
    "kmnist": _Vision("KMNIST", **_FLAG),
    "svhn": _Vision("SVHN"),
    "stl10": _Vision("STL10"),
    "gtsrb": _Vision("GTSRB"),
    "flowers102": _Vision("Flowers102"),
    "food101": _Vision("Food101"),
    "oxford_iiit_pet": _Vision("OxfordIIITPet", train={"split": "trainval"}),
    "fgvc_aircraft": _Vision("FGVCAircraft", train={"split": "trainval"}),
    "dtd": _Vision("DTD"),
    "country211": _Vision("Country211"),
    "eurosat": _Vision("EuroSAT", train={}, test=None),
}
_SKLEARN = ("digits", "olivetti_faces", "lfw_people")
NAMES = tuple(sorted((*_VISION, *_SKLEARN)))


def open_named(name: str, *, root: Path | None, download: bool) -> dict[str, Source]:
    """The parts of a set by name (see :func:`evertune.streams.open_data`); one that is not divided is "train" alone."""
    if name not in NAMES:
        raise DataError(f"{name!r} is neither a file or folder nor a known data set. {nearest(name, NAMES)}")
    if name == "digits":
        return _digits()
    if name in _SKLEARN:
        return _faces(name, root, download)
    return _vision(name, root, download)


def _digits() -> dict[str, Source]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images / 16 * 255).astype(np.uint8)
    return _stratified(images, digits.target, [str(name) for name in digits.target_names], "digits")


def _faces(name: str, root: Path | None, download: bool) -> dict[str, Source]:
    from sklearn import datasets

    try:
        if name == "olivetti_faces":
            faces = datasets.fetch_olivetti_faces(data_home=root, download_if_missing=download)
            people = [f"person{i:02d}" for i in range(40)]
        else:
            faces = datasets.fetch_lfw_people(
                data_home=root, download_if_missing=download, color=True, min_faces_per_person=20
            )
            people = [str(person) for person in faces.target_names]
    except OSError as error:
        raise _missing(name, root or Path("~/scikit_learn_data"), error, download) from error
    images = np.asarray(faces.images)
    scale = 255 if images.max() <= 1 else 1
    return _stratified(np.rint(images * scale).astype(np.uint8), faces.target, people, name)


def _stratified(x: NDArray[Any], y: NDArray[Any], names: Sequence[str], name: str) -> dict[str, Source]:
    """70 % train, 30 % test, stratified, seed 0: the split by which scikit-learn's sets are usually reported."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(y)), test_size=0.3, random_state=0, stratify=y)
    return {
        part: ArraySource(x[rows], y[rows], names, name=f"{name} {part}")
        for part, rows in (("train", train), ("test", test))
    }


def _vision(name: str, root: Path | None, download: bool) -> dict[str, Source]:
    known = _VISION[name]
    build = getattr(importlib.import_module("torchvision.datasets"), known.name)
    home = (root or Path("~/.cache/evertune/data")).expanduser()
    parts: dict[str, Source] = {}
    for part, options in (("train", known.train), ("test", known.test)):
        if options is None:
            continue
        try:
            dataset = build(root=str(home), download=download, **options)
        except (RuntimeError, OSError) as error:
            raise _missing(name, home, error, download) from error
        parts[part] = from_torchvision(dataset, f"{name} {part}")
    return parts


def _missing(name: str, home: Path, error: Exception, download: bool) -> DataError:
    if download:
        return DataError(f"{name!r} could not be downloaded to {home} ({error}). Check the network and try again.")
    return DataError(
        f"{name!r} is not in {home} ({error}). Ask for the download with download=True (--download), "
        f"or name the folder that holds it with root."
    )
