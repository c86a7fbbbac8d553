"""What lies outside a learner stays as it is: the process, the disk, the memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from evertune.backbones import Backbone
from evertune.learner import Learner
from evertune.testing.state import size_of, state_of
from evertune.testing.subject import Subject
from evertune.testing.suite import check, require


@check
def no_global_state_is_touched(subject: Subject) -> None:
    """Random generators, dtype, threads, flags, warnings, logging, directory and environment stay as they are."""
    touched = subject.course.touched and subject.again.touched
    require(not touched, f"learning and predicting changed {', '.join(touched)}.")


@check
def nothing_is_written_outside(subject: Subject) -> None:
    """Nothing is written but into the folder that was given, no process is started, and nobody is called."""
    written = subject.course.written and subject.again.written
    require(not written, f"learning, predicting and saving wrote or asked for: {', '.join(written[:5])}.")


TASKS = 20


@check
def memory_is_bounded_over_many_tasks(subject: Subject) -> None:
    """Over 20 tasks of a class each, the state grows no faster at the end, and nothing grows beside the state."""
    few = {"epochs", "follow_epochs", "shared_epochs", "shared_follow_epochs", "tii_epochs", "tap_epochs"}
    learner = subject.learner(**dict.fromkeys(few & subject.known, 1))
    names = tuple(f"class {i}" for i in range(TASKS + 1))
    sizes: list[int] = []
    beside: dict[int, tuple[int, int]] = {}
    with _only_new_objects() as tensors:
        for number in range(TASKS):
            new = names[number + 1 : number + 2] if number else names[:2]
            learner.learn(subject.task(number, new, rows=2 * len(names), classes=names))
            sizes.append(size_of(state_of(learner)))
            if number in (TASKS // 2 - 1, TASKS - 1):
                gc.collect()
                beside[number] = (held_by(learner) - sizes[-1], tensors() - len(learner.method.state_dict()))
    # Of a method that keeps something for each class and task, what a task adds may itself grow, but evenly.
    steps = np.diff(sizes[1:], n=2 if subject.method.quadratic else 1)
    early, late = int(steps[: TASKS // 2].max()), int(steps[TASKS // 2 :].max())
    require(
        late <= early,
        f"a task of one class added at most {early} bytes to the state among the first tasks, and {late} among the "
        "last: what is kept must grow with the classes and tasks, not with their square.",
    )
    (half, _), (full, _) = beside.values()
    require(
        full <= half,
        f"beside its state the learner holds {full - half} bytes more after {TASKS} tasks than after {TASKS // 2}: a "
        "list or a cache outside parameters and buffers grows, and would be lost when the learner is saved.",
    )
    (_, half), (_, full) = beside.values()
    require(full <= half, f"{full - half} more tensors are alive after {TASKS} tasks than after {TASKS // 2}.")


class _only_new_objects:
    """Counts the tensors that are made inside and alive. Older objects are left out of the search, which is slow."""

    def __enter__(self) -> Any:
        gc.collect()
        gc.freeze()
        return self.count

    def __exit__(self, *error: object) -> None:
        gc.unfreeze()

    @staticmethod
    def count() -> int:
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


LEAVES = (type, ModuleType, FunctionType, BuiltinFunctionType, Backbone, str, int, float, bool, type(None))


def held_by(learner: Learner) -> int:
    """Bytes of all tensors, arrays and byte strings that can be reached from a learner, but for its backbone."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [learner]
    total = 0
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, torch.Tensor):
            total += found.numel() * found.element_size()
            waiting += [] if found.grad is None else [found.grad]
        elif isinstance(found, np.ndarray):
            total += found.nbytes
        elif isinstance(found, bytes | bytearray):
            total += len(found)
        else:
            waiting += _parts(found)
    return total


def _parts(found: Any) -> Iterator[Any]:
    """What an object refers to; of functions only what they carry along."""
    if isinstance(found, FunctionType):
        yield from (cell.cell_contents for cell in found.__closure__ or () if _filled(cell))
    elif isinstance(found, MethodType):
        yield found.__self__
    elif not isinstance(found, LEAVES):
        yield from gc.get_referents(found)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
