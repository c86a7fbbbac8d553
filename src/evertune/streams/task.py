"""A task: the examples that arrive together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np

from evertune.errors import StreamError
from evertune.streams.labels import alike
from evertune.streams.opening import Options, open_task
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
        data: Any,
        *,
        name: str | None = None,
        index: int = 0,
        kind: Kind = "class",
        **options: Unpack[Options],
    ) -> Task:
        """A task from a folder (or zip) of class folders, or of train and test folders of these.

        ``data`` may be a table or whatever else :func:`evertune.open_data` takes, whose ``options`` hold here too, but
        for those that divide data: what says nothing of train and test is training data, all of it. One class is
        enough. The task is called as the folder or file, unless ``name`` says otherwise.
        """
        train, test = open_task(data, **options)
        warn_if_single(train)
        called = Path(data).expanduser().resolve().stem if isinstance(data, str | os.PathLike) else train.name
        return cls(index, name or called, train, test, kind=kind)

    def __repr__(self) -> str:
        kind = f"{self.train.modality}s"
        tested = f"no test {kind}" if self.test is None else f"{len(self.test)} test {kind}"
        return f"<Task {self.index} {self.name!r}: {len(self.classes)} classes, {len(self.train)} {kind}, {tested}>"


def require_seen(test: Source, seen: Collection[str], where: str) -> None:
    """StreamError naming the classes of the test data that training never saw."""
    known = set(seen)
    unseen = [name for name in test.present() if name not in known]
    if unseen:
        count = len(test.rows_of(unseen))
        raise StreamError(
            f"{where}: {count} test {test.modality}s belong to classes that training never saw: {some(unseen)}. "
            f"Add training {test.modality}s of them, or remove them from the test data."
        )


def warn_if_single(train: Source) -> None:
    """Warn of classes with one training example: they can be learned, but nothing can be held out from them."""
    single = [train.classes[i] for i in np.flatnonzero(train.counts() == 1)]
    if single:
        few = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        warnings.warn(
            f"{train.name}: {few} a single training {train.modality} ({some(single)}); "
            f"what is learned of them hangs on that one {train.modality}.",
            UserWarning,
            stacklevel=3,
        )


def warn_if_alike(task: Task, known: Sequence[str]) -> None:
    """Warn of classes that look like known ones and are taken for others."""
    found = alike(task.classes, known)
    if found:
        pairs = some([f"{name!r} and {other!r}" for name, other in found.items()])
        warnings.warn(
            f"Task {task.name!r}: {pairs} differ only in case or blanks, and are two classes. If they are one, spell "
            f"them alike.",
            UserWarning,
            stacklevel=2,
        )


def some(names: list[str]) -> str:
    """Up to ten names for a message, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
