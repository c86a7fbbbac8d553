"""What a folder holds: each check fails at a method or a learner that breaks its promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import Passes
from evertune.learner import Learner
from evertune.methods import Batch, Collect, Method, Phase, SimpleCIL, Solve, TaskInfo

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


class KeepsAList(Means):
    """The means are in a list, which no state holds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.shift: list[float] = []

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.shift.append(float(batch.passes().mean()))

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        found = super().scores(passes)["prototypes"]
        return {"prototypes": found + sum(self.shift) * torch.arange(found.shape[1])}


class ForgetsHalfAPass(Means):
    """Sums up in a list and keeps the means in a later phase: a stop between the two loses the list."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [Solve("begin", self.seen.clear), Collect("features", self._collect), Solve("means", self._close)]

    def _collect(self, batch: Batch) -> None:
        self.seen.append((batch.passes(), batch.labels))

    def _close(self) -> None:
        for features, labels in self.seen:
            self.prototypes.update(features, labels)
        self.seen.clear()


class KeepsExamples(Means):
    of_data = {"shown": "all features"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("shown", torch.zeros(0, self.width))

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.shown = torch.cat([self.shown, batch.passes()])

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self.shown = torch.zeros_like(state[prefix + "shown"])
        super()._load_from_state_dict(state, prefix, *args)


class KeepsTheBackbone(Means):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("copied", torch.zeros(1, 1, self.width))

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.copied.copy_(next(batch.passes.backbone.parameters()))


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (KeepsAList, "a_kept_learner_predicts_and_goes_on_the_same", "the scores are others .prototypes"),
        (KeepsTheBackbone, "what_is_kept_is_json_and_safetensors", "weights of the backbone are kept: copied"),
        (KeepsExamples, "what_is_kept_does_not_grow_with_examples", "other sizes: shown"),
        (ForgetsHalfAPass, "a_stopped_task_goes_on_the_same", "stopped in the midst of 'features' and gone on with"),
    ],
)
def test_it_fails(breaks: Breaks, method: type[Method], check: str, words: str) -> None:
    breaks(method, check, words)


def test_a_learner_that_trims_names_is_found(breaks: Breaks, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Learner.predict
    monkeypatch.setattr(Learner, "predict", lambda self, *given: [name.strip() for name in predict(self, *given)])
    breaks(SimpleCIL, "names_come_back_as_given", "not those that were given")
