"""Data sets of Hugging Face ``datasets``: objects, folders, and names on the hub. No code of a data set is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evertune.errors import DataError
from evertune.streams.items import Items
from evertune.streams.listing import PARTS, SPELLED
from evertune.streams.reading import Reading
from evertune.streams.source import Source
from evertune.streams.strings import Writer
from evertune.streams.table import find_columns
from evertune.streams.texts import TextSource

_CHUNK = 4096  # rows read together


def open_hub(name: str, reading: Reading, download: bool) -> dict[str, Source]:
    """The parts of ``NAME`` or ``NAME:CONFIGURATION`` on the hub, or in a local folder.

    Raises
    ------
    DataError
        It is neither here nor, with ``download``, to be had, or has no such parts or columns.
    """
    try:
        import datasets  # noqa: F401  # asked for here, used below
    except ImportError as error:
        raise DataError(f"hf:{name} needs the package datasets: pip install evertune[hf].") from error
    path, _, configuration = name.partition(":")
    folder = Path(path).expanduser()
    try:
        with _offline(not download):
            loaded = _load(folder, path, configuration, reading)
    except Exception as error:  # the library raises its own types, those of the network and of every file format
        reason = " ".join(str(error).split())
        remedy = (
            "Check the name and the network." if download else "Ask for the download with download=True (--download)."
        )
        if folder.exists():
            remedy = "Give a folder of parquet, CSV or JSON files, or one that save_to_disk wrote."
        raise DataError(f"hf:{name} cannot be opened ({reason}). {remedy}") from error
    return parts_of(loaded, reading, path.rstrip("/").split("/")[-1])


def _load(folder: Path, path: str, configuration: str, reading: Reading) -> Any:
    import datasets

    if any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(str(folder))
    older = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
    return datasets.load_dataset(
        str(folder) if folder.exists() else path,
        configuration or None,
        cache_dir=None if reading.root is None else str(reading.root),
        **older,
    )


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep these libraries from the network, which otherwise ask the hub even for what they have."""
    import datasets
    import huggingface_hub

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    kept = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place, before in zip(places, kept, strict=True):
            place.HF_HUB_OFFLINE = before or offline
        yield
    finally:
        for place, before in zip(places, kept, strict=True):
            place.HF_HUB_OFFLINE = before


def parts_of(loaded: Any, reading: Reading, name: str) -> dict[str, Source]:
    """The parts of a ``DatasetDict``, or a ``Dataset`` as "train" alone."""
    if not isinstance(loaded, Mapping):
        return {"train": from_hugging_face(loaded, reading, name)}
    parts: dict[str, Source] = {}
    for key, dataset in loaded.items():
        if key.lower() in SPELLED and PARTS[SPELLED[key.lower()]] not in parts:
            part = PARTS[SPELLED[key.lower()]]
            parts[part] = from_hugging_face(dataset, reading, f"{name} {key}")
    if "train" not in parts:
        raise DataError(f"{name} has the parts {', '.join(loaded)}, of which none is train.")
    return parts


def from_hugging_face(dataset: Any, reading: Reading, name: str) -> Source:
    """One ``Dataset``: a column of images or texts and one of classes, found by type, by name, or as told.

    Raises
    ------
    DataError
        A stream of unknown length, or columns that cannot be told apart.
    """
    if not hasattr(dataset, "__len__") or dataset.features is None:
        raise DataError(f"{name} is a stream of unknown length: load it without streaming.")
    features: dict[str, Any] = dict(dataset.features)
    told = dict(reading.columns)
    for role, kind in (("file", "Image"), ("label", "ClassLabel")):
        known = [column for column, feature in features.items() if type(feature).__name__ == kind]
        if len(known) == 1 and role not in told and not (role == "file" and "text" in told):
            told[role] = known[0]
    columns = find_columns(tuple(features), told, name)
    labels, classes = _named(dataset, columns["label"], features)
    domains, domain_names = _named(dataset, columns["domain"], features) if "domain" in columns else (None, None)
    if "text" in columns:
        return _texts(dataset, columns["text"], reading, name, labels, classes, domains, domain_names)
    if type(features[columns["file"]]).__name__ != "Image":
        raise DataError(
            f"{name}: the column {columns['file']} holds {features[columns['file']]}, not images; cast it with "
            f"dataset.cast_column({columns['file']!r}, datasets.Image())."
        )
    from datasets import Image

    encoded = dataset.select_columns([columns["file"]]).cast_column(columns["file"], Image(decode=False))
    read = partial(_encoded, encoded.with_format(None), columns["file"])
    return Items(
        read, labels, classes, domains=domains, domain_names=domain_names, max_pixels=reading.max_pixels, name=name
    )


def _encoded(dataset: Any, column: str, row: int) -> bytes:
    cell = dataset[row][column]
    content: bytes | None = cell["bytes"]
    return Path(cell["path"]).read_bytes() if content is None else content


def _named(dataset: Any, column: str, features: Mapping[str, Any]) -> tuple[list[Any], list[str] | None]:
    values = list(dataset.with_format(None).select_columns([column])[:][column])
    names = getattr(features[column], "names", None)
    return values, None if names is None else list(names)


def _texts(
    dataset: Any,
    column: str,
    reading: Reading,
    name: str,
    labels: list[Any],
    classes: list[str] | None,
    domains: list[Any] | None,
    domain_names: list[str] | None,
) -> TextSource:
    writer, kept = Writer(), np.ones(len(dataset), dtype=bool)
    plain = dataset.with_format(None).select_columns([column])
    for start in range(0, len(dataset), _CHUNK):
        for row, text in enumerate(plain[start : start + _CHUNK][column], start):
            if isinstance(text, str) and text.strip():
                writer.add(text)
            else:
                kept[row] = False
    blank = np.flatnonzero(~kept)
    if len(blank) and not reading.skip_bad:
        rows = ", ".join(map(str, blank[:10])) + (f" and {len(blank) - 10} more" if len(blank) > 10 else "")
        raise DataError(
            f"{name}: {len(blank)} texts in the column {column} are empty (rows {rows}); leave them out with skip_bad "
            f"(--skip-bad)."
        )

    def chosen(values: list[Any]) -> list[Any]:
        return values if kept.all() else [value for value, keep in zip(values, kept, strict=True) if keep]

    return TextSource(
        writer.strings(),
        chosen(labels),
        classes,
        domains=None if domains is None else chosen(domains),
        domain_names=domain_names,
        numbers=np.flatnonzero(kept),
        skipped=[f"{name} row {row}: the column {column} is empty" for row in blank],
        name=name,
    )
