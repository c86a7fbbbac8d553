"""What is kept and forgotten: each check fails at a method that breaks its promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evertune.errors import ConfigError
from evertune.methods import Method, SimpleCIL
from evertune.testing import check_method

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


class SaysNothing(Means):
    of_data = {"extra": ""}  # noqa: RUF012


class ForgetsTooMuch(Means):
    """All means go with one, and nothing is said of it."""

    def forget(self, classes: Sequence[int]) -> list[str]:
        super().forget(classes)
        self.prototypes.sums[:] = self.prototypes.sums.flip(0)
        return []


class CannotForget(Means):
    def forget(self, classes: Sequence[int]) -> list[str]:
        raise ConfigError("It cannot forget: it was not made for that.")


def test_what_is_not_said_is_found(breaks: Breaks) -> None:
    breaks(SaysNothing, "what_is_kept_is_said", "nothing says what of the data these tensors keep: extra")


def test_what_is_forgotten_too_is_found(breaks: Breaks) -> None:
    breaks(ForgetsTooMuch, "a_forgotten_class_is_gone_and_the_rest_stays", "does not say why")


def test_a_method_may_say_that_it_cannot_forget() -> None:
    check_method(CannotForget, only=["a_forgotten_class_is_gone_and_the_rest_stays"])
