"""Data set objects of other libraries as sources: Hugging Face ``datasets``, torchvision, timm. Nothing is decoded."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evertune.errors import DataError
from evertune.streams.arrays import ArraySource
from evertune.streams.files import FileSource, Folder
from evertune.streams.hugging_face import parts_of
from evertune.streams.items import Items
from evertune.streams.reading import Reading
from evertune.streams.source import Source


def open_object(data: Any, reading: Reading) -> dict[str, Source]:
    """The parts of a data set object; one that is not divided is "train" alone.

    Known are sources, ``datasets.Dataset`` and ``DatasetDict``, data sets of torchvision and timm, and
    ``torch.utils.data.Subset`` of these. Their transforms are left out: views make their own.

    Raises
    ------
    DataError
        It is none of these, or its images or classes cannot be found.
    """
    name = type(data).__name__
    if isinstance(data, Source):
        return {"train": data.select(np.arange(len(data)))}
    if hasattr(data, "indices") and hasattr(data, "dataset"):
        return {"train": open_object(data.dataset, reading)["train"].select(np.asarray(data.indices))}
    values = list(data.values()) if isinstance(data, dict) else [data]
    if values and all(hasattr(value, "features") and hasattr(value, "column_names") for value in values):
        return parts_of(data, reading, name)
    if hasattr(data, "reader"):
        return {"train": from_timm(data, name)}
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and _labels_of(data) is not None:
        return {"train": from_torchvision(data, name, reading)}
    raise DataError(
        f"{name} is not a kind of data that is known: give a path, the name of a data set, or a data set object of "
        f"Hugging Face datasets, torchvision or timm."
    )


def from_torchvision(data: Any, name: str, reading: Reading | None = None) -> Source:
    """A torchvision set as a source: its array of pixels or its list of files, with its own order and class names."""
    reading = reading or Reading()
    labels = np.asarray(_labels_of(data), dtype=np.int64)
    if not len(labels):
        raise DataError(f"{name} holds no images.")
    names = [str(label) for label in getattr(data, "classes", range(int(labels.max()) + 1))]
    files = _files_of(data)
    if files and _loads_as_usual(data):
        home = os.path.abspath(os.path.commonpath([os.path.dirname(file) for file in files]))
        relative = [os.path.relpath(os.path.abspath(file), home).replace(os.sep, "/") for file in files]
        folder = Folder(Path(home), files=relative, follow_links=True)
        return FileSource(folder, relative, labels, names, max_pixels=reading.max_pixels, name=name)
    if files:
        return Items(partial(_loaded, data.loader, files), labels, names, name=name)
    if isinstance(getattr(data, "data", None), np.ndarray) or hasattr(getattr(data, "data", None), "numpy"):
        return ArraySource(np.asarray(data.data), labels, names, name=name)
    return Items(partial(_first_of, data), labels, names, name=name)


def from_timm(data: Any, name: str) -> Source:
    """A timm ``ImageDataset`` as a source, by its reader."""
    reader = data.reader
    samples = getattr(reader, "samples", None)
    if samples is None:
        raise DataError(f"{name}: its reader {type(reader).__name__} has no list of samples; use one over a folder.")
    labels = np.array([label for _, label in samples], dtype=np.int64)
    known = {int(number): str(label) for label, number in getattr(reader, "class_to_idx", {}).items()}
    count = max([*known, *labels.tolist()], default=-1) + 1
    return Items(partial(_read, reader), labels, [known.get(i, str(i)) for i in range(count)], name=name)


def _labels_of(data: Any) -> Any:
    samples = getattr(data, "samples", None) or getattr(data, "_samples", None)
    if samples is not None:
        return [label for _, label in samples]
    return next((getattr(data, key) for key in ("targets", "labels", "_labels") if hasattr(data, key)), None)


def _files_of(data: Any) -> list[str]:
    samples = getattr(data, "samples", None) or getattr(data, "_samples", None)
    if samples is not None:
        return [os.fspath(file) for file, _ in samples]
    return [os.fspath(file) for file in getattr(data, "_image_files", None) or getattr(data, "_images", None) or ()]


def _loads_as_usual(data: Any) -> bool:
    from torchvision.datasets.folder import default_loader

    return getattr(data, "loader", default_loader) is default_loader


def _loaded(loader: Any, files: list[str], row: int) -> bytes | Image.Image:
    image: bytes | Image.Image = loader(files[row])
    return image


def _first_of(data: Any, row: int) -> bytes | Image.Image:
    image: bytes | Image.Image = data[row][0]
    return image


def _read(reader: Any, row: int) -> bytes:
    with reader[row][0] as file:
        content: bytes = file.read()
    return content
