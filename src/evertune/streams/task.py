"""A task: the examples that arrive together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from evertune.errors import StreamError
from evertune.streams.opening import open_layout
from evertune.streams.source import Source

Kind = Literal["class", "domain", "mixed"]


@dataclass(frozen=True, eq=False)
class Task:
    """Examples that arrive together: new classes, known classes in a new domain, or (``"mixed"``) anything of both.

    ``classes`` are those of the training data, in their order of arrival (by default the order of the source). The test
    part may be absent, and holds no class that the training part lacks in a task of new classes.
    """

    index: int
    name: str
    train: Source
    test: Source | None = None
    classes: tuple[str, ...] = field(default=())
    kind: Kind = "class"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise StreamError(f"Task {self.name!r}: kind is {self.kind!r}; it must be 'class', 'domain' or 'mixed'.")
        if len(self.train) == 0:
            raise StreamError(f"Task {self.name!r} has no training examples, so no class to learn. Leave it out.")
        present = self.train.present()
        if not self.classes:
            object.__setattr__(self, "classes", present)
        if set(self.classes) != set(present) or len(self.classes) != len(present):
            raise StreamError(
                f"Task {self.name!r} names the classes {', '.join(self.classes)}, "
                f"but its training data holds {', '.join(present)}."
            )
        if self.kind == "class" and self.test is not None:
            require_seen(self.test, present, f"Task {self.name!r}")

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        index: int = 0,
        kind: Kind = "class",
        skip_bad: bool = False,
    ) -> Task:
        """A task from a folder (or zip) of class folders, or of train and test folders of these.

        Without train and test folders every image is training data. One class is enough.
        """
        root = Path(path).expanduser()
        layout = open_layout(root, skip_bad=skip_bad, domain_level=False)
        train = layout.source("train" if layout.is_split else None)
        has_test = any(example.split == "test" for example in layout.examples)
        warn_if_single(train)
        return cls(
            index,
            name or root.resolve().stem,
            train,
            layout.source("test") if has_test else None,
            kind=kind,
        )

    def __repr__(self) -> str:
        tested = "no test images" if self.test is None else f"{len(self.test)} test images"
        return f"<Task {self.index} {self.name!r}: {len(self.classes)} classes, {len(self.train)} images, {tested}>"


def require_seen(test: Source, seen: Collection[str], where: str) -> None:
    """StreamError naming the classes of the test data that training never saw."""
    known = set(seen)
    unseen = [name for name in test.present() if name not in known]
    if unseen:
        count = len(test.rows_of(unseen))
        raise StreamError(
            f"{where}: {count} test images belong to classes that training never saw: {some(unseen)}. "
            f"Add training images of them, or remove them from the test data."
        )


def warn_if_single(train: Source) -> None:
    """Warn of classes with one training image: they can be learned, but nothing can be held out from them."""
    single = [train.classes[i] for i in np.flatnonzero(train.counts() == 1)]
    if single:
        warnings.warn(
            f"{train.name}: {len(single)} classes have a single training image ({some(single)}); "
            f"what is learned of them hangs on that one image.",
            UserWarning,
            stacklevel=3,
        )


def some(names: list[str]) -> str:
    """Up to ten names for a message, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
