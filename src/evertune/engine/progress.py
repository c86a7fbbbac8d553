"""How far the learning of a task has come: when to keep that, and what it takes to go on as if it had never stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from evertune.engine.descent import Descent, part
from evertune.engine.runtime import Runtime
from evertune.errors import StorageError
from evertune.methods import Method

LEAST = 60.0
"""Seconds between two checkpoints at least, unless told otherwise."""

SHARE = 100
"""A checkpoint is due after so many times the seconds that writing one takes: it costs less than a hundredth."""

SPEED = 100e6
"""Bytes written in a second, as long as none was."""


@dataclass(frozen=True)
class PhaseReport:
    """What a phase took: seconds, examples that passed, mean loss terms of its last epoch, parameters trained.

    ``forwards`` are its forward equivalents, None where they were not counted: see :class:`evertune.engine.Meter`.
    """

    name: str
    kind: str
    seconds: float
    images: int
    losses: Mapping[str, float]
    parameters: int = 0
    forwards: float | None = None


@dataclass(frozen=True)
class Place:
    """The phase under way, from 0; of one that optimises its epoch and the steps taken in that, of one that collects
    the examples that have passed, as ``step``."""

    phase: int = 0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Notes:
    """What a checkpoint says besides tensors.

    ``seconds`` were spent in the phase under way, ``reports`` tell of those before it. ``trainable`` names the
    parameters with gradients, ``unchanged`` the tensors that are as before the task, ``strides`` the layout of those
    that are not contiguous (products of another layout differ in the last bit), ``losses`` the terms summed up.
    ``forwards`` were counted of the phase under way.
    """

    place: Place
    seconds: float
    reports: list[PhaseReport]
    trainable: list[str]
    unchanged: list[str]
    strides: dict[str, list[int]]
    losses: list[str]
    forwards: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """``shared`` is the same in all processes, ``own`` belongs to one."""

    notes: Notes
    shared: Mapping[str, Tensor]
    own: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in (self.shared, self.own) for tensor in tensors.values())


class Progress:
    """The learning of one task.

    Parameters
    ----------
    write
        Keeps a checkpoint and gives the seconds that this took and will take again, None if it could not be kept; asked
        in all processes at the same place, or never. Without it nothing is kept.
    before
        The method's state when the task arrived: tensors that are still as in it are not written.
    every
        Seconds between two checkpoints, 0 for one after every step. By default they take less than a hundredth of the
        time: see :data:`LEAST` and :data:`SHARE`.
    found
        Where to go on from.
    """

    def __init__(
        self,
        runtime: Runtime,
        write: Callable[[Checkpoint], float | None] | None = None,
        *,
        before: Mapping[str, Tensor] | None = None,
        every: float | None = None,
        found: Checkpoint | None = None,
    ) -> None:
        self.runtime, self.write, self.before, self.every = runtime, write, before or {}, every
        self.place = Place() if found is None else found.notes.place
        self.reports = [] if found is None else list(found.notes.reports)
        """Of all phases that are over, those before a stop included."""
        self.forwards = None if found is None else found.notes.forwards
        """Forward equivalents of the phase under way, those still to come included; None if they are not counted."""
        self._found = found
        self._wait = LEAST if every is None else every
        self._speed = SPEED

    @property
    def eager(self) -> bool:
        """Whether every step counts."""
        return self.write is not None and self.every == 0

    def begin(self, method: Method) -> None:
        """Learning starts, or goes on: then ``method`` becomes what it was there."""
        self._method = method
        self._kept = self._entered = time.perf_counter()
        if self._found is not None:
            self._entered -= self._found.notes.seconds
            with _fitting():
                _restore(method, self._found, self.before)

    def resume(self, descent: Descent) -> None:
        """If the phase that begins is one that was stopped inside, it goes on there."""
        if self._found is not None and (self.place.epoch or self.place.step):
            with _fitting():
                descent.load(self._found.shared, self._found.own, self._found.notes.losses)

    def reached(self, epoch: int, step: int, descent: Descent | None = None) -> None:
        """The phase under way has come so far, which is kept if it is time."""
        self.place = Place(self.place.phase, epoch, step)
        self._keep(descent)

    def count(self, forwards: float) -> None:
        """The phase under way takes so many forward equivalents more."""
        self.forwards = forwards + (self.forwards or 0.0)

    def finished(self, name: str, kind: str, images: int, losses: Mapping[str, float], parameters: int) -> PhaseReport:
        """The phase under way is over, and the next one begins."""
        now = time.perf_counter()
        report = PhaseReport(name, kind, now - self._entered, images, losses, parameters, self.forwards)
        self.reports.append(report)
        self.place = Place(self.place.phase + 1)
        self._entered, self._found, self.forwards = now, None, None
        self._keep(None)
        return report

    def _keep(self, descent: Descent | None) -> None:
        """Write a checkpoint if the first process finds it due."""
        if self.write is None:
            return
        taken = self._due(descent) if self.runtime.main else None
        due = taken is not None
        if self.runtime.world > 1:
            due = bool(self.runtime.sum(torch.tensor(float(due), device=self.runtime.device)))
        if not due:
            return
        started = time.perf_counter()
        taken = taken or self._take(descent)
        took = self.write(taken)
        self._kept = time.perf_counter()
        if took is None:
            took = self._kept - started
        else:
            self._speed = taken.bytes / max(took, 1e-3)
        if self.every is None:
            self._wait = max(LEAST, SHARE * took)

    def _due(self, descent: Descent | None) -> Checkpoint | None:
        """What is to be kept now, if anything: a large checkpoint waits until it is worth its time."""
        since = time.perf_counter() - self._kept
        if since < self._wait:
            return None
        taken = self._take(descent)
        needed = SHARE * taken.bytes / self._speed
        if self.every is None and since < needed:
            self._wait = needed
            return None
        return taken

    def _take(self, descent: Descent | None) -> Checkpoint:
        method, generators = self._method, self._method.generators
        state = method.state_dict()
        unchanged = {name for name, value in state.items() if name in self.before and same(value, self.before[name])}
        notes = Notes(
            place=self.place,
            seconds=time.perf_counter() - self._entered,
            reports=list(self.reports),
            trainable=[name for name, p in method.named_parameters() if p.requires_grad],
            unchanged=sorted(unchanged),
            strides={name: list(torch.empty_like(t).stride()) for name, t in state.items() if not t.is_contiguous()},
            losses=[] if descent is None else list(descent.sums),
            forwards=self.forwards,
        )
        shared = {f"method.{name}": value for name, value in state.items() if name not in unchanged}
        shared["generator.init"] = generators.init.get_state()
        shared["generator.sampling"] = generators.sampling.get_state()
        if descent is None:
            return Checkpoint(notes, shared, {})
        return Checkpoint(notes, shared | descent.shared(), descent.own())


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN and the sign of zero included."""
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(bits(one), bits(two))


def bits(tensor: Tensor) -> Tensor:
    """Its values as bytes, uint8 [n]."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


@contextmanager
def _fitting() -> Iterator[None]:
    """What torch says of tensors that are not this learner's, in our words."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise StorageError(
            f"The update in progress does not fit this learner ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Learn the task from its beginning: restart=True, or --restart."
        ) from error


def _restore(method: Method, found: Checkpoint, before: Mapping[str, Tensor]) -> None:
    """Values, layout, gradients and generators as they were."""
    notes = found.notes
    method.load_state_dict({name: before[name] for name in notes.unchanged} | part("method.", found.shared))
    for name, tensor in method.state_dict(keep_vars=True).items():
        if name in notes.strides:
            laid = torch.empty_strided(tensor.shape, notes.strides[name], dtype=tensor.dtype, device=tensor.device)
            tensor.data = laid.copy_(tensor.detach())
        elif not tensor.is_contiguous():
            tensor.data = tensor.detach().contiguous()
    trainable = set(notes.trainable)
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name in trainable)
    method.generators.init.set_state(found.shared["generator.init"].clone())
    method.generators.sampling.set_state(found.shared["generator.sampling"].clone())
