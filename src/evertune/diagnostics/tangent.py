"""How the deployed class scores move with a learner's tuning parameters: the Jacobian of the tangent kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from evertune.backbones import Backbone, ImageIdentity, Passes
from evertune.backbones.passes import Branch, Chooser, Slots
from evertune.errors import ConfigError, nearest
from evertune.methods import Method

CHUNK = 8
"""Images differentiated together. Memory grows with images times outputs; on a CPU more are hardly faster."""

Slot = int | None
"""The task whose own tuning an image is routed to; None where the method does not ask."""


class GraphPasses(Passes):
    """Passes that keep the graph of every branch, of frozen ones too, in the precision of the images."""

    def __call__(self, tuning: Branch | None = None) -> Tensor:
        if id(tuning) not in self._features:
            self._features[id(tuning)] = self.backbone(self.inputs, tuning)
        return self._features[id(tuning)]

    def routed(self, slots: Slots, ids: Tensor) -> Tensor:
        """The feature [B, L] of images that are all routed to one slot, ``ids`` [B]: the decision is a constant."""
        return self(slots[int(ids[0])])

    def steered(self, pool: Chooser, choice: Tensor) -> Tensor:
        """The feature [B, L] of images that are steered by what ``pool`` chooses for them."""
        self._kept.append(pool.select(choice, self.backbone.cls_position))
        return self(self._kept[-1])

    @property
    def features(self) -> tuple[Tensor, ...]:
        """Every feature [B, L] that was asked for, in the order of asking."""
        return tuple(self._features.values())


class Deployed(nn.Module):
    """A method and its backbone as one module, so that both can be called with other values than their own."""

    def __init__(self, method: Method, backbone: Backbone, parts: Sequence[str] | None = None) -> None:
        super().__init__()
        self.method, self.backbone, self.parts = method, backbone, parts

    def forward(self, images: Tensor, slot: Slot) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Class scores [B, P, K] of the parts or of the answer alone, and the features [B, L] they were made from."""
        passes = GraphPasses(self.backbone, images)
        if slot is None:
            found = self.method.scores(passes)
            scores = [found[name] for name in self.parts or (next(iter(found)),)]
        else:
            scores = [self.method.told(passes, torch.full((len(images),), slot))]
        return torch.stack(scores, 1), passes.features


