"""What ``evertune learn`` does and says around the lesson itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evertune.cli.commands import note
from evertune.cli.folders import is_learner, require_home
from evertune.cli.narrate import listed
from evertune.cli.telling import count, knows, speaker
from evertune.errors import EvertuneError, StorageError

if TYPE_CHECKING:
    from evertune import Learner, Task
    from evertune.learner.update_format import Described
    from evertune.streams import Kind


def kept_in(folder: Path) -> dict[str, Any] | None:
    """What learner.json says of the learner in ``folder``; None where there is none yet."""
    from evertune.learner import LearnerFolder
    from evertune.learner.update import UPDATE

    home, there = LearnerFolder(folder), require_home(folder)
    lost = not there and not (folder / UPDATE).exists() and home.versions()  # else a first one, half saved
    return home.content() if there or lost else None


@contextmanager
def alone(folder: Path, kept: Mapping[str, Any] | None) -> Iterator[None]:
    """Nobody else changes the learner between its being read and its being saved; of several processes of ours the
    first sees to that."""
    from evertune.learner import LearnerFolder

    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with LearnerFolder(folder).lock():
        if kept is None and require_home(folder):
            raise StorageError(
                f"{folder} has got a learner from another process meanwhile: the same command teaches it."
            )
        yield


def fitted(task: Task, kind: Kind | None, known: Sequence[str]) -> Task:
    """The task as it is to one who knows the classes ``known``: unless told, its kind follows from that.

    Raises
    ------
    StreamError
        Tests of classes that would not be known even then.
    """
    from evertune.streams.task import require_seen, warn_if_alike

    warn_if_alike(task, known)
    tested = () if task.test is None else task.test.present()
    if task.test is not None:
        require_seen(task.test, {*known, *task.classes}, f"Task {task.name!r}")
    if kind is None:
        new = set(task.classes).isdisjoint(known) and set(tested) <= set(task.classes)
        kind = "class" if new else "mixed"
    return replace(task, kind=kind)


# -- what is said ------------------------------------------------------------------------------------------------------


def foretold(folder: Path, task: Task, known: Sequence[str]) -> list[str]:
    """What learning ``task`` would do."""
    counts = dict(zip(task.train.classes, task.train.counts().tolist(), strict=True))
    modality = task.train.modality
    lines = [f"would learn task {task.name!r} ({task.kind}) from {count(len(task.train), modality)}"]
    for what, names in (
        ("new", [name for name in task.classes if name not in known]),
        ("known", [name for name in task.classes if name in known]),
    ):
        if names:
            lines.append(f"{what}: {listed([f'{name} ({counts[name]})' for name in names])}")
    if task.test is not None:
        lines.append(f"and measure its accuracy on {count(len(task.test), modality)}")
    lines.append(f"{folder} {knows(known)}" if known else f"{folder} would get a new learner")
    return [*lines, "nothing was learned or written"]


def tell_unfinished(home: Path) -> None:
    """Where an update of the learner in ``home`` was stopped that may be gone on with."""
    there = _unfinished(home)
    if there is not None:
        name = there.of.task.name
        note(f"the update with task {name!r} was stopped {_place(there)}: the same task goes on there.")


def after_a_stop(home: Path) -> str:
    """What is left after Ctrl-C in a lesson, and how to go on."""
    there = _unfinished(home)
    where = "starts this task again" if there is None else f"goes on {_place(there)}"
    left = f"The learner in {home} is what it was before" if is_learner(home) else f"{home} has no learner yet"
    return f"{left}; the same command {where}."


def after_a_stopped_run(folder: Path) -> str:
    """The same for a run."""
    there = _unfinished(folder / "learner")
    where = "after the last finished task" if there is None else f"{_place(there)} of task {there.of.task.name!r}"
    return f"The same command goes on {where}, as kept in {folder}."


def tell_learned(learner: Learner, task: Task, folder: Path) -> None:
    from evertune.learner import LearnerFolder

    say, entry = speaker(learner), learner.history[-1]
    modality, new = learner.backbone.modality, entry["new_classes"]
    known = [name for name in entry["classes"] if name not in new]
    what = f"new: {listed(new)}" if new else "no new class"
    more = f"; more of: {listed(known)}" if known else ""
    examples = count(len(task.train), modality)
    say(f"learned task {len(learner.history)} from {examples} ({what}{more}) in {entry['seconds']:.1f} s")
    if task.test is not None:
        (correct, total), *_ = learner.evaluate(task.test).values()
        accuracy = f"{100 * correct / total:.2f} % ({correct} of {total})"
        say(f"on its test {modality}s, among all classes known: {accuracy}")
    say(f"{folder} {knows(learner.classes)}")
    home = LearnerFolder(folder)
    number, before = (home.content()[key] for key in ("version", "before"))
    kept = {version.number for version in home.versions()}
    again = f"evertune rollback {shlex.quote(str(folder))}"
    back = f"back to version {before}: {again}" if before in kept else "no other is kept"
    say(f"this is version {number}; {back}")


def _unfinished(home: Path) -> Described | None:
    """An update of the learner as it is that was stopped; None if there is none that can be read."""
    from evertune.learner import LearnerFolder
    from evertune.learner.update import UPDATE
    from evertune.learner.update_format import read

    if not (home / UPDATE).exists():
        return None
    try:
        there = read(home / UPDATE)
        current = LearnerFolder(home).content()["version"] if is_learner(home) else None
    except EvertuneError:  # whoever goes on says what is wrong
        return None
    return there if there.version == current else None


def _place(there: Described) -> str:
    """Where an update was stopped, in words."""
    place = there.notes.place
    inside = place.epoch or place.step
    epoch = f"in epoch {place.epoch + 1} of " if place.epoch else "in "
    return f"{epoch if inside else 'before '}phase {place.phase + 1}"
