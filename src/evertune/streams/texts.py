"""Texts held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evertune.errors import DataError
from evertune.streams.source import IntArray, Modality, Source, encode
from evertune.streams.strings import Strings


class TextSource(Source):
    """Texts in memory, one block of UTF-8 for all.

    Parameters
    ----------
    texts : N texts, none of them blank.
    labels : labels [N], names or whole numbers.
    classes : name of each number; without it the labels name themselves.
    domains : one domain per row, names or whole numbers.
    name : what messages call these texts.
    numbers : number [N] of each row where it came from, and ``place``, what it is a number in: "mails.csv line".
    """

    modality: Modality = "text"

    def __init__(
        self,
        texts: Sequence[str],
        labels: ArrayLike,
        classes: Sequence[str] | None = None,
        *,
        domains: ArrayLike | None = None,
        domain_names: Sequence[str] | None = None,
        times: NDArray[np.float64] | None = None,
        skipped: Sequence[str] = (),
        name: str = "texts",
        numbers: IntArray | None = None,
        place: str | None = None,
    ) -> None:
        self.name = name
        self.place = place or f"{name} row"
        self.numbers = np.arange(len(texts)) if numbers is None else numbers
        self.texts = texts if isinstance(texts, Strings) else _checked(texts, name)
        self.labels, self.classes = encode(labels, classes, f"{name} labels")
        self.times = times
        self.skipped = tuple(skipped)
        if len(self.labels) != len(self.texts):
            raise DataError(f"{name} labels: {len(self.labels)} for {len(self.texts)} texts; there must be one each.")
        if domains is not None:
            self.domains, self.domain_names = encode(domains, domain_names, f"{name} domains")
            if len(self.domains) != len(self.texts):
                raise DataError(f"{name} domains: {len(self.domains)} for {len(self.texts)} texts; one each is needed.")

    def load(self, index: int) -> str:
        return self.texts[index]

    def describe(self, index: int) -> str:
        return f"{self.place} {self.numbers[index]}"

    def identify(self, index: int) -> str:
        return f"{self.key}{self.numbers[index]}"

    def content(self, index: int) -> bytes:
        return self.texts.raw(index)

    def _digest(self) -> str:
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for row, label in enumerate(self.labels):
            domain = "" if self.domains is None else self.domain_names[self.domains[row]]
            digest.update("\0".join(("", self.texts[row], self.classes[label], domain)).encode())
        return digest.hexdigest()


def _checked(texts: Sequence[str], name: str) -> Strings:
    if isinstance(texts, str):
        raise DataError(f"{name}: one text is a list of one: give [{texts!r}].")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{name} row {row} is of type {type(text).__name__}, not a text.")
    blank = [row for row, text in enumerate(texts) if not text.strip()]
    if blank:
        rows = ", ".join(map(str, blank[:10])) + (f" and {len(blank) - 10} more" if len(blank) > 10 else "")
        raise DataError(f"{name}: {len(blank)} of {len(texts)} texts are empty (rows {rows}); leave them out.")
    try:
        return Strings.of(texts)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: a text holds half a surrogate pair, which no encoding can write ({error})."
        ) from error
