"""What update.json holds. Whoever reads it may not have been the one who wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evertune.engine import Notes
from evertune.engine.store import open_plain
from evertune.errors import StorageError
from evertune.learner.format import LONGEST, Count, Digest, Name, seal


class File(BaseModel):
    """The tensors of one process; their file's name follows from the number."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sha256: Digest
    bytes: Count


class Asked(BaseModel):
    """The task, as far as it is spoken of."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Name
    examples: Count


class Of(BaseModel):
    """What the update is of; it may differ in anything from what is asked for."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: Asked


class Described(BaseModel):
    """update.json."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1]
    number: Count
    version: Count | None
    of: Of
    notes: Notes
    files: Annotated[list[File], Field(min_length=1)]
    digest: Digest


def read(path: Path) -> Described:
    """Raises :class:`StorageError` if it is not what was written."""
    try:
        with open_plain(path) as file:
            text = file.read(LONGEST)
        content = json.loads(text)
        if not isinstance(content, dict) or seal(content)["digest"] != content.get("digest"):
            raise StorageError(f"{path} is not what was saved (its digest differs): restore it from a copy.")
        return Described.model_validate_json(text)
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it from a copy.") from error
    except (ValueError, RecursionError, ValidationError) as error:
        raise StorageError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy.") from error