class Tangent:
    """The deployed scores as a function of the tuning parameters alone, everything else constant (NTK-CL spec §3.4 b).

    Nothing of the learner is changed: parameters are replaced for the length of a call, and the learner's own stay
    frozen or trainable as they are. Routing decisions are constants. Dropout is off; precision is ``dtype`` whatever
    the learner's.

    Parameters
    ----------
    method, backbone
        Of a learner that has learned something.
    outputs
        Scores [K] of more classes than this are projected on so many fixed random orthonormal directions of the class
        space, of fewer are taken as they are. Class targets must be projected alike: :meth:`project`.
    seed
        Of the directions.
    dtype
        ``float32`` or ``float64``.
    names
        Only these of the method's ``tangent_parameters``.
    parts
        The scores of these parts of the answer side by side, an image's rows by part and then by output; without, the
        scores that the method answers with.
    progress
        Whether to show how far :meth:`jacobians` is, on a terminal.

    Raises
    ------
    ConfigError
        The backbone reads no images; there is no parameter to differentiate by; one or a part does not exist; or less
        than one output.
    """

    def __init__(
        self,
        method: Method,
        backbone: Backbone,
        *,
        outputs: int = 8,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        names: Iterable[str] | None = None,
        parts: Sequence[str] | None = None,
        progress: bool = False,
    ) -> None:
        if outputs < 1:
            raise ConfigError(f"outputs={outputs} must be at least 1.")
        identity = backbone.identity
        if not isinstance(identity, ImageIdentity):
            raise ConfigError(
                f"The tangent kernel is taken on images, and {identity.name} reads {backbone.modality}s: a learner of "
                "these cannot be diagnosed."
            )
        found = method.tangent_parameters
        chosen = list(found if names is None else names)
        for name in chosen:
            if name not in found:
                raise ConfigError(f"{method.name} has no tuning parameter {name!r}. {nearest(name, found)}")
        if not chosen:
            raise ConfigError(
                f"{method.name} has no trained tuning parameters, so its scores have no tangent: diagnose a method "
                "that tunes the backbone, such as safe, hide_pet or ranpac."
            )
        self.method, self.backbone, self.dtype, self.progress = method.eval(), backbone, dtype, progress
        self._deployed = Deployed(method, backbone, parts)
        self.parameters = {f"method.{name}": p.detach().to(dtype) for name, p in found.items() if name in chosen}
        everything = (*self._deployed.named_parameters(), *self._deployed.named_buffers())
        self._constants = {name: t.detach().to(dtype) for name, t in everything if t.dtype == torch.float32}
        self._probe = torch.zeros(1, 3, *[identity.input_size] * 2, dtype=dtype, device=backbone.device)
        if parts:
            self._require_parts(parts)
        count, classes = self._scores(self._probe, next(iter(self.groups(self._probe))))[0].shape[1:]
        self.outputs = count * min(outputs, classes)
        """Rows of an image."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(classes, min(outputs, classes), dtype=torch.float64, generator=generator)
        directions = torch.linalg.qr(draw)[0] if classes > outputs else torch.eye(classes, dtype=torch.float64)
        self.directions = directions.to(backbone.device, dtype)  # [K, o]
        self._live: dict[Slot, tuple[str, ...]] = {}

    def project(self, scores: Tensor) -> Tensor:
        """Scores or targets [..., K] on the directions: [..., o]."""
        return scores.to(self.directions) @ self.directions

    def groups(self, images: Tensor) -> dict[Slot, Tensor]:
        """Which rows of images [n, 3, S, S] are routed alike, by slot."""
        with torch.no_grad():
            parts = (self._ready(part).float() for part in torch.split(images, CHUNK))
            found = [self.method.identify(Passes(self.backbone, part)) for part in parts]
        slots = [slot for slot in found if slot is not None]
        if not slots:
            return {None: torch.arange(len(images))}
        ids = torch.cat(slots).cpu()
        return {int(slot): (ids == slot).nonzero()[:, 0] for slot in torch.unique(ids)}

    def live(self, slot: Slot) -> tuple[str, ...]:
        """The parameters that the scores of images of this slot depend on; all other columns are zero."""
        if slot not in self._live:
            leaves = {name: p.clone().requires_grad_() for name, p in self.parameters.items()}
            with torch.enable_grad():
                total = self._scores(self._probe, slot, leaves)[0].sum()
            gradients = (
                torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if total.requires_grad else ()
            )
            self._live[slot] = tuple(name for name, g in zip(leaves, gradients, strict=False) if g is not None)
        return self._live[slot]

    def width(self, slot: Slot) -> int:
        """How many numbers these parameters are."""
        return sum(self.parameters[name].numel() for name in self.live(slot))

    def jacobians(
        self, images: Tensor, groups: Mapping[Slot, Tensor] | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Rows [b] of the images and, by parameter, the Jacobian [b, o, p] of their outputs, a few images at a time.

        Images are uint8 [n, 3, S, S], or floats in [0, 1]. A parameter that the rows do not depend on is left out.
        """
        bar = tqdm(total=len(images), desc="tangent", unit="img", leave=False, disable=None if self.progress else True)
        for slot, rows in (self.groups(images) if groups is None else groups).items():
            live = {name: self.parameters[name] for name in self.live(slot)}

            def outputs(parameters: dict[str, Tensor], image: Tensor, slot: Slot = slot) -> Tensor:
                return self.project(self._scores(image[None], slot, parameters)[0]).flatten()

            differentiate = cast(Callable[..., dict[str, Tensor]], vmap(jacrev(outputs), in_dims=(None, 0)))
            for part in torch.split(rows, CHUNK):
                with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be vectorised
                    found = differentiate(live, self._ready(images[part])) if live else {}
                bar.update(len(part))
                yield part, {name: jacobian.detach().flatten(2) for name, jacobian in found.items()}
        bar.close()

    def evaluate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Projected scores [n, o], and features [n, F] of unit length: all branches' side by side, each normalised."""
        scores = torch.zeros(len(images), self.outputs, dtype=self.dtype)
        features: list[tuple[Tensor, Tensor]] = []
        for slot, rows in self.groups(images).items():
            for part in torch.split(rows, CHUNK):
                with torch.no_grad():
                    answer, parts = self._scores(self._ready(images[part]), slot)
                scores[part] = self.project(answer).flatten(1).cpu()
                joined = torch.cat([F.normalize(z, dim=1) for z in parts], dim=1) / math.sqrt(len(parts))
                features.append((part, joined.cpu()))
        order = torch.cat([rows for rows, _ in features]).argsort()
        return scores, torch.cat([z for _, z in features])[order]

    def _require_parts(self, parts: Sequence[str]) -> None:
        with torch.no_grad():
            if self.method.identify(Passes(self.backbone, self._probe.float())) is not None:
                raise ConfigError(f"{self.method.name} routes images and has one kind of scores then: leave parts out.")
            known = list(self.method.scores(Passes(self.backbone, self._probe.float())))
        for name in parts:
            if name not in known:
                raise ConfigError(f"{self.method.name} has no scores of the part {name!r}. {nearest(name, known)}")

    def _scores(
        self, images: Tensor, slot: Slot, parameters: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        values: dict[str, Any] = {**self._constants, **self.parameters, **(parameters or {})}
        return cast(tuple[Tensor, tuple[Tensor, ...]], functional_call(self._deployed, values, (images, slot)))

    def _ready(self, images: Tensor) -> Tensor:
        images = images.to(self.backbone.device)
        return images.to(self.dtype) / 255 if images.dtype == torch.uint8 else images.to(self.dtype)
