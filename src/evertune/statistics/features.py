"""Features of the task being learned; forgotten when it is learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from evertune.statistics.gram import CHUNK
from evertune.statistics.growing import Growing


class TaskFeatures(Growing):
    """Features [N, L] and class indices [N] of the current task. Its state holds all that was added, at any moment."""

    of_data: ClassVar[dict[str, str]] = {"*": "features of every example, until the task is learned"}
    features: Tensor
    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(0, 0))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        self._parts.append((features, labels))

    def close(self) -> None:
        """Join what was added to what there is."""
        if self._parts:
            first = [(self.features, self.labels)] if len(self.labels) else []
            features, labels = (torch.cat(part) for part in zip(*first, *self._parts, strict=True))
            self.features, self.labels = features, labels
            self._parts = []

    def take(self) -> tuple[Tensor, Tensor]:
        """All that was added, which is not kept any longer."""
        self.close()
        taken = self.features, self.labels
        self.clear()
        return taken

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few thousand rows at a time, so that lifting them to many features stays small."""
        yield from zip(torch.split(self.features, CHUNK), torch.split(self.labels, CHUNK), strict=True)

    def clear(self) -> None:
        self._parts = []
        self.features, self.labels = self.features.new_zeros(0, 0), self.labels.new_zeros(0)

    def _save_to_state_dict(self, *args: Any) -> None:
        """A pass may stop anywhere: what it has added so far is part of the state."""
        self.close()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        """A state takes the place of what was collected since: half a pass must not leak into the next task."""
        self._parts = []
        super()._load_from_state_dict(*args)

    def means(self, classes: tuple[int, ...]) -> Tensor:
        """Mean of the normalised features of each class, [C, L] (imprinting)."""
        unit = torch.nn.functional.normalize(self.features, dim=1)
        return torch.stack([unit[self.labels == c].mean(0) for c in classes])
