"""The hub's own client, and what its many errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from socket import gaierror
from typing import Any

from evertune.errors import HubError


def library() -> Any:
    """The package huggingface_hub.

    Raises
    ------
    HubError
        It is not installed.
    """
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise HubError("The hub needs the package huggingface_hub, which is missing: install it.") from error


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Whatever the client raises within becomes one HubError with its remedy."""
    try:
        yield
    except Exception as error:  # the client raises many kinds, among them those of the HTTP library beneath it
        raise HubError(f"{repo}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    kinds = import_module("huggingface_hub.errors")
    chain = list(_causes(error))

    def is_a(*names: str) -> bool:
        return any(isinstance(one, getattr(kinds, name, ())) for one in chain for name in names)

    answers = [getattr(one, "response", None) for one in chain]
    status = next((answer.status_code for answer in answers if answer is not None), None)
    if is_a("HFValidationError"):
        return "this is no name of a repository; write OWNER/NAME."
    if is_a("OfflineModeIsEnabled"):
        return "the hub is switched off here by the variable HF_HUB_OFFLINE; unset it."
    if is_a("GatedRepoError") or status == 403:
        return "you have no right to do this; ask the owner, or use a token that may write."
    if is_a("RepositoryNotFoundError"):
        return "there is no such repository, or you may not see it; check the name, or log in with 'hf auth login'."
    if is_a("RevisionNotFoundError"):
        return "there is no such revision in it; check the name of the branch, tag or commit."
    if is_a("LocalTokenNotFoundError") or status == 401:
        return "you are not logged in, or your token is not valid; log in with 'hf auth login', or set HF_TOKEN."
    if status in (409, 412):
        return "somebody else changed the repository at the same time; try again."
    said = next(iter(str(error).splitlines()), "")
    if status is not None:
        return f"the hub refused with status {status} ({said})."
    if any(isinstance(one, ConnectionError | TimeoutError | gaierror) for one in chain) or is_a(
        "LocalEntryNotFoundError"
    ):
        return f"the hub could not be reached ({type(chain[-1]).__name__}); check the network and try again."
    return f"the client of the hub failed ({type(error).__name__}: {said})."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
