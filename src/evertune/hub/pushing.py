"""From a folder to a repository."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from evertune.errors import ConfigError, HubError
from evertune.export.card import card_of, dates_of
from evertune.hub.client import explained, library
from evertune.hub.files import CARD, COMMON, CURRENT, of_learner
from evertune.learner import LearnerFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    client: HfApi | None = None,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    card: bool = True,
    license: str | None = None,
    results: Mapping[str, float | str] | None = None,
    versions: Literal["current", "all"] = "current",
) -> str:
    """Put the learner kept in ``folder`` into a repository, by one commit; gives the commit's address.

    The folder is validated first. Only the files of the learner go there, and those an earlier push left go away: the
    repository then holds this learner and no other. Its git history still holds what was pushed before.

    Parameters
    ----------
    repo
        ``"owner/name"``; made if there is none.
    client
        A :class:`huggingface_hub.HfApi`, for another endpoint or token than those of this machine.
    private
        A new repository is private, and one that is public is refused, unless this is False.
    revision
        The branch, which must exist; the main one by default.
    message
        Of the commit.
    card
        Write README.md too, as :func:`evertune.export.model_card` does with ``license`` and ``results``.
    versions
        ``"all"`` takes earlier versions along, to roll back to.

    Raises
    ------
    StorageError
        The folder holds no learner, or a damaged one.
    HubError
        The hub cannot be reached or refuses, or the repository holds something else or is public.
    """
    if versions not in ("current", "all"):
        raise ConfigError(f"versions={versions!r} does not exist: choose 'current' or 'all'.")
    home = LearnerFolder(folder)
    content, _ = home.read()
    name = str(content["backbone"]["name"])
    if os.path.isabs(name.removeprefix("hf:")):
        warnings.warn(f"learner.json names the backbone by its path here, {name}, which others can read.", stacklevel=2)
    files = _files(home, content, versions)
    if card:
        about = card_of(content, dates=dates_of(home, content), license=license, results=results, repo=repo)
        files[CARD] = about.encode()
    hub = library()
    client = client or hub.HfApi()
    with explained(repo):
        client.create_repo(repo, private=private, exist_ok=True)
        info = client.repo_info(repo, revision=revision)
        there = client.list_repo_files(repo, revision=revision)
    if private and not info.private:
        raise HubError(f"{repo} is public, and everyone could read the learner: say private=False (--public) if so.")
    foreign = sorted(set(there) - set(COMMON))
    if foreign and CURRENT not in there:
        raise HubError(f"{repo} holds something else ({', '.join(foreign[:3])}), no learner: name another repository.")
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
    stale = [name for name in there if of_learner(name) and name not in files]
    operations += [hub.CommitOperationDelete(path_in_repo=name) for name in stale]
    said = message or f"{len(content['history'])} tasks, {len(content['classes'])} classes"
    with explained(repo):
        # The commit must follow the one just seen, so nobody else's is written over.
        done = client.create_commit(repo, operations, commit_message=said, revision=revision, parent_commit=info.sha)
    return str(done.commit_url)


def _files(home: LearnerFolder, content: dict[str, Any], versions: str) -> dict[str, bytes | str]:
    """What is uploaded, by name: bytes, or the path of a file."""
    numbers = [version.number for version in home.versions()] if versions == "all" else []
    others = [home.read(number)[0] for number in numbers if number != content["version"]]
    files: dict[str, bytes | str] = {CURRENT: _json(content)}
    for one in (*others, content):
        files[f"learner-{one['version']}.json"] = _json(one)
        files[one["state"]["file"]] = str(home.path / one["state"]["file"])
    return files


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
