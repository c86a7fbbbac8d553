"""A learner learns three tasks and is watched; many checks only look at what was seen."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from evertune.engine import PhaseReport
from evertune.learner import Learner
from evertune.methods import Method, Optimise, Phase, TaskInfo
from evertune.streams import Source, Task
from evertune.testing.sources import Watched
from evertune.testing.state import same, state_of
from evertune.testing.surroundings import globals_kept, writes_seen


@dataclass(frozen=True)
class Stage:
    """After a task: the learner's state and where it was saved, its scores of the probe by part, and how many examples
    had been read when each phase ended."""

    folder: Path
    classes: tuple[str, ...]
    state: dict[str, Tensor]
    parts: dict[str, Tensor]
    reports: list[PhaseReport]
    reads: list[int]


@dataclass
class Course:
    """What was seen: the stages, and what should not have been."""

    stages: list[Stage] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    """Tensors that a training phase changed and had not declared."""
    answered: list[str] = field(default_factory=list)
    """Tensors that changed while scores were asked for."""
    tested: int = 0
    """Examples of the tasks' test parts that were read while learning."""
    touched: list[str] = field(default_factory=list)
    """Global state that was changed."""
    written: list[str] = field(default_factory=list)
    """Paths written outside the folders that were given."""


def follow(make: Callable[[], Learner], tasks: Sequence[Task], probe: Source, folder: Path) -> Course:
    """Learn ``tasks`` one after the other, each kept in a folder below ``folder``, and ask for scores of ``probe``."""
    course = Course()
    with writes_seen(course.written, folder), globals_kept(course.touched):
        learner = make()
        declared = Declared(learner, course.moved)
        for number, task in enumerate(tasks):
            course.stages.append(_stage(learner, task, probe, folder / str(number + 1), course, declared))
    return course


def _stage(learner: Learner, task: Task, probe: Source, folder: Path, course: Course, declared: Declared) -> Stage:
    read, held = Watched(task.train), Watched(task.train)
    reads: list[int] = []

    def ended(report: PhaseReport) -> None:
        reads.append(read.loads)
        declared.ended(report)

    reports = learner.learn(dataclasses.replace(task, train=read, test=held), on_phase=ended, folder=folder)
    course.tested += held.loads
    state = state_of(learner)
    parts = learner.engine.scores(learner.method, probe)
    after = state_of(learner)
    course.answered += sorted(
        name for name in state.keys() | after.keys() if name not in state or not same(state[name], after[name])
    )
    return Stage(folder, learner.classes, state, parts, reports, reads)


class Declared:
    """Notes in ``moved`` what a training phase changes beyond the parameters it declares."""

    def __init__(self, learner: Learner, moved: list[str]) -> None:
        self.learner, self.moved = learner, moved
        self.parameters: set[int] = set()
        self.before: dict[str, Tensor] = {}
        spy(learner.method, self.began)

    def began(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = {id(p) for p in parameters}
        self.before = state_of(self.learner)

    def ended(self, report: PhaseReport) -> None:
        if report.kind != "optimise":
            return
        own = {name: id(p) for name, p in self.learner.method.named_parameters()}
        after = state_of(self.learner)
        for name in sorted(self.before.keys() | after.keys()):
            stays = name in self.before and name in after and same(self.before[name], after[name])
            if not stays and own.get(name) not in self.parameters:
                self.moved.append(f"{name} (in the phase {report.name!r})")


def spy(
    method: Method,
    on_start: Callable[[list[nn.Parameter]], None] = lambda parameters: None,
    on_phase: Callable[[TaskInfo, Phase], None] = lambda task, phase: None,
) -> Callable[[TaskInfo], Iterable[Phase]]:
    """Calls ``on_start`` with what every training phase may change as it begins, ``on_phase`` with every phase.

    Returns the method's own ``phases``, on which nobody spies.
    """
    original = method.phases

    def phases(task: TaskInfo) -> Iterator[Phase]:
        for phase in original(task):
            on_phase(task, phase)
            if isinstance(phase, Optimise):
                first = itertools.count()
                yield dataclasses.replace(phase, parameters=functools.partial(_asked, phase, on_start, first))
            else:
                yield phase

    method.phases = phases  # type: ignore[method-assign]
    return original


def _asked(
    phase: Optimise, on_start: Callable[[list[nn.Parameter]], None], asked: Iterator[int]
) -> Iterable[nn.Parameter]:
    parameters = list(phase.parameters())
    if next(asked) == 0:  # the engine may ask again
        averages = [p for mean, _, _ in phase.averaged() for p in mean.parameters()]
        on_start([*(p for p in parameters if p.requires_grad), *averages])
    return parameters
