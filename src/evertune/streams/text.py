"""The view of a text: the tokens a backbone reads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from evertune.errors import ConfigError, DataError
from evertune.streams.source import IntArray, Source

MULTIPLE = 8
"""Batches are padded to a length that this divides: accelerators like it, and few shapes occur."""

REMEMBERED = 1 << 22
"""Tokens kept, so that no text is taken apart twice: 16 MiB."""


class TextView:
    """From a text to token ids int64 [L], the same in training and at test time: nothing is augmented.

    Parameters
    ----------
    tokenizer
        Of Hugging Face transformers; a text encoder brings its own.
    max_length
        Tokens at most, those the tokenizer adds included.
    truncate
        Cut longer texts at their end. Otherwise they are an error, of which :meth:`check` tells beforehand.

    Raises
    ------
    ConfigError
        A length below 3: a beginning, an end and one token between.
    """

    def __init__(self, tokenizer: Any, max_length: int, truncate: bool = False) -> None:
        if max_length < 3:
            raise ConfigError(f"max_length is {max_length}; a text needs at least 3 tokens, a beginning and an end.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncate = truncate
        self._known: dict[str, array[int]] = {}
        self._room = REMEMBERED
        self._lengths: WeakKeyDictionary[Source, IntArray] = WeakKeyDictionary()

    def __call__(self, example: str, rng: np.random.Generator | None = None) -> Tensor:
        ids: Sequence[int] = self._ids(example)
        if len(ids) > self.max_length:
            if not self.truncate:
                raise DataError(
                    f"A text of {len(ids)} tokens is longer than the {self.max_length} that are read: shorten it, or "
                    f"say truncate=True. It begins {example[:40]!r}."
                )
            ids = self._tokens(example, truncation=True, max_length=self.max_length)
        return torch.tensor(ids, dtype=torch.int64)

    def collate(self, examples: Sequence[Tensor]) -> Tensor:
        """Token ids [B, N], padded behind to the longest rounded up to a multiple of 8."""
        longest = max((len(ids) for ids in examples), default=1)
        length = min(-(-longest // MULTIPLE) * MULTIPLE, max(self.max_length, longest))
        batch = torch.full((len(examples), length), int(self.tokenizer.pad_token_id), dtype=torch.int64)
        for row, ids in zip(batch, examples, strict=True):
            row[: len(ids)] = ids
        return batch

    def check(self, source: Source) -> None:
        """DataError with the count and the first rows if any text is longer than is read; with ``truncate`` none is."""
        if self.truncate:
            return
        long = np.flatnonzero(self.lengths(source) > self.max_length)
        if len(long):
            first = ", ".join(source.describe(int(row)) for row in long[:5]) + (" …" if len(long) > 5 else "")
            raise DataError(
                f"{source.name}: {len(long)} of {len(source)} texts are longer than the {self.max_length} tokens that "
                f"are read ({first}). Shorten them, or cut them at their end with truncate=True (--truncate)."
            )

    def order(self, source: Source) -> IntArray:
        """Rows from the shortest text to the longest: passed in this order, batches hold little padding."""
        return np.argsort(self.lengths(source), kind="stable")

    def lengths(self, source: Source) -> IntArray:
        """Tokens of every text, before any is cut; counted once per source."""
        found = self._lengths.get(source)
        if found is None:
            texts = (cast(str, source.load(row)) for row in range(len(source)))
            found = np.fromiter((len(self._ids(text)) for text in texts), np.int64, len(source))
            self._lengths[source] = found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, a view leaves behind what it remembers."""
        return TextView, (self.tokenizer, self.max_length, self.truncate)

    def describe(self) -> dict[str, Any]:
        """All parameters, ready for JSON; what the tokenizer does is part of the backbone's identity."""
        return {"view": "text", "max_length": self.max_length, "truncate": self.truncate}

    def _ids(self, text: str) -> array[int]:
        """All tokens of a text, however many."""
        known = self._known.get(text)
        if known is None:
            known = array("i", self._tokens(text, truncation=False))
            self._known[text] = known
            self._room -= len(known)
            while self._room < 0:  # what came first goes first
                self._room += len(self._known.pop(next(iter(self._known))))
        return known

    def _tokens(self, text: str, **options: Any) -> list[int]:
        made = self.tokenizer(
            text, padding=False, verbose=False, return_attention_mask=False, return_token_type_ids=False, **options
        )
        return cast(list[int], made["input_ids"])
