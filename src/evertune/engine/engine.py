"""Runs the phases of a method on a task; knows nothing of any paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from evertune.backbones import Backbone, Passes
from evertune.backbones.passes import Memory
from evertune.engine.cache import FeatureCache
from evertune.engine.conditions import Conditions
from evertune.engine.descent import Descent
from evertune.engine.disk_cache import DiskCache
from evertune.engine.feed import Feed
from evertune.engine.meter import Meter, alike
from evertune.engine.progress import PhaseReport, Progress
from evertune.engine.runtime import Runtime, Seeds
from evertune.engine.shelf import Shelf
from evertune.errors import DataError
from evertune.methods import Collect, Method, Optimise, Solve, TaskInfo
from evertune.streams import Source
from evertune.streams.pixels import Pixels
from evertune.streams.views import View
from evertune.tuning import Tuning

CHECK_EVERY = 10
"""Steps between two looks at the loss: each look makes an accelerator wait."""


class Engine:
    """One backbone, one runtime, the views of the data."""

    def __init__(
        self,
        backbone: Backbone,
        runtime: Runtime,
        *,
        train_view: View,
        test_view: View,
        seeds: Seeds,
        eval_batch: int = 128,
        workers: int = 0,
        progress: bool = True,
        disk: DiskCache | None = None,
        pixels: str = "exact",
    ) -> None:
        self.backbone = backbone.to(runtime.device)
        self.runtime = runtime
        self.seeds = seeds
        self.progress = progress and runtime.main
        self.cache = FeatureCache()
        self.counts = False
        """Whether forward equivalents of learning are counted, each phase's on a sample of its batches."""
        self.meter = Meter(self.backbone, runtime.autocast)
        self.feed = Feed(
            self.backbone,
            runtime,
            train_view=train_view,
            test_view=test_view,
            eval_batch=eval_batch,
            workers=workers,
            pixels=pixels,
        )
        self.disk = disk
        if disk is not None and not runtime.main:
            disk.writable = False  # one of several processes writes for all
        self._conditions = Conditions(self.backbone, test_view, runtime)

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(
        self, method: Method, task: TaskInfo, source: Source, indices: np.ndarray, progress: Progress | None = None
    ) -> Iterator[PhaseReport]:
        """Run every phase of ``task``; ``indices`` maps the labels of ``source`` to class indices.

        ``progress`` is told how far it has come, and may begin further on than at the first phase.

        Raises
        ------
        DataError
            The examples are not of the kind that the backbone reads, or beyond what it reads.
        TrainingError
            The loss became infinite or not a number.
        """
        self.require(source, self.feed.train_view, self.feed.test_view)
        progress = Progress(self.runtime) if progress is None else progress
        progress.begin(method)
        decoded = self.feed.decoded(source)
        for number, phase in enumerate(method.phases(task)):
            if number < progress.place.phase:
                continue  # over before a stop
            images = parameters = 0
            losses: Mapping[str, float] = {}
            match phase:
                case Optimise():
                    parameters = trained(phase)
                    seed = (self.seeds.augmentation, task.index, number)
                    images, losses = self._optimise(method, phase, source, indices, seed, decoded, progress)
                case Collect():
                    images = self._collect(method, phase, source, indices, decoded, progress)
                case Solve():
                    with torch.no_grad():
                        phase.run()
                    method.to(self.runtime.device)
                    parameters = trained(phase)
            yield progress.finished(phase.name, type(phase).__name__.lower(), images, losses, parameters)
        method.tasks_seen += 1
        self.cache.keep({"plain", *(t.fingerprint() for t in method.branches if t is not None and t.frozen)})

    def _optimise(
        self,
        method: Method,
        phase: Optimise,
        source: Source,
        indices: np.ndarray,
        seed: tuple[int, ...],
        decoded: Pixels | None,
        progress: Progress,
    ) -> tuple[int, dict[str, float]]:
        recipe, begun = phase.recipe, progress.place
        descent = Descent(phase, self.runtime)
        method.train()
        means: dict[str, float] = {}
        steps = -(-len(source) // recipe.batch_size)
        devices = range(torch.cuda.device_count())  # the seed below reaches them all
        with torch.random.fork_rng(devices), self._bar(phase.name, recipe.epochs * len(source)) as bar:
            torch.manual_seed(int(np.random.SeedSequence((*seed, self.runtime.rank)).generate_state(1)[0]))
            progress.resume(descent)
            bar.update(begun.epoch * len(source) + min(begun.step * recipe.batch_size, len(source)))
            for epoch in range(begun.epoch, recipe.epochs):
                first = begun.step if epoch == begun.epoch else 0
                descent.enter(epoch)
                batches = self.feed.training(
                    source, indices, recipe, seed, epoch, decoded=decoded, bank=descent.bank, start=first
                )
                for step, batch in enumerate(batches, start=first):
                    whole = min(recipe.batch_size, len(source) - step * recipe.batch_size)
                    late = epoch > 0 and progress.forwards is None  # what was before a stop was not counted
                    sample = 0 if step or late else alike(recipe, epoch) * len(source)
                    with self._counting(batch.passes, progress, sample):
                        descent.step(batch, whole)
                    if step % CHECK_EVERY == 0 or step == steps - 1 or progress.eager:
                        descent.require_finite(epoch, step)
                        progress.reached(epoch, step + 1, descent)
                    bar.update(whole)
                means = descent.leave(steps)
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})
        descent.optimizer.zero_grad(set_to_none=True)
        method.eval()
        return recipe.epochs * len(source), means

    def _collect(
        self,
        method: Method,
        phase: Collect,
        source: Source,
        indices: np.ndarray,
        decoded: Pixels | None,
        progress: Progress,
    ) -> int:
        method.eval()
        passed = progress.place.step
        with torch.no_grad(), self._bar(phase.name, len(source)) as bar, self._shelf(source) as shelf:
            bar.update(passed)
            for batch in self.feed.collecting(source, indices, decoded=decoded, shelf=shelf, start=passed):
                middle = passed <= len(source) // 2 < passed + len(batch.labels)  # texts come by their length
                with self._counting(batch.passes, progress, len(source) if middle else 0):
                    phase.update(batch)
                passed += len(batch.labels)
                progress.reached(0, passed)
                bar.update(len(batch.labels))
        return len(source)

    def _counting(self, passes: Passes, progress: Progress, examples: int) -> AbstractContextManager[None]:
        """What happens inside to a batch happens alike to so many ``examples`` of the phase."""
        if not self.counts or not examples:
            return nullcontext()
        return self.meter.counting(passes, lambda each: progress.count(each * examples))

    # -- prediction --------------------------------------------------------------------------------------------------

    def scores(self, method: Method, source: Source, *, remember: bool = False) -> dict[str, Tensor]:
        """Class scores [N, K] of every example by part."""
        method.eval()
        return self.compute(source, method.branches, method.scores, remember=remember)

    def features(self, source: Source, *, remember: bool = False) -> Tensor:
        """Features [N, L] of the plain backbone in the test view."""
        made = self.compute(source, (None,), lambda passes: {"features": passes()}, remember=remember, shelved=True)
        return made["features"]

    def compute(
        self,
        source: Source,
        branches: Sequence[Tuning | None],
        read: Callable[[Passes], Mapping[str, Tensor]],
        *,
        remember: bool = False,
        shelved: bool = False,
    ) -> dict[str, Tensor]:
        """``read`` of every batch in the test view, joined, on the CPU.

        With ``remember``, for data that is evaluated again and again, features of frozen branches are computed once per
        data set; if ``branches`` are all there is to know and all are known, no image is even decoded. With either,
        plain features are looked up and kept on disk, where there is a cache.

        Raises
        ------
        DataError
            The examples are not of the kind that the backbone reads, or beyond what it reads.
        """
        self.require(source, self.feed.test_view)
        data = source.digest if remember else ""
        frozen = [t for t in branches if t is None or t.frozen]
        order = self.feed.order(source)
        parts: dict[str, list[Tensor]] = {}
        with (
            torch.no_grad(),
            self._bar("evaluation", len(source)) as bar,
            self._shelf(source, remember or shelved) as shelf,
        ):

            def held(tuning: Tuning | None) -> bool:
                if tuning is None and shelf is not None:
                    return shelf.complete
                return remember and self.cache.holds("plain" if tuning is None else tuning.fingerprint(), data)

            def memory(rows: Tensor) -> Memory | None:
                own = self.cache.view(data, rows, len(source)) if remember else None
                return own if shelf is None else shelf.view(rows, self.runtime.device, own)

            known = bool(branches) and len(frozen) == len(branches) and all(map(held, frozen))
            for rows, passes in self.feed.asking(source, order, memory, decode=not known):
                for name, value in read(passes).items():
                    parts.setdefault(name, []).append(value.float().cpu())
                bar.update(len(rows))
        back = torch.from_numpy(order).argsort()
        return {name: torch.cat(chunks)[back] for name, chunks in parts.items()}

    def forwards(self, method: Method, source: Source) -> float:
        """Forward equivalents of one prediction, nothing known before; counted over a batch of ``source``."""
        self.require(source, self.feed.test_view)
        method.eval()
        first = max(0, len(source) - self.feed.eval_batch) // 2
        rows = self.feed.order(source)[first : first + self.feed.eval_batch]
        found: list[float] = []
        with torch.no_grad():
            for _, passes in self.feed.asking(source, rows, lambda _: None):
                with self.meter.counting(passes, found.append):
                    method.scores(passes)
        return sum(found)

    def require(self, source: Source, *views: View) -> None:
        """DataError if the backbone does not read what the source holds, or a view cannot show it."""
        kind = self.backbone.modality
        if source.modality != kind:
            name = self.backbone.identity.name
            other = "'minilm' or 'hf:FOLDER'" if kind == "image" else "'embedded' or a vision transformer of timm's"
            raise DataError(
                f"{source.name} holds {source.modality}s, and the backbone {name} reads {kind}s: "
                f"choose a backbone for {source.modality}s ({other}), or give {kind}s."
            )
        for view in views:
            view.check(source)

    @contextmanager
    def _shelf(self, source: Source, wanted: bool = True) -> Iterator[Shelf | None]:
        """What is on disk of ``source``, and a place for what is missing; None without a cache."""
        if self.disk is None or not wanted:
            yield None
            return
        try:
            shelf = self.disk.shelf(source, self._conditions.describe())
        except DataError as error:  # the digest reads the whole data set, of which this pass may need a part
            warnings.warn(f"No features of {source.name} are looked up or kept: {error}", stacklevel=2)
            yield None
            return
        if self.runtime.world > 1:  # processes may see the folder at different moments, but must pass the same rows
            counts = self.runtime.sum(shelf.known.long().to(self.runtime.device))
            shelf.known = (counts == self.runtime.world).cpu()
        try:
            yield shelf
        finally:
            shelf.close()

    def _bar(self, name: str, total: int) -> Any:
        return tqdm(
            total=total,
            desc=name,
            unit="img" if self.backbone.modality == "image" else "text",
            leave=False,
            disable=None if self.progress else True,
        )


def trained(phase: Optimise | Solve) -> int:
    """How many parameters it trains."""
    return sum(p.numel() for p in phase.parameters() if p.requires_grad)
