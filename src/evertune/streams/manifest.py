"""Split manifests: which rows make which part of a data set, each with a digest, so that a split can be had again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evertune.errors import DataError, StorageError
from evertune.streams.source import IntArray, Source

FORMAT = "evertune split manifest 1"
_PARTS = ("train", "validation", "test")
_COLUMNS = ("rows", "classes", "sha256")


def write_manifest(path: str | os.PathLike[str], train: Source, test: Source, validation: Source | None = None) -> None:
    """Write which rows make each part: their names within the data set, classes, and sha256 of their contents.

    Reads every row once. ``open_data(..., manifest=path)`` gives the same parts again, in the same order.
    """
    parts = {"train": train, "validation": validation, "test": test}
    content = {
        "format": FORMAT,
        "parts": {
            part: {
                "rows": [source.identify(row) for row in range(len(source))],
                "classes": [source.classes[label] for label in source.labels],
                "sha256": [_sha256(source, row) for row in range(len(source))],
            }
            for part, source in parts.items()
            if source is not None
        },
    }
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}).") from error


def read_manifest(path: str | os.PathLike[str]) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """The columns rows, classes and sha256 of each part.

    Raises
    ------
    StorageError
        There is no such file, or it is no manifest.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise StorageError(f"{path} is no split manifest: it is not JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StorageError(f"{path} is no split manifest: its format is not {FORMAT!r}.")
    parts: Any = content.get("parts")
    if not isinstance(parts, dict) or not {"train", "test"} <= set(parts) <= set(_PARTS):
        raise StorageError(f"{path} must hold the parts train and test, and may hold validation.")
    for part, columns in parts.items():
        lists: list[Any] = [columns.get(column) if isinstance(columns, dict) else None for column in _COLUMNS]
        if not all(isinstance(values, list) and all(isinstance(v, str) for v in values) for values in lists):
            raise StorageError(f"{path}: the part {part} needs the lists {', '.join(_COLUMNS)}, of texts.")
        if len({len(values) for values in lists}) > 1 or not lists[0]:
            raise StorageError(f"{path}: the lists of the part {part} are empty or of different lengths.")
    return {part: parts[part] for part in _PARTS if part in parts}


def find_rows(manifest: Mapping[str, Mapping[str, Sequence[str]]], pool: Sequence[Source], path: str) -> dict[
    str, list[tuple[int, IntArray]]
]:  # fmt: skip
    """Where the rows of each part are: for each source of the pool that has some, its position and its rows.

    Raises
    ------
    DataError
        Naming rows that do not exist, have changed, belong to another class, or stand in two parts.
    """
    place = {source.identify(row): (i, row) for i, source in enumerate(pool) for row in range(len(source))}
    problems: list[str] = []
    owner: dict[str, str] = {}
    found: dict[str, list[tuple[int, IntArray]]] = {}
    for part, columns in manifest.items():
        chosen: list[list[int]] = [[] for _ in pool]
        for name, label, digest in zip(*(columns[column] for column in _COLUMNS), strict=True):
            problem = None
            if name not in place:
                problem = "does not exist"
            elif name in owner:
                problem = f"stands in {owner[name]} and in {part}" if owner[name] != part else f"stands twice in {part}"
            else:
                i, row = place[name]
                source = pool[i]
                if source.classes[source.labels[row]] != label:
                    problem = f"is of class {source.classes[source.labels[row]]!r}, not {label!r}"
                elif _sha256(source, row) != digest:
                    problem = "has changed"
                chosen[i].append(row)
            if problem:
                problems.append(f"\n  {name}: {problem}")
            owner.setdefault(name, part)
        found[part] = [(i, np.array(rows, dtype=np.int64)) for i, rows in enumerate(chosen) if rows]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(
            f"{len(problems)} rows are not as {path} says:{''.join(problems[:10])}{more}\n"
            f"Name the data that the manifest was written for, or write a new manifest."
        )
    return found


def _sha256(source: Source, row: int) -> str:
    return hashlib.sha256(source.content(row)).hexdigest()
