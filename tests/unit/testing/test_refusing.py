"""Telling errors: each check fails at a method or a learner that breaks its promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from evertune.learner import Learner
from evertune.methods import Batch, Finetune, Method, Phase, SimpleCIL, Solve, TaskInfo
from evertune.methods.simple_cil import SimpleCILConfig

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


class RemembersFailures(Means):
    """A number beside the state stays after a task that failed, and enters the next."""

    times = 0

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [Solve("count", self._count), *super().phases(task)]

    def _count(self) -> None:
        self.times += 1
        self.extra.fill_(self.times)


class HidesDivergence(Finetune):
    def loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        return {name: term.nan_to_num(0, 0, 0) for name, term in super().loss(task, batch).items()}


class LoadsNothing(Means):
    """Told to be what it was, it stays what it is."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


class LosesNames(SimpleCILConfig):
    @classmethod
    def make(cls, preset: str | None = None, **options: Any) -> Self:
        return cls()


class TakesAnyOption(Means):
    config_type = LosesNames


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (RemembersFailures, "a_failure_leaves_everything_as_it_was", "learned after it had failed"),
        (LoadsNothing, "a_failure_leaves_everything_as_it_was", "failed at example"),
        (HidesDivergence, "a_divergence_is_an_error_that_leaves_everything_as_it_was", "there was no TrainingError"),
        (LoadsNothing, "a_damaged_file_is_named", "After a damaged file"),
        (TakesAnyOption, "unknown_names_are_told_with_the_nearest", "there was no ConfigError"),
    ],
)
def test_it_fails(breaks: Breaks, method: type[Method], check: str, words: str) -> None:
    breaks(method, check, words)


def test_a_learner_that_answers_before_it_learned_is_found(breaks: Breaks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "predict", lambda self, images: [""] * len(images))
    breaks(SimpleCIL, "impossible_tasks_are_refused", "nothing is learned yet: there was no StreamError")
