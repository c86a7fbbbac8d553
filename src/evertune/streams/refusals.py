"""What a stream refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Mapping

from evertune.errors import StreamError
from evertune.streams.plan import domains_of
from evertune.streams.source import Source
from evertune.streams.task import Task, require_seen, some


def require_new(task: Task, owner: Mapping[str, Task]) -> None:
    """Classes that no task brought before; ``owner`` is the task that brought each."""
    known = [name for name in task.classes if name in owner]
    if known and len(known) == len(task.classes):
        raise StreamError(
            f"Task {task.name!r} brings no new class: {some(known)} came before. "
            f"Leave it out, or make a stream of kind 'domain' if it is of a new domain."
        )
    if known:
        others = sorted({owner[name].name for name in known})
        raise StreamError(
            f"The same class in two tasks: {some(known)} of task {task.name!r} came before, in {some(others)}. "
            f"Each class of a class-incremental stream belongs to one task; kind 'mixed' may bring more of it."
        )


def require_data(train: Source, test: Source | None) -> None:
    """Two classes to tell apart, and tests of no other."""
    present = train.present()
    if not present:
        raise StreamError(f"{train.name} has no training examples.")
    if len(present) == 1:
        raise StreamError(
            f"{train.name} has one class, {present[0]!r}, so there is nothing to tell apart. "
            f"Add {train.modality}s of another class ('other' will do); "
            f"to teach one more class to a learner, use Task.from_folder (evertune learn)."
        )
    if test is not None:
        require_seen(test, present, train.name)


def require_domains(train: Source, test: Source | None) -> None:
    """Domains in both parts, and none in the tests that training lacks."""
    require_data(train, None)
    if train.domains is None:
        raise StreamError(
            f"{train.name} has no domains. Give a table with a domain column, folders <domain>/<class>/<file> opened "
            f"with domain_level=True (--domain-level), or an array of domains."
        )
    if test is None:
        return
    if test.domains is None:
        raise StreamError(f"{test.name} has no domains, but its training data has; give both or neither.")
    require_seen(test, train.present(), train.name)
    unseen = [name for name in domains_of(test) if name not in domains_of(train)]
    if unseen:
        raise StreamError(f"{test.name} holds domains that training never saw: {some(unseen)}. Remove them.")
