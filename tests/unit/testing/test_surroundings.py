"""What lies outside: each check fails at a method that touches it."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.methods import Batch, Method, SimpleCIL
from evertune.testing import check_method
from evertune.testing.surroundings import GLOBALS, writes_seen

Breaks = Callable[[type[Method], str, str], None]


class Means(SimpleCIL):
    """Sound, and with a buffer to misuse."""

    of_data = {"extra": "nothing: a number"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("extra", torch.zeros(()))


def touching(touch: Callable[[], object]) -> type[Method]:
    """A method that does something to the process."""

    class Touches(Means):
        def _collect(self, batch: Batch) -> None:
            super()._collect(batch)
            touch()

    return Touches


TOUCHES: dict[str, Callable[[], object]] = {
    "torch's random state": lambda: torch.manual_seed(0),
    "numpy's random state": lambda: np.random.seed(0),
    "random's state": lambda: random.random(),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "cudnn's flags": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "numpy's error handling": lambda: np.seterr(all="ignore"),
    "the warnings filters": lambda: warnings.simplefilter("ignore"),
    "the root logger": lambda: logging.root.setLevel(1),
    "the working directory": lambda: os.chdir("/"),
    "the environment": lambda: os.environ.__setitem__("EVERTUNE_BROKEN", "1"),
}


WRITES: dict[str, Callable[[], object]] = {
    "in the working directory": lambda: open("notes.txt", "w").close(),
    "among temporary files": lambda: os.close(tempfile.mkstemp()[0]),
    "without telling Python": lambda: torch.save(torch.zeros(1), "weights.pt"),
    "by another process": lambda: os.system("true"),
}


class KeepsPairs(Means):
    """A row for every two tasks."""

    of_data = {"pairs": "nothing: zeros"}  # noqa: RUF012

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("pairs", torch.zeros(0, 0, 8))

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        tasks = int(self.tasks_seen) + 1
        self.pairs = torch.zeros(tasks, tasks, 8)


class SaysPairs(KeepsPairs):
    """It is allowed to where it says so."""

    name = "says_pairs"
    quadratic = "a row for every two tasks"


class KeepsFeatures(Means):
    """A list beside the state that nothing reads and that grows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Any] = []

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.seen.append(batch.passes().numpy())


ELSEWHERE: list[Tensor] = []


class KeepsElsewhere(Means):
    """Tensors in a list of the module, which the learner does not refer to."""

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        ELSEWHERE.append(batch.labels.clone())


@pytest.mark.parametrize("what", TOUCHES)
def test_global_state_that_is_touched_is_named_and_set_back(breaks: Breaks, what: str) -> None:
    read = GLOBALS[what][0]
    before = read()
    breaks(touching(TOUCHES[what]), "no_global_state_is_touched", what)
    assert read() == before


@pytest.mark.parametrize("where", WRITES)
def test_what_is_written_is_found(breaks: Breaks, where: str) -> None:
    breaks(touching(WRITES[where]), "nothing_is_written_outside", "notes.txt|tmp|weights.pt|os.system")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (KeepsPairs, "not with their square"),
        (KeepsFeatures, "beside its state the learner holds"),
        (KeepsElsewhere, "10 more tensors are alive"),
    ],
)
def test_what_grows_is_found(breaks: Breaks, method: type[Method], words: str) -> None:
    breaks(method, "memory_is_bounded_over_many_tasks", words)


def test_what_grows_with_classes_times_tasks_must_be_said() -> None:
    check_method(SaysPairs, only=["memory_is_bounded_over_many_tasks"])


def test_nobody_watches_afterwards() -> None:
    """The audit hook stays in the process, and rests."""
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder, writes_seen(seen):
        (Path(folder) / "one").touch()
    assert [Path(path).name for path in seen] == ["one"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "two").touch()
    assert len(seen) == 1
