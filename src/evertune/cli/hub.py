"""``evertune push`` and ``evertune pull``: a learner to and from a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evertune.cli.commands import Command, stoppable
from evertune.cli.folders import learner_in
from evertune.cli.root import app
from evertune.cli.telling import knows

Repo = Annotated[
    str, typer.Argument(metavar="REPO", help="A repository of the hub: OWNER/NAME.", show_default=False)
]  # fmt: skip


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune push kept/ me/birds\n  evertune push kept/ me/birds --public --license cc-by-4.0",
)
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A learner's folder, or a run folder.", show_default=False)
    ],
    repo: Repo,
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read it; otherwise only a private repository will do.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="NAME", help="Under which it is given away, as the hub calls it: apache-2.0."
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="A branch that there is.", show_default="the main one"),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="Take the earlier versions along.")] = False,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Write a README.md that tells what it is.")] = True,
) -> None:
    """Put a learner into a repository of the Hugging Face hub.

    One commit: its files, and a README.md that tells what it knows and keeps of the data. What an earlier push left
    goes away, but stays in the history of the repository. Log in first, with 'hf auth login' or the variable HF_TOKEN.
    """
    with stoppable("The repository may be made already; it holds the learner only after the whole commit."):
        from evertune.hub import push as push_

        home = learner_in(folder)
        done = push_(
            home,
            repo,
            private=not public,
            license=license,
            revision=revision,
            message=message,
            versions="all" if versions else "current",
            card=card,
        )
        typer.echo(f"{home} is in {repo} now: {done}")


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  evertune pull me/birds kept/\n  evertune pull me/birds kept/ --revision v2\n"
    "  evertune predict kept/ photo.png",
)
def pull(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="Where it is to be kept.", show_default=False)],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="NAME", help="A branch, tag or commit.", show_default="the main branch"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the learner in the folder, whichever it is, and all its versions.")
    ] = False,
) -> None:  # fmt: skip
    """Fetch a learner from a repository of the Hugging Face hub.

    It is validated before it takes its place, and nothing in it is executed. Where the folder holds an earlier state of
    the same learner, it becomes a new version there; another learner is not touched.
    """
    with stoppable(f"{folder} is what it was before."):
        from evertune.hub import pull as pull_
        from evertune.learner import LearnerFolder

        content = LearnerFolder(pull_(repo, folder, revision=revision, force=force)).content()
        typer.echo(f"{folder} is version {content['version']} now and {knows(content['classes'])}")
