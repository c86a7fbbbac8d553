"""``evertune forget``: take classes, or a task, out of a learner for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evertune.cli import options as o
from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import require_own
from evertune.cli.root import app
from evertune.cli.telling import count, knows, size
from evertune.errors import StorageError

if TYPE_CHECKING:
    from evertune import LearnerFolder
    from evertune.learner import Forgotten


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune forget kept/ cat\n  evertune forget kept/ cat dog --yes\n"
    "  evertune forget kept/ --task 'task 2'",
)
def forget(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="A learner's folder.", show_default=False)],
    classes: Annotated[
        list[str] | None, typer.Argument(metavar="[CLASS]...", help="Classes to forget.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="A task, by name or number: forget all of its classes."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    keep_versions: Annotated[
        bool,
        typer.Option("--keep-versions", help="Leave the earlier versions, which still hold what is forgotten."),
    ] = False,
    weights: o.Weights = None,
    device: o.Device = "auto",
) -> None:
    """Take classes or a task out of a learner for good.

    Their statistics, rows and tunings go, and with them the earlier versions of the learner, which hold them too. What
    cannot be taken out depends on the method and is told. The scores of the other classes are compared before and after
    on made-up inputs. Nothing is written before you agree.
    """
    with stoppable(f"'evertune rollback {folder} --list' shows which version is the current one."):
        from evertune import LearnerFolder

        require_own(folder)
        home = LearnerFolder(folder)
        with home.lock():
            _require_finished(home)
            learner = o.kept_learner(folder, weights, device=device, progress=False)
            found = learner.forget(*(classes or ()), task=task)
            earlier = [version.number for version in home.versions()]
            for line in _told(found, len(learner.classes), earlier, keep_versions):
                typer.echo(line)
            if not yes and not typer.confirm(f"Change {folder}?"):
                typer.echo("nothing was changed")
                return
            learner.save(folder, keep=None if keep_versions else 1)
        typer.echo(f"{folder} is version {home.content()['version']} now and {knows(learner.classes)}")


def _require_finished(home: LearnerFolder) -> None:
    """StorageError while there are files of an update, which may hold features of what is to be forgotten."""
    if any(home.path.glob("update*")):
        raise StorageError(
            f"{home.path} holds an unfinished update. Finish it by learning the same task again, or give it up with "
            f"'evertune rollback {home.path} --to {home.content()['version']}'; then forget."
        )


def _told(found: Forgotten, left: int, earlier: list[int], keep_versions: bool) -> list[str]:
    """What is forgotten, what that does to the rest, and what stays where."""
    tasks = f" and with {'them' if len(found.classes) > 1 else 'it'} {', '.join(found.tasks)}" if found.tasks else ""
    fate = "kept" if keep_versions else "to be removed"
    return [
        f"forgotten: {', '.join(found.classes)}{tasks}; {size(found.bytes)} less",
        f"scores of the other {count(left, 'class')} differ by {found.largest_difference:.2g} at most, and the best of "
        f"them is the same for {found.same_answers} of {count(found.probes, 'input')} made up to compare",
        *(["what cannot be taken out:", *(f"  - {one}" for one in found.remains)] if found.remains else []),
        f"earlier versions, which may hold it: {', '.join(map(str, earlier))} ({fate})",
        "not looked for: a README.md in the folder, copies of it, run folders, exports, what was pushed to a hub, and "
        "caches of features ('evertune cache --dir FOLDER --clear', with the FOLDER that was given as --cache)",
    ]
