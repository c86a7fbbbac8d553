"""The shared parameters g of HiDe-PET, one set (HiDe-PET spec §6) or several, opened for tasks far from all known
(§11)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from evertune.backbones import Shape
from evertune.heads import LinearHead, MLPHead
from evertune.methods.hide_pet_config import HiDeConfig
from evertune.methods.losses import task_cross_entropy
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo
from evertune.statistics import TaskCentroids, TaskFeatures
from evertune.tuning import Bank, Tuning


class SharedSets(Method):
    """The part of the method that learns g, with ω or a layer of its own; gives û, the features under g."""

    config: HiDeConfig
    of_data: ClassVar[dict[str, str]] = {
        "fresh": "nothing: bookkeeping",
        "distance": "a number chosen on the data",
    }
    fresh: Tensor
    distance: Tensor

    def __init__(self, config: HiDeConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)

        def bank() -> Bank:
            return Bank(config.fresh(shape, generators.init))

        # All are drawn here, one after the other; e is each task's own, the last is EMA's copy of g.
        self.g, self.e, self.average = bank(), bank(), bank()
        self.omega = MLPHead(width) if config.router_head == "mlp" else LinearHead(width)
        self.interim = LinearHead(width)  # what g_k learns with where ω reads another feature
        self.task_u = TaskFeatures()
        order, quantile = config.accumulate_order, config.accumulate_quantile
        self.distribution = TaskCentroids(config.centroids, order=order, quantile=quantile)
        self.register_buffer("fresh", torch.ones((), dtype=torch.bool))  # whether this task opened its shared set
        self.register_buffer("distance", torch.zeros(()))  # of this task from the nearest past one

    def shared_phases(self, task: TaskInfo) -> Iterator[Phase]:
        """Choose or open the task's shared set, and train it."""
        if self.config.accumulate:
            yield Collect("distribution", self._collect_plain)
        yield Solve("open", functools.partial(self._open, task))
        yield from self._training(task)

    def _collect_plain(self, batch: Batch) -> None:
        self.task_u.add(batch.passes(), batch.labels)

    def _open(self, task: TaskInfo) -> None:
        """Choose the task's shared set, or open one; ω gets a row for every class of the task."""
        c = self.config
        chosen = 0
        if c.accumulate:
            plain, _ = self.task_u.take()
            match = self.distribution.nearest(plain)
            self.distance.fill_(match.distance if match else 0.0)
            chosen = self.distribution.assign(match, c.accumulate_threshold)
            self.distribution.add(plain, chosen, self.generators.sampling)
            self.interim = LinearHead(self.width)
            self.interim.grow(len(task.present), self.generators.init)
        self.fresh.fill_(task.index == 0 if c.shared == "none" else chosen == len(self.g))
        if self.fresh and c.shared != "none":
            self.g.open()
        self.omega.grow(len(task.present), self.generators.init)

    @property
    def _current(self) -> Tuning | None:
        """The shared set of the task being learned."""
        if self.config.shared == "none":
            return None
        return self.g[int(self.distribution.domain[-1]) if self.config.accumulate else 0]

    @property
    def _router(self) -> Tuning | None:
        """What û is made with; several shared sets cannot serve one û, so then it is the plain model's."""
        return None if self.config.shared == "none" or self.config.accumulate else self.g[0]

    @property
    def _interim(self) -> nn.Module:
        """The layer g learns with: ω itself, unless û is not g's."""
        return self.interim if self.config.accumulate else self.omega

    def _training(self, task: TaskInfo) -> Iterator[Phase]:
        c, g = self.config, self._current
        follow = c.shared_epochs if c.shared_follow_epochs is None else c.shared_follow_epochs
        epochs = c.shared_epochs if self.fresh else follow
        loss, head = functools.partial(self.shared_loss, task), self._interim
        if c.shared == "fix_then_tune":
            alone = min(c.fix_epochs, epochs)
            yield Optimise("interim head", loss, head.parameters, c.shared_recipe(alone))
            epochs -= alone
        own = [] if g is None or (c.shared == "fsa" and not self.fresh) else list(g.parameters())
        slow = c.shared == "sl" or (c.shared == "fsa_sl" and not self.fresh)
        if epochs:
            factors = [(own, c.slow if slow else 1.0)]
            parameters = [*own, *head.parameters()]
            yield Optimise("shared parameters", loss, lambda: parameters, c.shared_recipe(epochs), lambda: factors)
        if g is not None:
            yield Solve("keep shared parameters", functools.partial(self._keep_shared, g))

    def shared_loss(self, task: TaskInfo, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy over the task's own rows of ω, its last ones."""
        own = self._interim(batch.passes(self._current))[:, -len(task.present) :]
        return {"shared": task_cross_entropy(own, batch.labels, task.present)}

    def _keep_shared(self, g: Tuning) -> None:
        """m_1 = g_1, m_t = 0.99 m_{t−1} + 0.01 g_t for the averaged copy; adapted once, FSA's g never moves again."""
        if self.config.shared == "fsa":
            g.freeze()
        if self.config.shared == "ema":
            if not len(self.average):
                self.average.open(g).freeze()
            self.average[0].follow(g, 1 - self.config.ema)

    def restored(self) -> None:
        for bank in (self.e, self.average, *([self.g] if self.config.shared == "fsa" else [])):
            bank.freeze()

    def forget_tasks(self, tasks: Collection[int]) -> None:
        """Remove e_t of ``tasks``, and shared sets that served no other."""
        self.interim.drop(range(self.interim.classes))  # nothing is left to do for it
        self.e.drop(tasks)
        if self.config.accumulate:
            self.g.drop(self.distribution.forget(tasks))

    def nearest_shared(self, plain: Tensor) -> int | None:
        """Which shared set suits images best, by their plain features [N, L]: for few-shot learning (§11.3)."""
        if self.config.shared == "none" or not len(self.g):
            return None
        match = self.distribution.nearest(plain)
        return 0 if match is None else match.domain
