"""What a check is: a function of a subject that says nothing where a promise is kept, and AssertionError where not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from evertune.testing.state import same
from evertune.testing.subject import Subject

Check = Callable[[Subject], None]

CHECKS: dict[str, Check] = {}
"""Every check by name, in the order they run. The first line of its docstring is what it promises."""

OF_IMAGES: set[str] = set()
"""Checks that mean nothing to a learner of texts."""


def check(function: Check) -> Check:
    """Decorator: ``function`` is one of the :data:`CHECKS`."""
    CHECKS[function.__name__] = function
    return function


def check_of_images(function: Check) -> Check:
    """As :func:`check`, where only images can be asked about."""
    OF_IMAGES.add(function.__name__)
    return check(function)


def promise(name: str) -> str:
    """What a check promises, in one line."""
    return " ".join((CHECKS[name].__doc__ or "").strip().split("\n\n")[0].split())


def require(condition: object, message: str) -> None:
    """AssertionError with ``message`` unless ``condition``."""
    if not condition:
        raise AssertionError(message)


def require_same(one: dict[str, Tensor], two: dict[str, Tensor], where: str) -> None:
    """Two states hold the same names and, bit for bit, the same values."""
    odd = sorted(one.keys() ^ two.keys())
    require(not odd, f"{where}, the state holds other tensors: {', '.join(odd[:5])}.")
    different = [name for name in one if not same(one[name], two[name])]
    require(not different, f"{where}, these tensors of the state differ: {', '.join(different[:5])}.")


def require_near(scores: Tensor, reference: Tensor, where: str) -> None:
    """The scores of the same examples are equal but for rounding, and answer the same."""
    off = (scores - reference).abs() - 1e-3 * reference.abs()
    require(
        off.max() <= 1e-4 and torch.equal(scores.argmax(1), reference.argmax(1)),
        f"{where} the scores differ by up to {float((scores - reference).abs().max()):.3g}: is there a mean or a norm "
        "over the batch in scores()?",
    )


@contextmanager
def raises(kind: type[BaseException], match: str, when: str) -> Iterator[None]:
    """What is inside ends in an error of this ``kind`` whose message has ``match`` in it."""
    try:
        yield
    except kind as error:
        require(re.search(match, str(error)), f"{when}: the message does not speak of {match!r} but says: {error}")
    else:
        raise AssertionError(f"{when}: there was no {kind.__name__}.")
