"""A few images of new classes, learned on what was accumulated (HiDe-PET spec §11.3)."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.engine import Engine
from evertune.errors import ConfigError, DataError, StreamError, TrainingError
from evertune.heads import LinearHead
from evertune.learner import Learner
from evertune.methods import METHODS
from evertune.streams import Source
from evertune.streams.unlabelled import Images, unlabelled
from evertune.tuning import Bank, Tuning


class Sharing(Protocol):
    """A method that keeps sets of shared parameters."""

    g: Bank

    def nearest_shared(self, plain: Tensor) -> int | None: ...


@dataclass(frozen=True, eq=False)
class FewShot:
    """A linear head of its own on features under one shared set, or the plain model; no part of any learner.

    ``shared`` is the number of the set (None: the plain model), ``tuning`` a copy of it, so that a learner that learns
    on does not change what was learned here.
    """

    engine: Engine
    shared: int | None
    tuning: Tuning | None
    classes: tuple[str, ...]
    head: LinearHead

    def scores(self, images: Images) -> Tensor:
        """Scores [N, K] over ``classes``, on the CPU; ``images`` as in :meth:`Learner.scores`."""
        with torch.no_grad():
            source = unlabelled(images, self.engine.backbone.modality)
            scores: Tensor = self.head(_features(self.engine, source, self.tuning))
        return scores

    def predict(self, images: Images) -> list[str]:
        """The most likely class of each image."""
        return [self.classes[i] for i in self.scores(images).argmax(1).tolist()]

    def evaluate(self, test: Source) -> tuple[int, int]:
        """(correct, total) over all of ``test``.

        Raises
        ------
        StreamError
            The data holds classes that the support set lacked.
        """
        unknown = [name for name in test.present() if name not in self.classes]
        if unknown:
            raise StreamError(
                f"{test.name} holds classes that the support set lacked: {', '.join(unknown[:10])}. "
                f"Give images of them to learn from, or leave them out."
            )
        correct = self.scores(test).argmax(1) == _targets(test, self.classes)
        return int(correct.sum()), len(test)


def few_shot(
    learner: Learner,
    support: Source,
    *,
    epochs: int = 50,
    rate: float = 0.01,
    seed: int = 0,
    shared: int | Literal["auto"] | None = "auto",
) -> FewShot:
    """Learn the classes of ``support`` by a new linear head on the learner's features; the learner stays as it is.

    Parameters
    ----------
    support
        A few images of each new class, seen in the test view.
    epochs, rate
        Of Adam, at a constant rate; each epoch is one step on all of the support set.
    seed
        Of the head's first values.
    shared
        The shared set that makes the features: by its number, None for the plain model, or ``"auto"`` for that of the
        learned task to which most of the support set's plain features are nearest (the plain model, if there is none).

    Raises
    ------
    ConfigError
        The learner's method shares no parameters among tasks, there is no such set, or an option is out of range.
    StreamError
        The support set has fewer than two classes.
    TrainingError
        The head diverged.
    """
    if epochs < 1 or not 0 < rate < math.inf:
        raise ConfigError(
            f"A head of few shots needs epochs of at least 1 and a positive rate, not {epochs} and {rate}."
        )
    classes = support.present()
    if len(classes) < 2:
        raise StreamError(
            f"{support.name} has {f'one class, {classes[0]!r}' if classes else 'no images'}, so there is nothing to "
            f"tell apart: a support set needs images of at least two classes."
        )
    if shared == "auto":
        shared = _sharing(learner).nearest_shared(_features(learner.engine, support, None))
    tuning = None if shared is None else copy.deepcopy(_sharing(learner).g[shared])
    x = _features(learner.engine, support, tuning)
    head = _fit(x, _targets(support, classes), len(classes), epochs, rate, torch.Generator().manual_seed(seed))
    return FewShot(learner.engine, shared, tuning, classes, head)


def _features(engine: Engine, source: Source, tuning: Tuning | None) -> Tensor:
    """Features [N, L] under ``tuning`` (None: of the plain model) in the test view, on the CPU."""
    return engine.compute(source, (tuning,), lambda passes: {"features": passes(tuning)})["features"]


def _sharing(learner: Learner) -> Sharing:
    if not hasattr(learner.method, "nearest_shared"):
        able = ", ".join(name for name, method in METHODS.items() if hasattr(method, "nearest_shared"))
        raise ConfigError(
            f"{learner.method.name} shares no parameters among tasks; these methods do: {able}. "
            f"Use a learner of one of them, or shared=None for the plain model."
        )
    return cast(Sharing, learner.method)


def _targets(source: Source, classes: Sequence[str]) -> Tensor:
    """The labels [N] of a source as positions in ``classes``."""
    position = {name: i for i, name in enumerate(classes)}
    return torch.tensor([position.get(name, -1) for name in source.classes])[torch.as_tensor(source.labels)]


@torch.enable_grad()
def _fit(x: Tensor, y: Tensor, classes: int, epochs: int, rate: float, generator: torch.Generator) -> LinearHead:
    """A fresh head, trained on all of ``x`` [N, L] and ``y`` [N] at once in every epoch."""
    head = LinearHead(x.shape[1])
    head.grow(classes, generator)
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not all(p.isfinite().all() for p in head.parameters()):
        raise TrainingError(f"The head of few shots became infinite or not a number. Lower its rate ({rate}).")
    return head


# -- episodes ----------------------------------------------------------------------------------------------------------


def episodes(
    support: Source, query: Source, *, ways: int, shots: int, queries: int, count: int, seed: int = 0
) -> Iterator[tuple[Source, Source]]:
    """Tasks of few shots, drawn from two pools of different images: a support and a query set for each.

    Parameters
    ----------
    support, query
        The pools; their classes meet by name. Those with ``shots`` images in one and any in the other take part.
    ways
        Classes of an episode.
    shots
        Support images of each.
    queries
        Query images of each; all there are where there are fewer.
    count
        Episodes. The first ones do not depend on how many there are.
    seed
        With the number of the episode, it decides what is drawn.

    Raises
    ------
    ConfigError
        Fewer than two ways, another number below 1, or a negative seed.
    StreamError
        Fewer classes take part than there are ways, or both pools are the same.
    """
    if ways < 2 or min(shots, queries, count) < 1 or seed < 0:
        raise ConfigError(
            f"Episodes need at least 2 ways, 1 shot, 1 query, a count of 1 and a seed from 0, not ways={ways}, "
            f"shots={shots}, queries={queries}, count={count}, seed={seed}."
        )
    if query is support:
        raise StreamError(
            f"Support and query would be drawn from the same images of {support.name}: divide it into two pools first."
        )
    asked = set(query.present())
    able = [name for name in support.present() if name in asked and len(support.rows_of([name])) >= shots]
    if len(able) < ways:
        raise StreamError(
            f"{ways} ways, but {len(able)} classes have {shots} images in {support.name} and any in {query.name}. "
            f"Lower ways or shots."
        )
    return (
        _episode(support, query, able, (ways, shots, queries), np.random.default_rng((seed, number)))
        for number in range(count)
    )


def _episode(
    support: Source, query: Source, able: list[str], sizes: tuple[int, int, int], rng: np.random.Generator
) -> tuple[Source, Source]:
    ways, shots, queries = sizes
    names = [able[i] for i in rng.choice(len(able), ways, replace=False)]

    def draw(pool: Source, each: int) -> Source:
        return pool.select(np.concatenate([rng.permutation(pool.rows_of([name]))[:each] for name in names]))

    return draw(support, shots), draw(query, queries)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the episodes' values and half the width of its 95 % interval, 1.96 s / √n.

    The released code prints 1.96 s: where a single episode lies, not the mean of all.

    >>> mean_interval([0.0, 1.0, 2.0, 3.0, 4.0])
    (2.0, 1.3859292911256331)

    Raises
    ------
    DataError
        Fewer than two values, which have no spread.
    """
    if len(values) < 2:
        raise DataError(f"An interval needs at least two episodes, not {len(values)}.")
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))
