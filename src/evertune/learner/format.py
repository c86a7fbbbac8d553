"""What learner.json holds, in this format and in earlier ones. It is read as if a stranger had written it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from evertune.engine.store import open_plain
from evertune.errors import StorageError, escaped
from evertune.learner.names import printable

FORMAT = 2

LONGEST = 1 << 28
"""Bytes of a learner.json that are read at most."""

LARGEST = 1 << 13
"""Pixels of a view or a backbone, tokens of a text."""

SHOWN = 3


class LaterFormat(StorageError):
    """A later evertune wrote it."""


def _printed(name: str) -> str:
    if not printable(name):
        raise ValueError(f"the name {name[:100]!r} holds control characters")
    return name


def _no_twins(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return names


Name = Annotated[str, Field(max_length=10_000), AfterValidator(_printed)]
Names = Annotated[list[Name], AfterValidator(_no_twins)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**64 - 1)]


def _moderate(value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, int | float | str | None) or (isinstance(one, int | float) and abs(one) > LARGEST):
            raise ValueError(f"neither text nor a number up to {LARGEST}, nor some of them")
    return value


Value = Annotated[Any, AfterValidator(_moderate)]
"""Of a view or a backbone."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Open(BaseModel):
    """May hold more, which is for people."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class State(_Strict):
    """The file of tensors."""

    file: str
    sha256: Digest
    bytes: Count


class Seeds(_Strict):
    """The seeds of a learner."""

    init: Seed
    augmentation: Seed
    sampling: Seed


class Views(_Strict):
    """What is seen of an example; their own classes know what the values mean."""

    train: dict[str, Value]
    test: dict[str, Value]


class Backbone(_Open):
    """An identity: its kinds differ in what else they tell."""

    name: Name
    weights: Name
    __pydantic_extra__: dict[str, Value]


class Options(_Open):
    """The method's own class knows what they mean."""

    tuning_options: dict[str, Any] = {}


class Entry(_Open):
    """A task that was learned."""

    task: Name
    kind: Name
    new_classes: Names
    classes: Names
    examples: Count


class Phase(_Open):
    """What a phase of the last task took."""

    name: Name


class Temperature(_Strict):
    """What scores are divided by before they become probabilities."""

    value: Annotated[float, Field(gt=0)]
    tasks: Count
    examples: Count


class Kept(_Strict):
    """One thing that is kept, and what of the data it is."""

    name: Name
    bytes: Count
    of_data: Name


class Content(_Strict):
    """learner.json."""

    format: Literal[2]
    version: Annotated[int, Field(ge=0, lt=10**9)]
    before: Annotated[int, Field(ge=0, lt=10**9)] | None
    saved: Name
    evertune: Name
    method: Name
    preset: Name
    options: Options
    backbone: Backbone
    classes: Names
    seeds: Seeds
    views: Views
    history: list[Entry]
    precision: Literal["fp32", "bf16"]
    phases: list[Phase] = []
    temperature: Temperature | None = None
    stored: list[Kept] = []
    state: State
    digest: Digest

    @model_validator(mode="after")
    def _consistent(self) -> Content:
        if self.state.file != state_file(self.version):
            raise ValueError(f"version {self.version} has its tensors in {state_file(self.version)}, no other file")
        known = set(self.classes)
        for entry in self.history:
            if not known.issuperset(entry.classes) or not known.issuperset(entry.new_classes):
                raise ValueError(f"task {entry.task!r} has classes that the learner has not")
        return self


def state_file(version: int) -> str:
    """The name of the file with the tensors of a version."""
    return f"state-{version}.safetensors"


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with the sha256 of all else in it, written without blanks and with its keys in order."""
    bare = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return {**bare, "digest": hashlib.sha256(text.encode()).hexdigest()}


def check(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """``content``, which is of the present format.

    Raises
    ------
    StorageError
        Something is missing, too much, or of the wrong type.
    """
    try:
        Content.model_validate(content)
    except ValidationError as error:
        problems = [_told(one["loc"], one["msg"]) for one in error.errors(include_url=False, include_input=False)]
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise StorageError(f"{path} does not describe a learner ({shown}): restore it from a copy.") from error
    return content


def read(path: Path) -> dict[str, Any]:
    """The content of a learner.json, brought to the present format.

    Raises
    ------
    StorageError
        The file is missing, damaged, a link, too long, or of a later format.
    """
    try:
        with open_plain(path) as file:
            long = os.fstat(file.fileno()).st_size > LONGEST
            text = b"" if long else file.read()
    except FileNotFoundError as error:
        raise StorageError(f"{path} is missing: is {path.parent} the right folder?") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it from a copy.") from error
    if long:
        raise StorageError(f"{path} is longer than any learner's ({LONGEST >> 20} MiB): restore it from a copy.")
    content = _parsed(text, path)
    while content["format"] != FORMAT:
        content = UPGRADES[content["format"]](content, path)
    return check(content, path)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object of a known format, whose digest is right."""
    try:
        content = json.loads(text.decode(), object_pairs_hook=_distinct, parse_constant=_refused)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        version = content.get("format")
        if type(version) is not int or version < 1:
            raise ValueError("it does not tell its format")
        whole = version not in range(2, FORMAT + 1) or seal(content)["digest"] == content.get("digest")
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}): restore it from a copy.") from error
    if version > FORMAT:
        raise LaterFormat(f"{path} is of format {version}, this evertune reads up to {FORMAT}: update evertune.")
    if not whole:
        raise StorageError(f"{path} is not what was saved (its digest differs): restore it from a copy.")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _told(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, place))
    return escaped(f"{where}: {message}" if where else message)


def plain(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` as it comes back from JSON; NaN and infinity, which that has not, become null.

    Raises
    ------
    StorageError
        Something in it has no place in JSON.
    """
    try:
        return dict(json.loads(json.dumps(_finite(content))))
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"What is to be kept of the learner is more than JSON holds ({error}).") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_1(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Format 1 kept one learner, in a state file with the number of tasks in its name, which becomes the version."""
    state = content.get("state")
    file = state.get("file") if isinstance(state, dict) else None
    number = re.fullmatch(r"state-(0|[1-9][0-9]{0,8})\.safetensors", file) if isinstance(file, str) else None
    if not isinstance(state, dict) or number is None:
        raise StorageError(f"{path} is damaged (it names no state file): restore it from a copy.")
    try:
        saved = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        size = (path.parent / number[0]).stat().st_size
    except OSError as error:
        raise StorageError(f"{path.parent / number[0]} cannot be read ({error.strerror}).") from error
    history = content.get("history")
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict):  # the first learners had classes that came once and no other tasks
            entry.setdefault("kind", "class")
            entry.setdefault("classes", entry.get("new_classes"))
    known = {"precision": "fp32", **content, "format": 2, "version": int(number[1]), "before": None, "saved": saved}
    return seal(known | {"state": {**state, "bytes": size}})


UPGRADES: dict[int, Callable[[dict[str, Any], Path], dict[str, Any]]] = {1: _from_1}
"""By format: makes content of the next one. The path is that of its learner.json."""
