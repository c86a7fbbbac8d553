"""What a prediction depends on: each check fails at a method that breaks its promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.learner import Learner
from evertune.methods import Method, SimpleCIL
from evertune.testing import check_method

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


class Infinite(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return super().scores(passes) | {"more": super().scores(passes)["prototypes"] / 0}


class TooFew(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": super().scores(passes)["prototypes"][:, :3]}


class CountsAnswers(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        self.extra += 1
        return super().scores(passes)


class NormalisesTheBatch(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        found = super().scores(passes)["prototypes"]
        return {"prototypes": found - found.mean(0)}


class WantsTheTask(Means):
    def scores(self, passes: Passes, task: int | None = None) -> dict[str, Tensor]:
        return super().scores(passes)


class DeclaresNoBranch(Means):
    @property
    def branches(self) -> tuple[Any, ...]:
        return ()


class LooksAtPixels(Means):
    """What is remembered of an image are its features."""

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": super().scores(passes)["prototypes"] + passes.inputs.flatten(1).mean(1, keepdim=True)}


class MindsWhite(Means):
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        if passes.inputs.flatten(1).min() == 1:
            raise ZeroDivisionError("an image is all white")
        return super().scores(passes)


class Amplifies(Means):
    """Reads what bfloat16 rounds away."""

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": (1e4 * super().scores(passes)["prototypes"]).sin()}


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (Infinite, "scores_are_finite_over_all_classes_seen", "'more' is not finite"),
        (TooFew, "scores_are_finite_over_all_classes_seen", "instead of .12, 5."),
        (CountsAnswers, "predicting_changes_nothing", "changed the state: extra"),
        (NormalisesTheBatch, "predictions_do_not_depend_on_companions", "mean or a norm over the batch"),
        (NormalisesTheBatch, "no_task_is_identified", "task by task"),
        (WantsTheTask, "no_task_is_identified", "takes self, passes, task"),
        (DeclaresNoBranch, "scores_ask_for_the_declared_branches", "not among its branches"),
        (LooksAtPixels, "remembered_features_change_no_score", "IndexError"),
        (MindsWhite, "every_kind_of_input_is_read", "image ends in ZeroDivisionError"),
        (Amplifies, "bf16_is_near_fp32", "of their spread away"),
    ],
)
def test_it_fails(breaks: Breaks, method: type[Method], check: str, words: str) -> None:
    breaks(method, check, words)


def test_a_text_that_is_too_long_must_be_refused(breaks: Breaks, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")

    class Own(SimpleCIL):
        """Not one whose learner an earlier test loaded."""

    load = Learner.load
    monkeypatch.setattr(Learner, "load", lambda *given, **settings: load(*given, **settings | {"truncate": True}))
    with pytest.raises(AssertionError, match="a text that is too long was given: there was no DataError"):
        check_method(Own, texts=True, only=["every_kind_of_input_is_read"])
