"""What the files of a folder or zip mean: split, class and domain of each, from an index.csv or from folder names."""

from __future__ import annotations

import csv
import io
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from evertune.errors import ConfigError, DataError
from evertune.streams.decode import SUFFIXES, decode, find_problem
from evertune.streams.files import FileSource, Store, Zip, check_path

INDEX = "index.csv"
_COLUMNS = frozenset({"file", "split", "label", "class", "domain"})
TRAIN = "train"
TEST = ("test", "val", "valid", "validation")  # the first that exists is the test part; any other is left alone


@dataclass(frozen=True)
class Example:
    """One image file and what is known of it before it is read."""

    file: str
    label: str
    domain: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Layout:
    """All examples of a store, with the names of classes and domains in order."""

    store: Store
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]
    skipped: tuple[tuple[Example, str], ...] = ()

    @property
    def is_split(self) -> bool:
        return any(example.split for example in self.examples)

    def source(self, split: str | None = None) -> FileSource:
        """The examples of one split (of all, without one) as a source; unsplit skipped files are listed with train."""
        chosen = [example for example in self.examples if split is None or example.split == split]
        skipped = [
            f"{self.store.describe(example.file)}: {reason}"
            for example, reason in self.skipped
            if split is None or (example.split or TRAIN) == split
        ]
        if not chosen:
            what = f"{split} images" if split else "images"
            lost = f"; {len(skipped)} unusable files were left out" if skipped else ""
            raise DataError(f"{self.store.path} holds no {what}{lost}.")
        position = {name: i for i, name in enumerate(self.classes)}
        domain_position = {name: i for i, name in enumerate(self.domain_names)}
        return FileSource(
            self.store,
            [example.file for example in chosen],
            np.array([position[example.label] for example in chosen], dtype=np.int64),
            self.classes,
            domains=np.array([domain_position[example.domain or ""] for example in chosen], dtype=np.int64)
            if domain_position
            else None,
            domain_names=self.domain_names,
            skipped=skipped,
            name=f"{self.store.path.name} {split}" if split else self.store.path.name,
        )


def read_layout(store: Store, *, domain_level: bool = False, skip_bad: bool = False) -> Layout:
    """Find the examples of a store and look at the header of each file.

    With an ``index.csv`` (file, class or label, and optionally split and domain) that file decides. Otherwise folders
    do: ``[train|test/][domain/]class/file``, the domain level only with ``domain_level``. Files that are no images are
    an error that names them, or with ``skip_bad`` are left out and listed.
    """
    if isinstance(store, Zip):
        store = _unwrap(store, domain_level)
    if not store.files and not store.empty_folders:
        raise DataError(f"{store.path} is empty; put one folder of images per class into it.")
    layout = _from_index(store) if INDEX in store.files else _from_folders(store, domain_level)
    return _check_files(layout, skip_bad)


def _unwrap(store: Zip, domain_level: bool) -> Zip:
    """Look inside the one folder that many programs put around everything they zip."""
    tops = {file.split("/")[0] for file in store.files}
    if len(tops) != 1:
        return store
    top = tops.pop()
    deep = all(file.count("/") >= 2 + domain_level for file in store.files)
    if f"{top}/{INDEX}" in store.files or (deep and top.lower() not in (TRAIN, *TEST)):
        return store.inside(top)
    return store


def _from_folders(store: Store, domain_level: bool) -> Layout:
    wanted = "<domain>/<class>/<file>" if domain_level else "<class>/<file>"
    paths = [file.split("/") for file in store.files]
    tops = {parts[0].lower() for parts in paths if len(parts) > 1}
    test = next((name for name in TEST if name in tops), None)
    is_split = TRAIN in tops and (test is not None or tops == {TRAIN})  # "train" alone among others is a class
    if is_split and test is None:
        raise DataError(f"{store.path} has a train folder but no test or val folder beside it.")
    if is_split and not tops <= {TRAIN, *TEST}:
        strangers = ", ".join(sorted(tops - {TRAIN, *TEST}))
        raise DataError(f"{store.path}: beside train and {test} there is also {strangers}. Move it elsewhere.")
    examples = []
    for file, parts in zip(store.files, paths, strict=True):
        split = None
        inner = parts
        if is_split and len(parts) > 1:
            split, inner = ("test" if parts[0].lower() == test else parts[0].lower()), parts[1:]
        if len(inner) == 2 + domain_level:
            examples.append(Example(file, inner[-2], inner[0] if domain_level else None, split))
        elif len(inner) > 2 + domain_level:
            remedy = "" if domain_level else f" If {inner[0]!r} is a domain, ask for a domain level."
            raise DataError(f"{store.describe(file)} lies deeper than {wanted}.{remedy}")
        elif PurePosixPath(file).suffix.lower() in SUFFIXES:
            raise DataError(f"{store.describe(file)} lies outside any class folder; {wanted} is expected.")
    examples = [example for example in examples if example.split in (None, TRAIN, "test")]
    if not examples and not store.empty_folders:
        raise DataError(f"{store.path} holds no {wanted}; put one folder of images per class into it.")
    classes = sorted({example.label for example in examples})
    domains = sorted({example.domain for example in examples if example.domain})
    empty = tuple((Example(folder, ""), "the folder is empty") for folder in store.empty_folders)
    return Layout(store, tuple(examples), tuple(classes), tuple(domains), empty)


