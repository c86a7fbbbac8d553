"""What a method is: a list of phases when a task arrives, and class scores at any time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.errors import ConfigError
from evertune.methods.config import Config
from evertune.methods.stored import Stored, stored
from evertune.tuning import Tuning


@dataclass(frozen=True)
class TaskInfo:
    """What a method may know of a task: never its name, never its test data.

    ``present`` are the class indices in its training data, ``new`` those never seen before; ``known`` counts the
    classes seen earlier and ``seen`` those seen once it is learned. ``size`` is the number of training examples.
    """

    index: int
    present: tuple[int, ...]
    new: tuple[int, ...]
    known: int
    size: int

    @property
    def seen(self) -> int:
        return self.known + len(self.new)


@dataclass(frozen=True)
class Batch:
    """One mini-batch: its passes through the backbone, its class indices [B], its row numbers in the task [B]."""

    passes: Passes
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Recipe:
    """How an :class:`Optimise` phase descends.

    ``decay`` is ``"all"`` or ``"matrices"`` (vectors, scales and biases do not decay). ``clip`` bounds the norm of the
    whole gradient. The rate changes once per epoch: ``schedule`` is ``"cosine"`` (to ``floor`` after ``horizon``
    epochs, which are ``epochs`` unless given), ``"quarter"`` (of a cosine turn, nearly to 0 in the last epoch),
    ``"step"`` (a tenth after every ``drop`` epochs) or ``"constant"``; the first ``warmup`` epochs rise linearly from
    ``warmup_rate``, without delaying the rest. With ``lag`` every epoch runs at the rate of the one before, as in code
    that steps its schedule with the index of the epoch just finished. With so many ``views`` of each image, shown in
    turn, instead of a new one each epoch, frozen branches pass each view once.
    """

    epochs: int
    batch_size: int
    rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: str = "all"
    clip: float | None = None
    schedule: str = "cosine"
    horizon: int | None = None
    floor: float = 0.0
    drop: int = 30
    warmup: int = 0
    warmup_rate: float = 1e-6
    lag: bool = False
    views: int | None = None

    def rate_at(self, epoch: int, factor: float = 1.0) -> float:
        """The learning rate of an epoch, counted from 0, of parameters that descend at ``factor`` times the rate."""
        rate = self.rate * factor
        epoch = max(epoch - 1, 0) if self.lag else epoch
        if epoch < self.warmup:
            return self.warmup_rate + epoch * (rate - self.warmup_rate) / self.warmup
        if self.schedule == "cosine":
            turn = math.pi * epoch / (self.horizon or self.epochs)
            return self.floor + (rate - self.floor) * (1 + math.cos(turn)) / 2
        if self.schedule == "quarter":
            return rate * math.cos(0.495 * math.pi * epoch / max(self.epochs - 1, 1))
        return float(rate * 0.1 ** (epoch // self.drop)) if self.schedule == "step" else rate


@dataclass(frozen=True)
class Optimise:
    """Descend on ``loss`` over augmented batches of the task.

    ``loss`` gives named, already weighted terms, whose sum is minimised. ``parameters`` is asked when the phase begins,
    and so are ``slowed``, those among them that descend at some factor times the recipe's rate, and ``averaged``: after
    every step, of each (mean, tuning, weight) the mean follows the tuning by that weight (:meth:`Tuning.follow`).
    """

    name: str
    loss: Callable[[Batch], Mapping[str, Tensor]]
    parameters: Callable[[], Iterable[nn.Parameter]]
    recipe: Recipe
    slowed: Callable[[], Sequence[tuple[Iterable[nn.Parameter], float]]] = tuple
    averaged: Callable[[], Sequence[tuple[Tuning, Tuning, float]]] = tuple


@dataclass(frozen=True)
class Collect:
    """One gradient-free pass over the task in the test view; ``update`` feeds a statistic."""

    name: str
    update: Callable[[Batch], None]


@dataclass(frozen=True)
class Solve:
    """No data: closed forms, bookkeeping, or descent on what is remembered.

    ``parameters`` are for the record: those that it trains and no other phase does.
    """

    name: str
    run: Callable[[], None]
    parameters: Callable[[], Iterable[nn.Parameter]] = tuple


Phase = Optimise | Collect | Solve


@dataclass
class Generators:
    """Random numbers by purpose, all on the CPU so that every device draws the same."""

    init: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    sampling: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


class Method(nn.Module, ABC):
    """A continual-learning method over one frozen backbone, which it never holds.

    All state is in parameters and buffers, so ``state_dict`` is everything there is, between two phases and between two
    batches of one. What happens happens inside a phase: :meth:`phases` itself changes nothing.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Config]]
    paper: ClassVar[str] = ""
    """Whom to cite for it, as Markdown; nothing where it is of no paper."""
    remembers: ClassVar[bool] = True
    """Whether it does anything against forgetting; marks that others are measured by do not."""
    dynamic: ClassVar[str] = ""
    """Why :meth:`scores` are no static graph, if what they compute depends on the input: a sentence."""
    quadratic: ClassVar[str] = ""
    """Why what is kept grows with classes times tasks, if it does: a sentence."""
    of_data: ClassVar[dict[str, str]] = {"tasks_seen": "nothing: bookkeeping"}
    """What the method's own tensors keep of the data, in words; those of an ancestor need not be repeated."""
    tasks_seen: Tensor

    def __init__(self, config: Config, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__()
        self.config = config
        self.shape, self.width, self.generators = shape, width, generators
        self.register_buffer("tasks_seen", torch.zeros((), dtype=torch.long))

    @abstractmethod
    def phases(self, task: TaskInfo) -> Iterable[Phase]:
        """What happens when ``task`` arrives, in order.

        A generator may look at what earlier phases found, but at nothing that a later one changes: learning that goes
        on after a stop asks it again, with the state as it is then, and leaves out the phases that are over.
        """

    @abstractmethod
    def scores(self, passes: Passes) -> dict[str, Tensor]:
        """Class scores [B, K] over all classes seen, by part; the first part is the method's answer."""

    @property
    @abstractmethod
    def branches(self) -> tuple[Tuning | None, ...]:
        """The tunings :meth:`scores` may ask the passes for (``None`` is the plain model)."""

    @property
    def tangent_parameters(self) -> dict[str, nn.Parameter]:
        """By name, what the scores are differentiated by in diagnostics: the branches' parameters, frozen or not."""
        tuned = {id(p) for tuning in self.branches if tuning is not None for p in tuning.parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) in tuned}

    def identify(self, passes: Passes) -> Tensor | None:
        """The task [B] each image is taken to be of; ``None`` for a method that does not ask itself that."""
        return None

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        """Class scores [B, K] when the task identity [B] is given: for task-incremental prediction and diagnostics."""
        return next(iter(self.scores(passes).values()))

    def restored(self) -> None:
        """After a state was loaded: bring back what is no tensor (which tunings are frozen)."""

    def stored(self) -> list[Stored]:
        """What is kept between two tasks, in bytes, and what of the data that is."""
        return list(stored(self))

    def forget(self, classes: Sequence[int]) -> list[str]:
        """Remove what belongs to ``classes`` and to no other; the indices of those behind them move down.

        A task of which no class is left is forgotten too. Gives a sentence for all that cannot be removed, and for why
        scores of the other classes may change.

        Raises
        ------
        ConfigError
            This method does not know what belongs to a class.
        """
        raise ConfigError(
            f"The method {self.name} cannot forget: it does not say what of its state belongs to a class. Learn the "
            "other classes anew, from their data."
        )

    def describe(self) -> dict[str, Any]:
        """What was chosen while learning the last task (ridge strengths …), for logs."""
        return {}


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make ``method`` known under its ``name``."""
    METHODS[method.name] = method
    return method
