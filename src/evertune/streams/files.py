"""Image files in a folder or a zip, read in place."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evertune.errors import DataError
from evertune.streams.decode import MAX_PIXELS, decode
from evertune.streams.source import IntArray, Source
from evertune.streams.strings import Strings

_DEEPEST = 4  # split / domain / class / file: links that lead back up cannot make a walk endless
_LARGEST = 1 << 29  # bytes of one unpacked file of a zip
_MOST = 64 << 30  # bytes of all unpacked files of a zip
_MOST_RATIO, _RATIO_FROM = 200, 1 << 30  # all of them against the zip, looked at where they are a GiB and more
_IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


class Store(ABC):
    """Files under relative names with forward slashes."""

    path: Path
    files: tuple[str, ...]  # sorted
    empty_folders: tuple[str, ...] = ()

    @abstractmethod
    def open(self, file: str) -> BinaryIO:
        """The file, open for reading. Raises DataError naming the file."""

    def describe(self, file: str) -> str:
        return f"{self.path}/{file}"


class Folder(Store):
    """The files below a folder; hidden ones and those of file managers are ignored.

    A link that leads outside the folder is refused, unless ``follow_links``. ``files`` names them where they need not
    be searched.
    """

    def __init__(self, path: Path, files: Sequence[str] | None = None, *, follow_links: bool = False) -> None:
        self.path = path
        self.follow_links = follow_links
        self._real = os.path.realpath(path)
        if files is not None:  # a list made by another library: no need to walk
            self.files = tuple(files)
            return
        empty: list[str] = []
        try:
            self.files = tuple(sorted(self._walk(path, "", 1, empty), key=_sort_key))
        except OSError as error:
            raise DataError(f"{error.filename or path} cannot be listed ({error.strerror}).") from error
        self.empty_folders = tuple(sorted(empty))

    def open(self, file: str) -> BinaryIO:
        target = self.path / file
        if not self.follow_links:
            self.require_inside(target, self.describe(file))
        try:
            return target.open("rb")
        except OSError as error:
            raise DataError(f"{self.describe(file)} cannot be opened ({error.strerror}).") from error

    def _walk(self, folder: Path, prefix: str, depth: int, empty: list[str]) -> Iterator[str]:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not _hidden(entry.name)]
        if not entries and prefix:
            empty.append(prefix.rstrip("/"))
        for entry in entries:
            if entry.is_file() or (entry.is_symlink() and not entry.is_dir()):  # pipes and sockets would block
                yield prefix + entry.name
            elif entry.is_dir() and depth <= _DEEPEST:
                if entry.is_symlink() and not self.follow_links:
                    self.require_inside(Path(entry.path), f"{self.path}/{prefix}{entry.name}")
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/", depth + 1, empty)
            elif entry.is_dir():
                yield prefix + entry.name  # deeper than any layout: whoever reads the names will say so

    def require_inside(self, target: Path, where: str) -> None:
        """DataError naming ``where`` if ``target`` is a link that leads outside the folder."""
        real = os.path.realpath(target)
        if not real.startswith(self._real.rstrip(os.sep) + os.sep) and real != self._real:
            raise DataError(
                f"{where} is a link that leads outside {self.path}, to {real}. Copy it there, or allow such links "
                f"with follow_links=True (--follow-links)."
            )


class Zip(Store):
    """The members of a zip file; one enclosing folder may be left out of the names by :meth:`inside`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = ""
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        infos = [info for info in self._zip().infolist() if not info.is_dir()]
        members = [info.filename for info in infos]
        for info in infos:
            check_path(info.filename, f"{path}: a member")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{path}: {info.filename} is a link; make the zip again with what it leads to.")
        _check_size(path, sum(info.file_size for info in infos))
        if len(set(members)) < len(members):
            twice = next(member for member in members if members.count(member) > 1)
            raise DataError(f"{path} holds {twice} more than once; make the zip again.")
        shown = (member for member in members if not any(map(_hidden, member.split("/"))))
        self.files = tuple(sorted(shown, key=_sort_key))

    def inside(self, folder: str) -> Zip:
        """The same zip seen from one of its folders."""
        inner = Zip(self.path)
        inner._prefix = f"{folder}/"
        inner.files = tuple(file.removeprefix(inner._prefix) for file in inner.files if file.startswith(inner._prefix))
        return inner

    def open(self, file: str) -> BinaryIO:
        where = self.describe(file)
        try:
            member = self._zip().getinfo(self._prefix + file)
            if member.file_size > _LARGEST:
                raise DataError(f"{where} would unpack to {member.file_size} bytes; it is refused as a zip bomb.")
            return io.BytesIO(self._zip().read(member))
        except KeyError:
            raise DataError(f"{where} does not exist in the zip.") from None
        except DataError:
            raise
        except Exception as error:  # bad checksum, password, unknown compression: zipfile raises a type for each
            raise DataError(f"{where} cannot be unpacked ({error}).") from error

    def describe(self, file: str) -> str:
        return f"{self.path}/{self._prefix}{file}"

    def _zip(self) -> zipfile.ZipFile:
        # A forked loader process must not share the file position, so each process opens the zip for itself.
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.path} cannot be read as a zip file ({error}).") from error
        return self._handle[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}


