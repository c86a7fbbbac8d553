"""The forward passes of one batch: each is computed at most once, and branches share their common beginning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from evertune.backbones.backbone import Backbone, Sites


class Branch(Sites, Protocol):
    """A tuning as the passes see it: where it first acts, and whether it can still change."""

    @property
    def begins(self) -> float: ...
    @property
    def tunes_embedding(self) -> bool: ...
    @property
    def frozen(self) -> bool: ...
    def fingerprint(self) -> str: ...


class Slots(Protocol):
    """Tunings by number; ``mixes`` says whether ``select(ids)`` can serve a batch whose images differ in theirs."""

    @property
    def mixes(self) -> bool: ...
    def __getitem__(self, slot: int) -> Branch: ...
    def select(self, ids: Tensor) -> Branch: ...


class Chooser(Protocol):
    """Makes the tuning of a batch from what is known of each of its images, ``choice`` [B, ...]; its tokens, if it adds
    some, stand at a ``position`` [D] of the backbone."""

    def select(self, choice: Tensor, position: Tensor | None = None) -> Branch: ...


Steering = Callable[[Tensor | slice], Branch | None]
"""The tuning of some images of those that are asked for, by their places among them."""

ALL = slice(None)


class Memory(Protocol):
    """Remembers features of frozen branches by the rows of the batch: (features [B, L], known [B])."""

    def get(self, branch: str) -> tuple[Tensor, Tensor] | None: ...
    def put(self, branch: str, features: Tensor, rows: Tensor) -> None: ...


BUCKET = 16
"""Images of a batch that must share a slot to be passed as a batch of their own; a mixed pass costs less below."""

MULTIPLE = 8
"""Texts of a batch that go by their length are cut to a number of tokens that this divides."""

WORTH = 64
"""Tokens of padding that must be saved for shorter texts to be passed apart from longer ones."""


class Passes:
    """``passes(tuning)`` is the feature [B, L] (float32) of the batch under that tuning; ``passes()`` is the plain one.

    Asking twice costs once. A branch that begins somewhere inside reuses what an earlier branch computed up to there.
    Trainable branches keep their graph; all others run without one. With ``by_length`` short texts of a batch are not
    padded to its longest: the features are the same, and every product has fewer rows.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: Tensor | Callable[[], Tensor],
        *,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        memory: Memory | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
        part: Callable[[Tensor], Tensor] | None = None,
        rows: Tensor | None = None,
        by_length: bool = False,
    ) -> None:
        self.backbone = backbone
        self.rows = rows
        """Which rows of the data set these are [B], where that is known."""
        self.forwards = 0
        """Backbone passes run so far, for tests and cost reports."""
        self._inputs = inputs
        self._precision = precision
        self._memory = memory
        self._gather = gather
        self._part = part
        self._by_length = by_length
        self._features: dict[int, Tensor] = {}
        self._kept: list[Branch] = []  # holds the tunings so that their ids stay theirs

    def __call__(self, tuning: Branch | None = None) -> Tensor:
        frozen = tuning is None or tuning.frozen
        trained = not frozen and torch.is_grad_enabled()
        known = self._features.get(id(tuning))
        if known is not None and (known.requires_grad or not trained):
            return known
        memory = self._memory if frozen else None
        features = self._whole(by(tuning), trained) if memory is None else self._recalled(tuning, memory)
        self._features[id(tuning)] = features
        if tuning is not None:
            self._kept.append(tuning)
        return features

    def _whole(self, steering: Steering, trained: bool) -> Tensor:
        features = self._compute(steering, trained)
        return features if self._gather is None else self._gather(features)

    def _recalled(self, tuning: Branch | None, memory: Memory) -> Tensor:
        """The feature [B, L] under a frozen branch; remembered images are not passed again."""
        name = "plain" if tuning is None else tuning.fingerprint()
        remembered = memory.get(name)
        if remembered is None or (self._gather is not None and not remembered[1].all()):
            features = self._whole(by(tuning), False)
            memory.put(name, features, torch.arange(len(features)))
            return features
        features, missing = remembered[0], (~remembered[1]).nonzero()[:, 0]
        if len(missing):
            features[missing] = self._compute(by(tuning), False, missing)
            memory.put(name, features[missing], missing)
        return features

    def routed(self, slots: Slots, ids: Tensor) -> Tensor:
        """The feature [B, L] (float32) of each image under its own frozen tuning ``slots[ids[i]]``, without a graph.

        Images that share a slot with enough others of the batch are passed as a batch of their own, the rest in one
        mixed pass; remembered images are not passed again. An image's feature is the same either way.
        """
        ids = ids.cpu()
        missing = torch.ones(len(ids), dtype=torch.bool)
        features = torch.zeros(len(ids), self.backbone.shape.width, device=self.backbone.device)
        memory = self._memory
        names = {} if memory is None else {slot: slots[slot].fingerprint() for slot in torch.unique(ids).tolist()}
        for slot, name in names.items():
            if memory is not None and (remembered := memory.get(name)) is not None:
                rows = ((ids == slot) & remembered[1]).nonzero()[:, 0]
                features[rows], missing[rows] = remembered[0][rows], False
        if missing.any():
            fresh = self._route(slots, ids, missing)
            features[missing] = fresh[missing]
            for slot, name in names.items():
                rows = ((ids == slot) & missing).nonzero()[:, 0]
                if memory is not None and len(rows):
                    memory.put(name, features[rows], rows)
        return features

    def _route(self, slots: Slots, ids: Tensor, missing: Tensor) -> Tensor:
        """Features [B, L] of the ``missing`` images; the others' rows are empty."""
        if self._part is not None:
            ids, missing = self._part(ids), self._part(missing)
        features = torch.zeros(len(ids), self.backbone.shape.width, device=self.backbone.device)
        scattered = missing.clone()
        for slot in torch.unique(ids[missing]).tolist():
            rows = (missing & (ids == slot)).nonzero()[:, 0]
            if len(rows) >= BUCKET or not slots.mixes:
                features[rows] = self._compute(by(slots[slot]), False, rows)
                scattered[rows] = False
        if scattered.any():
            rows = scattered.nonzero()[:, 0]
            own = ids[rows]
            features[rows] = self._compute(lambda some: slots.select(own[some]), False, rows)
        return features if self._gather is None else self._gather(features)

    def steered(self, pool: Chooser, choice: Tensor) -> Tensor:
        """The feature [B, L] (float32) of each image under what ``pool`` makes of its row of ``choice`` [B, ...].

        All images are one pass, and nothing is remembered: what was chosen for one is hardly ever chosen again.
        """
        own = choice if self._part is None else self._part(choice)
        position = self.backbone.cls_position
        return self._whole(lambda some: pool.select(own[some], position), torch.is_grad_enabled())

    def summed(self, part: Tensor) -> Tensor:
        """Of a sum over the inputs of this process the sum over those of all."""
        return part if self._gather is None else self._gather(part[None]).sum(0)

    def _compute(self, steering: Steering, trained: bool, rows: Tensor | None = None) -> Tensor:
        """The feature of the images, or of some ``rows`` of them."""
        self.forwards += 1
        with self._precision():
            if len(self._parts) == 1:
                return self._pass(self._parts[0], steering(ALL), trained, rows)
            asked = torch.arange(len(self.inputs)) if rows is None else rows.cpu()
            found, order = [], []
            for part in self._parts:
                assert part.rows is not None
                some = torch.isin(asked, part.rows).nonzero()[:, 0]
                if len(some):
                    within = torch.searchsorted(part.rows, asked[some])
                    found.append(self._pass(part, steering(some), trained, within))
                    order.append(some)
            return torch.cat(found)[torch.cat(order).argsort()]

    def _pass(self, part: _Part, tuning: Branch | None, trained: bool, rows: Tensor | None) -> Tensor:
        depth = self.backbone.shape.depth
        # Where gradients are on, a trained branch may follow and reuse the tokens: inference mode would forbid that.
        no_graph = torch.no_grad if torch.is_grad_enabled() else torch.inference_mode
        if tuning is not None and tuning.tunes_embedding:
            with nullcontext() if trained else no_graph():
                inputs = part.inputs if rows is None else part.inputs[rows]
                tokens, at = self.backbone.embed(inputs, tuning), 0.0
        else:
            upto = depth - 1 if tuning is None else min(tuning.begins, depth - 1)
            with no_graph():
                tokens, at = self._shared(part, upto, tuning)
                tokens = tokens if rows is None or len(rows) == len(tokens) else tokens[rows]
            if trained and tokens.is_inference():  # made while gradients were off
                tokens = tokens.clone()
        mask = part.mask if rows is None or part.mask is None else part.mask[rows]
        with nullcontext() if trained else no_graph():
            tokens = self.backbone.run(tokens, tuning, at, depth, mask)
            features = self.backbone.read(tokens, tuning, mask).float()
        return features if trained else features.clone()  # a clone made outside is an ordinary tensor

    def _shared(self, part: _Part, upto: float, tuning: Branch | None) -> tuple[Tensor, float]:
        """Tokens as they are at the place ``upto`` or an earlier one, untouched by any tuning."""
        at = max((k for k in part.tokens if k <= upto), default=-1.0)
        if at < 0:
            at = 0.0
            part.tokens[0] = self.backbone.embed(part.inputs)
        if tuning is not None and at < upto:
            part.tokens[upto] = self.backbone.run(part.tokens[at], None, at, upto, part.mask)
            at = upto
        return part.tokens[at], at

    @property
    def inputs(self) -> Tensor:
        """The batch, [B, 3, S, S] in [0, 1] or token ids [B, N]; made when first needed."""
        if callable(self._inputs):
            self._inputs = self._inputs()
        return self._inputs

    @functools.cached_property
    def mask(self) -> Tensor | None:
        """Which tokens of the batch are no padding, bool [B, N]; None where all are."""
        return self.backbone.mask(self.inputs)

    @property
    def parts(self) -> list[Tensor]:
        """The batch as it is passed: as a whole, or by length."""
        return [part.inputs for part in self._parts]

    @functools.cached_property
    def _parts(self) -> list[_Part]:
        if not self._by_length or self.mask is None or not len(self.inputs):
            return [_Part(None, self.inputs, self.mask)]
        lengths = self.mask.sum(1).cpu()
        made = []
        for low, high in ranges(lengths, self.inputs.shape[1]):
            rows = ((lengths > low) & (lengths <= high)).nonzero()[:, 0]
            made.append(_Part(rows, self.inputs[rows, :high], self.mask[rows, :high]))
        return made


class _Part:
    """What of a batch is passed together, ``rows`` [P] of it, ascending, or None for all; and its tokens as they are at
    places that no tuning has touched."""

    def __init__(self, rows: Tensor | None, inputs: Tensor, mask: Tensor | None) -> None:
        self.rows, self.inputs, self.mask = rows, inputs, mask
        self.tokens: dict[float, Tensor] = {}


def by(tuning: Branch | None) -> Steering:
    """The same for all."""
    return lambda _: tuning


def ranges(lengths: Tensor, longest: int) -> list[tuple[int, int]]:
    """Texts of ``lengths`` [B] that are passed together, as (low, high]: more than ``low`` tokens, at most ``high``.

    >>> ranges(torch.tensor([5, 6, 7, 7, 8, 8, 8, 8, 20, 38, 40]), 40)
    [(-1, 8), (8, 40)]
    """
    stops = sorted(set((-(-lengths // MULTIPLE) * MULTIPLE).clamp(max=longest).tolist()))
    found, low = [], -1
    for stop, following in pairwise(stops):
        count = int(((lengths > low) & (lengths <= stop)).sum())
        if count * (following - stop) >= WORTH:
            found.append((low, stop))
            low = stop
    return [*found, (low, stops[-1])]