def _from_index(store: Store) -> Layout:
    where = store.describe(INDEX)
    with store.open(INDEX) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            rows = [(reader.line_num, row) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{where} is not a readable CSV file in UTF-8 ({error}).") from error
    columns = reader.fieldnames or []
    if "file" not in columns or not {"class", "label"} & set(columns):
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{where} needs the columns file and class (or label); it has {found}.")
    examples: list[Example] = []
    numbers: dict[str, int] = {}
    for line, row in rows:
        for column in sorted(_COLUMNS & set(columns)):
            if not row[column]:
                raise DataError(f"{where} line {line}: the column {column} is empty.")
        check_path(row["file"], f"{where} line {line}: the file")
        label = row.get("class") or row["label"]
        if "label" in columns:
            _note_number(numbers, label, row["label"], f"{where} line {line}")
        examples.append(Example(row["file"], label, row.get("domain"), row.get("split")))
    if not examples:
        raise DataError(f"{where} lists no files.")
    _check_unique((example.file for example in examples), where)
    labels = {example.label for example in examples}
    classes = sorted(labels, key=lambda name: (numbers.get(name, 0), name))
    domains = tuple(dict.fromkeys(example.domain for example in examples if example.domain))
    return Layout(
        store, _name_splits(examples, where) if "split" in columns else tuple(examples), tuple(classes), domains
    )


def _note_number(numbers: dict[str, int], name: str, number: str, where: str) -> None:
    """A label number and a class name belong together, one to one."""
    if not number.isdecimal():
        raise DataError(f"{where}: the label {number!r} is not a whole number from 0.")
    if numbers.setdefault(name, int(number)) != int(number):
        raise DataError(f"{where}: class {name!r} has label {number} here and {numbers[name]} before.")
    other = next((known for known, value in numbers.items() if value == int(number) and known != name), None)
    if other is not None:
        raise DataError(f"{where}: label {number} means {name!r} here and {other!r} before.")


def _name_splits(examples: Sequence[Example], where: str) -> tuple[Example, ...]:
    names = {(example.split or "").lower() for example in examples}
    unknown = sorted(names - {TRAIN, *TEST})
    if unknown:
        raise DataError(f"{where}: unknown split {unknown[0]!r}; use train and test (or val).")
    test = next((name for name in TEST if name in names), None)
    if TRAIN not in names or test is None:
        raise DataError(f"{where} has only the split {', '.join(sorted(names))}; it needs train and test (or val).")
    renamed = {TRAIN: TRAIN, test: "test"}
    lowered = ((example, (example.split or "").lower()) for example in examples)
    return tuple(replace(example, split=renamed[split]) for example, split in lowered if split in renamed)


def _check_unique(files: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for file in files:
        if file in seen:
            raise DataError(f"{where} lists {file} twice.")
        seen.add(file)


def _check_files(layout: Layout, skip_bad: bool) -> Layout:
    """Leave out, or refuse, what is not an image.

    Headers and checksums are looked at in any case, which costs little. Whoever asks to go on without bad files also
    has every file decoded once, since a picture cut in its middle would otherwise stop a run in a later task.
    """
    store = layout.store
    good, bad = [], list(layout.skipped)
    for example in layout.examples:
        try:
            with store.open(example.file) as stream:
                problem = find_problem(stream)
                if skip_bad and not problem:
                    stream.seek(0)
                    decode(stream, store.describe(example.file))
        except DataError as error:
            problem = str(error)
        if problem:
            bad.append((example, problem))
        else:
            good.append(example)
    if bad and not skip_bad:
        listed = "".join(f"\n  {store.describe(example.file)}: {reason}" for example, reason in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError(
            f"{len(bad)} of the files in {store.path} cannot be used:{listed}{more}\n"
            f"Repair or remove them, or leave them out with skip_bad (--skip-bad)."
        )
    return replace(layout, examples=tuple(good), skipped=tuple(bad))


def split_layout(layout: Layout, test_fraction: float, seed: int) -> Layout:
    """Divide unsplit examples into train and test, class by class (and domain by domain)."""
    groups = [f"{example.domain or ''}/{example.label}" for example in layout.examples]
    test = set(stratified_rows(groups, test_fraction, seed))
    examples = (replace(ex, split="test" if row in test else TRAIN) for row, ex in enumerate(layout.examples))
    return replace(layout, examples=tuple(examples))


def stratified_rows(groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Rows of a test part, sorted: of each group of n rows round(n · fraction), at least one and never all.

    A group of one row gives none. What is drawn from a group depends on the seed and that group alone, so that a new
    class changes the split of no other.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test_fraction is {fraction}; it must lie between 0 and 1, for example 0.2.")
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    chosen: list[int] = []
    for group, rows in members.items():
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        generator = np.random.default_rng((seed, zlib.crc32(group.encode())))
        chosen += [rows[i] for i in generator.permutation(len(rows))[:count]]
    return sorted(chosen)