def _check_size(path: Path, size: int) -> None:
    """Refuse a zip by what its directory says it holds; what a member then really unpacks to is held to that."""
    packed = max(path.stat().st_size, 1)
    if size > _MOST:
        raise DataError(
            f"{path} would unpack to {size >> 20} MiB, more than the {_MOST >> 20} that are accepted. Unpack it "
            f"yourself and name the folder, if you trust it."
        )
    if size > _RATIO_FROM and size > _MOST_RATIO * packed:
        raise DataError(
            f"{path} would unpack to {size // packed} times its size; more than {_MOST_RATIO} is refused as a zip "
            f"bomb. Unpack it yourself and name the folder, if you trust it."
        )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _sort_key(file: str) -> list[str]:
    return file.split("/")


def check_path(file: str, where: str) -> None:
    """Refuse names that could lead outside their folder or zip."""
    outside = file.startswith("/") or file[1:2] == ":" or (".." in file and ".." in file.split("/"))
    if not file or "\0" in file or "\\" in file or outside:
        raise DataError(f"{where} is named {file!r}: only relative names without '..' are read.")


class FileSource(Source):
    """Labelled image files of a :class:`Folder` or :class:`Zip`; made by :func:`evertune.streams.open_data`.

    The digest covers relative names, bytes, classes and domains, so a folder and a zip of it have the same one.
    """

    def __init__(
        self,
        store: Store,
        files: Sequence[str],
        labels: IntArray,
        classes: Sequence[str],
        *,
        domains: IntArray | None = None,
        domain_names: Sequence[str] = (),
        skipped: Sequence[str] = (),
        times: NDArray[np.float64] | None = None,
        max_pixels: int = MAX_PIXELS,
        name: str | None = None,
    ) -> None:
        self.store = store
        self.files = files if isinstance(files, Strings) else tuple(files)
        self.labels = labels
        self.classes = tuple(classes)
        self.domains = domains
        self.domain_names = tuple(domain_names)
        self.times = times
        self.max_pixels = max_pixels
        self.skipped = tuple(skipped)
        self.name = name or store.path.name

    def load(self, index: int) -> Image.Image:
        file = self.files[index]
        with self.store.open(file) as stream:
            return decode(stream, self.store.describe(file), self.max_pixels)

    def describe(self, index: int) -> str:
        return self.store.describe(self.files[index])

    def identify(self, index: int) -> str:
        return f"{self.key}{self.files[index]}"

    def content(self, index: int) -> bytes:
        with self.store.open(self.files[index]) as stream:
            return stream.read()

    def _digest(self) -> str:
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for row, file in enumerate(self.files):
            with self.store.open(file) as stream:
                content = hashlib.sha256(stream.read()).hexdigest()
            domain = "" if self.domains is None else self.domain_names[self.domains[row]]
            digest.update("\0".join(("", file, content, self.classes[self.labels[row]], domain)).encode())
        return digest.hexdigest()
