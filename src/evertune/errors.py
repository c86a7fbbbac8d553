"""The errors evertune raises: each says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EvertuneError(Exception):
    """Base of all errors raised on purpose by evertune."""


class ConfigError(EvertuneError):
    """An option, method or preset that does not exist or does not fit the others."""


class BackboneError(EvertuneError):
    """A backbone that cannot be built, loaded or served."""


class DataError(EvertuneError):
    """Examples that cannot be read or hold impossible values."""


class StreamError(EvertuneError):
    """Tasks that contradict each other or what was learned before."""


class TrainingError(EvertuneError):
    """Learning had to stop; what was learned before is intact."""


class StorageError(EvertuneError):
    """A file of ours is missing, damaged, or could not be written whole."""


class RunError(EvertuneError):
    """A run folder that does not fit the run."""


class ExportError(EvertuneError):
    """A learner that cannot leave in the format asked for."""


class HubError(EvertuneError):
    """A repository that cannot be reached, read or written."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, and all of them.

    >>> nearest("ranpack", ["safe", "ranpac"])
    "Did you mean 'ranpac'? Known: ranpac, safe."
    """
    known = sorted(choices)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(known)}."


def escaped(text: str) -> str:
    """What came from a file, for a message: on one line, with what cannot be printed written out.

    >>> print(escaped("no tensor \\x1b[2J"))
    no tensor \\x1b[2J
    """
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
