"""The forward passes of one batch: each is computed at most once, and branches share their common beginning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from evertune.backbones.backbone import Backbone, Sites


class Branch(Sites, Protocol):
    """A tuning as the passes see it: where it first acts, and whether it can still change."""

    @property
    def first_block(self) -> int: ...
    @property
    def tunes_embedding(self) -> bool: ...
    @property
    def frozen(self) -> bool: ...
    def fingerprint(self) -> str: ...


class Memory(Protocol):
    """Remembers features of frozen branches by example."""

    def get(self, branch: str) -> Tensor | None: ...
    def put(self, branch: str, features: Tensor) -> None: ...


class Passes:
    """``passes(tuning)`` is the feature [B, L] (float32) of the batch under that tuning; ``passes()`` is the plain one.

    Asking twice costs once. A branch that starts to differ at block k reuses what an earlier branch computed up to
    there. Trainable branches keep their graph; all others run without one.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Tensor | Callable[[], Tensor],
        *,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        memory: Memory | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.forwards = 0
        """Backbone passes run so far, for tests and cost reports."""
        self._images = images
        self._precision = precision
        self._memory = memory
        self._gather = gather
        self._features: dict[int, Tensor] = {}
        self._tokens: dict[int, Tensor] = {}
        self._kept: list[Branch] = []  # holds the tunings so that their ids stay theirs

    def __call__(self, tuning: Branch | None = None) -> Tensor:
        frozen = tuning is None or tuning.frozen
        trained = not frozen and torch.is_grad_enabled()
        known = self._features.get(id(tuning))
        if known is not None and (known.requires_grad or not trained):
            return known
        memory = self._memory if frozen else None
        name = "" if memory is None else "plain" if tuning is None else tuning.fingerprint()
        features = None if memory is None else memory.get(name)
        if features is None:
            features = self._compute(tuning, trained)
            if self._gather is not None:
                features = self._gather(features)
            if memory is not None:
                memory.put(name, features)
        self._features[id(tuning)] = features
        if tuning is not None:
            self._kept.append(tuning)
        return features

    def _compute(self, tuning: Branch | None, trained: bool) -> Tensor:
        self.forwards += 1
        depth = self.backbone.shape.depth
        # Where gradients are on, a trained branch may follow and reuse the tokens: inference mode would forbid that.
        no_graph = torch.no_grad if torch.is_grad_enabled() else torch.inference_mode
        with self._precision():
            if tuning is not None and tuning.tunes_embedding:
                with nullcontext() if trained else no_graph():
                    tokens, at = self.backbone.embed(self.images, tuning), 0
            else:
                upto = depth - 1 if tuning is None else min(tuning.first_block, depth - 1)
                with no_graph():
                    tokens, at = self._shared(upto, tuning)
                if trained and tokens.is_inference():  # made while gradients were off
                    tokens = tokens.clone()
            with nullcontext() if trained else no_graph():
                features = self.backbone.read(self.backbone.run(tokens, tuning, at, depth), tuning).float()
        return features if trained else features.clone()  # a clone made outside is an ordinary tensor

    def _shared(self, upto: int, tuning: Branch | None) -> tuple[Tensor, int]:
        """Tokens as block ``upto`` or an earlier one sees them, untouched by any tuning."""
        at = max((k for k in self._tokens if k <= upto), default=-1)
        if at < 0:
            at = 0
            self._tokens[0] = self.backbone.embed(self.images)
        if tuning is not None and at < upto:
            self._tokens[upto] = self.backbone.run(self._tokens[at], None, at, upto)
            at = upto
        return self._tokens[at], at

    @property
    def images(self) -> Tensor:
        """The batch, [B, 3, S, S] in [0, 1]; made when first needed."""
        if callable(self._images):
            self._images = self._images()
        return self._images
