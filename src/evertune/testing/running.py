"""``check_method``: every promise that a method makes, checked on a tiny transformer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from evertune.errors import ConfigError, nearest
from evertune.methods import Method, get_method
from evertune.testing.material import IMAGES
from evertune.testing.subject import Subject
from evertune.testing.suite import CHECKS, OF_IMAGES, promise
from evertune.testing.surroundings import unsynced


def check_method(
    method: str | type[Method],
    *,
    preset: str | None = None,
    texts: bool = False,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check what every method promises, and raise at the first promise that this one breaks.

    Parameters
    ----------
    method
        A name that is registered, or a class, which need not be.
    preset
        The method's first one by default.
    texts
        Check it on a text encoder instead of a vision transformer; needs transformers.
    only, skip
        Names of :func:`checks` to run, all by default, and to leave out.
    options
        Options of the method. Those that say how long it learns are small unless given here.

    Raises
    ------
    AssertionError
        A promise is broken: which, by what, and where to look.
    ConfigError
        A method, check, preset or option does not exist, or the package transformers, where texts are asked for.

    Examples
    --------
    >>> check_method("simple_cil", only=["names_come_back_as_given"])
    """
    known = checks(texts=texts)
    for name in (*(only or ()), *skip):
        if name not in CHECKS:
            raise ConfigError(f"No check is called {name!r}. {nearest(name, CHECKS)}")
    subject = _subject(_class_of(method), preset, texts, tuple(sorted((options or {}).items())))
    for name in known:
        if (only is None or name in only) and name not in skip:
            _run(name, subject)


def checks(*, texts: bool = False) -> dict[str, str]:
    """Every check by name with what it promises, in the order they run; ``texts``: those for learners of texts."""
    return {name: promise(name) for name in CHECKS if not (texts and name in OF_IMAGES)}


def _class_of(method: str | type[Method]) -> type[Method]:
    if isinstance(method, str):
        return get_method(method)
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise ConfigError(f"{method!r} is no method: give a name, or a class derived from evertune.methods.Method.")
    absent = [name for name in ("name", "config_type") if not hasattr(method, name)] + sorted(
        method.__abstractmethods__
    )
    if absent:
        raise ConfigError(f"{method.__qualname__} has no {', '.join(absent)}, which every method has.")
    return method


@functools.lru_cache(maxsize=4)
def _subject(method: type[Method], preset: str | None, texts: bool, options: tuple[tuple[str, Any], ...]) -> Subject:
    """What is learned once for several checks stays for the next call about the same method."""
    method.config_type.make(preset, **dict(options))
    material = IMAGES
    if texts:
        from evertune.testing.texts import TEXTS as material
    subject = Subject(method, preset, material, dict(options))
    _ = subject.backbone  # made here, where what is missing is no fault of the method
    return subject


def _run(name: str, subject: Subject) -> None:
    try:
        with subject.registered(), unsynced():
            CHECKS[name](subject)
    except AssertionError as error:
        raise AssertionError(f"{subject}: {name}: {error}\nThe promise: {promise(name)}") from error
    except Exception as error:
        raise AssertionError(
            f"{subject}: {name}: it ended in {type(error).__name__}: {error}\nThe promise: {promise(name)}"
        ) from error
