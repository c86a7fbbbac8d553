"""Runs the phases of a method on a task; knows nothing of any paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from evertune.backbones import Backbone, Passes
from evertune.engine.cache import FeatureCache
from evertune.engine.runtime import Runtime, Seeds
from evertune.errors import ConfigError, TrainingError
from evertune.methods import Batch, Collect, Method, Optimise, Recipe, Solve, TaskInfo
from evertune.streams import Batches, Source
from evertune.streams.views import TestView, TrainView
from evertune.tuning import Tuning

CHECK_EVERY = 10
"""Steps between two looks at the loss: each look makes an accelerator wait."""


@dataclass(frozen=True)
class PhaseReport:
    """What a phase took: seconds, images passed through it, and the mean loss terms of its last epoch."""

    name: str
    kind: str
    seconds: float
    images: int
    losses: Mapping[str, float]


class Engine:
    """One backbone, one runtime, the views of the data."""

    def __init__(
        self,
        backbone: Backbone,
        runtime: Runtime,
        *,
        train_view: TrainView,
        test_view: TestView,
        seeds: Seeds,
        eval_batch: int = 128,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        self.backbone = backbone.to(runtime.device)
        self.runtime = runtime
        self.train_view, self.test_view = train_view, test_view
        self.seeds = seeds
        self.eval_batch = eval_batch
        self.workers = workers
        self.progress = progress and runtime.main
        self.cache = FeatureCache()

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(self, method: Method, task: TaskInfo, source: Source, indices: np.ndarray) -> Iterator[PhaseReport]:
        """Run every phase of ``task``; ``indices`` maps the labels of ``source`` to class indices.

        Raises
        ------
        TrainingError
            The loss became infinite or not a number.
        """
        for number, phase in enumerate(method.phases(task)):
            started = time.perf_counter()
            images = 0
            losses: Mapping[str, float] = {}
            match phase:
                case Optimise():
                    images, losses = self._optimise(method, phase, source, indices, (task.index, number))
                case Collect():
                    images = self._collect(method, phase, source, indices)
                case Solve():
                    with torch.no_grad():
                        phase.run()
                    method.to(self.runtime.device)
            kind = type(phase).__name__.lower()
            yield PhaseReport(phase.name, kind, time.perf_counter() - started, images, losses)
        method.tasks_seen += 1
        self.cache.keep({"plain", *(t.fingerprint() for t in method.branches if t is not None and t.frozen)})

    def _optimise(
        self, method: Method, phase: Optimise, source: Source, indices: np.ndarray, place: tuple[int, int]
    ) -> tuple[int, dict[str, float]]:
        recipe = phase.recipe
        parameters = [p for p in phase.parameters() if p.requires_grad]
        optimizer = make_optimizer(parameters, recipe, phase.slowed())
        method.train()
        means: dict[str, float] = {}
        steps = -(-len(source) // recipe.batch_size)
        seed = (self.seeds.augmentation, *place)
        devices = range(torch.cuda.device_count())  # the seed below reaches them all
        bank = FeatureCache() if recipe.views is not None and recipe.views < recipe.epochs else None
        with torch.random.fork_rng(devices), self._bar(phase.name, recipe.epochs * len(source)) as bar:
            torch.manual_seed(int(np.random.SeedSequence((*seed, self.runtime.rank)).generate_state(1)[0]))
            for epoch in range(recipe.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate_at(epoch, group["factor"])
                sums: dict[str, Tensor] = {}
                batches = self._batches(
                    source,
                    self.train_view,
                    recipe.batch_size,
                    indices,
                    seed=seed,
                    epoch=epoch,
                    bank=bank,
                    views=recipe.views,
                )
                for step, batch in enumerate(batches):
                    terms = phase.loss(batch) if len(batch.labels) else {}
                    optimizer.zero_grad(set_to_none=True)
                    if terms:
                        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
                    whole = min(recipe.batch_size, len(source) - step * recipe.batch_size)
                    self.runtime.average_gradients(parameters, len(batch.labels) / whole)
                    if recipe.clip is not None:
                        nn.utils.clip_grad_norm_(parameters, recipe.clip)
                    optimizer.step()
                    for name, term in terms.items():
                        sums[name] = sums.get(name, torch.zeros((), device=term.device)) + term.detach()
                    if step % CHECK_EVERY == 0 or step == steps - 1:
                        self._require_finite(sums, phase.name, epoch, step)
                    bar.update(whole)
                means = {name: float(value) / steps for name, value in sums.items()}
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})
        optimizer.zero_grad(set_to_none=True)
        method.eval()
        return recipe.epochs * len(source), means

    def _require_finite(self, sums: Mapping[str, Tensor], phase: str, epoch: int, step: int) -> None:
        bad = [name for name, value in sums.items() if not torch.isfinite(value)]
        if self.runtime.sum(torch.tensor(float(len(bad)), device=self.runtime.device)):
            raise TrainingError(
                f"The loss ({', '.join(bad) or 'in another process'}) became infinite or not a number in '{phase}', "
                f"epoch {epoch + 1}, by step {step + 1}. Lower the learning rate (rate=), or look at the data. "
                "What was learned before this task is unchanged."
            )

    def _collect(self, method: Method, phase: Collect, source: Source, indices: np.ndarray) -> int:
        method.eval()
        gather = self.runtime.gather if self.runtime.world > 1 else None
        with torch.no_grad(), self._bar(phase.name, len(source)) as bar:
            for batch in self._batches(source, self.test_view, self.eval_batch, indices, gather=gather):
                phase.update(batch)
                bar.update(len(batch.labels))
        return len(source)

    def _batches(
        self,
        source: Source,
        view: TrainView | TestView,
        size: int,
        indices: np.ndarray,
        *,
        seed: tuple[int, ...] | None = None,
        epoch: int = 0,
        gather: Any = None,
        bank: FeatureCache | None = None,
        views: int | None = None,
    ) -> Iterator[Batch]:
        """Batches on the device; shuffled if there is a ``seed``; labels gathered where features are.

        With so many ``views`` the epochs show them in turn, and a ``bank`` keeps the features of frozen branches.
        """
        to_index = torch.as_tensor(indices)
        shown = epoch if views is None else epoch % views
        for rows, images, labels in Batches(
            source,
            view,
            size,
            shuffle=seed is not None,
            seed=seed or (0,),
            epoch=epoch,
            view_epoch=shown,
            workers=self.workers,
            rank=self.runtime.rank,
            world=self.runtime.world,
        ):
            passes = Passes(
                self.backbone,
                self.runtime.images(images),
                precision=self.runtime.autocast,
                memory=None if bank is None else bank.view(str(shown), rows, len(source)),
                gather=gather,
            )
            known = to_index[labels].to(self.runtime.device)
            rows = rows.to(self.runtime.device)
            yield Batch(passes, gather(known) if gather else known, gather(rows) if gather else rows)

    # -- prediction --------------------------------------------------------------------------------------------------

    def scores(self, method: Method, source: Source, *, remember: bool = False) -> dict[str, Tensor]:
        """Class scores [N, K] of every example by part."""
        method.eval()
        return self.compute(source, method.branches, method.scores, remember=remember)

    def features(self, source: Source, *, remember: bool = False) -> Tensor:
        """Features [N, L] of the plain backbone in the test view."""
        return self.compute(source, (None,), lambda passes: {"features": passes()}, remember=remember)["features"]

    def compute(
        self,
        source: Source,
        branches: Sequence[Tuning | None],
        read: Callable[[Passes], Mapping[str, Tensor]],
        *,
        remember: bool = False,
    ) -> dict[str, Tensor]:
        """``read`` of every batch in the test view, joined, on the CPU.

        With ``remember``, for data that is evaluated again and again, features of frozen branches are computed once per
        data set; if ``branches`` are all there is to know and all are known, no image is even decoded.
        """
        data = source.digest if remember else ""
        frozen = [t for t in branches if t is None or t.frozen]
        cached = (
            remember
            and len(frozen) == len(branches)
            and all(self.cache.holds("plain" if t is None else t.fingerprint(), data) for t in frozen)
        )
        spread = self.runtime.world > 1
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad(), self._bar("evaluation", len(source)) as bar:
            for start, images in self._test_images(source, cached):
                stop = min(start + self.eval_batch, len(source))
                passes = Passes(
                    self.backbone,
                    images,
                    precision=self.runtime.autocast,
                    memory=self.cache.view(data, torch.arange(start, stop), len(source)) if remember else None,
                    gather=self.runtime.gather if spread else None,
                    part=self.runtime.part if spread else None,
                    rows=torch.arange(start, stop),
                )
                for name, value in read(passes).items():
                    parts.setdefault(name, []).append(value.float().cpu())
                bar.update(stop - start)
        return {name: torch.cat(chunks) for name, chunks in parts.items()}

    def _test_images(self, source: Source, cached: bool) -> Iterator[tuple[int, Tensor]]:
        """(first row, images) of the batches in order; nothing is decoded when all features are known."""
        starts = range(0, len(source), self.eval_batch)
        if cached:
            yield from ((start, torch.empty(0)) for start in starts)
            return
        batches = Batches(
            source,
            self.test_view,
            self.eval_batch,
            shuffle=False,
            seed=(0,),
            epoch=0,
            workers=self.workers,
            rank=self.runtime.rank,
            world=self.runtime.world,
        )
        for start, (_, images, _) in zip(starts, batches, strict=True):
            yield start, self.runtime.images(images)

    def _bar(self, name: str, total: int) -> Any:
        return tqdm(total=total, desc=name, unit="img", leave=False, disable=None if self.progress else True)


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    recipe: Recipe,
    slowed: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam; with ``decay="matrices"`` vectors and scalars have no weight decay. Each group holds
    its ``factor`` of the rate."""
    factors = {id(p): factor for part, factor in slowed for p in part}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay = recipe.weight_decay if recipe.decay == "all" or p.ndim >= 2 else 0.0
        groups.setdefault((decay, factors.get(id(p), 1.0)), []).append(p)
    options = [
        {"params": members, "weight_decay": decay, "factor": factor} for (decay, factor), members in groups.items()
    ]
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(options, lr=recipe.rate, momentum=recipe.momentum)
        case "adam":
            return torch.optim.AdamW(options, lr=recipe.rate)
        case other:
            raise ConfigError(f"Optimizer {other!r} does not exist: choose 'sgd' or 'adam'.")
