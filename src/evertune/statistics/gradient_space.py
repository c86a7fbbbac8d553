"""The directions in which a linear layer must not change for what earlier tasks fed it (DualGPM, as InfLoRA keeps it:
Liang and Li, CVPR 2024, arXiv 2404.00228).

The gradient of a linear layer lies in the span of its inputs. So a change that is orthogonal to the inputs of earlier
tasks leaves what the layer gave for them as it was.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from evertune.statistics.growing import Growing


class SecondMoments(Growing):
    """Σ x xᵀ of the inputs of some layers, [layers, D, D] in float64; of none between two tasks."""

    of_data: ClassVar[dict[str, str]] = {"sums": "second moments of what some layers read, while a task is learned"}
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, 0, 0, dtype=torch.float64))

    def add(self, sums: Tensor) -> None:
        self.sums = self.sums + sums.to(self.sums) if len(self.sums) else sums.to(self.sums)

    def take(self) -> Tensor:
        """The sums, which are then gone from here."""
        taken, self.sums = self.sums, self.sums.new_zeros(0, 0, 0)
        return taken


class GradientSpace(nn.Module):
    """The space M of one layer's earlier inputs, kept as an orthonormal basis of it, or of its complement once that is
    smaller: half as many columns as there are dimensions serve both, those not needed are zero.

    Inputs are given as a matrix R [D, n] whose columns they are, or any other with the same R Rᵀ.
    """

    of_data: ClassVar[dict[str, str]] = {
        "basis": "main directions of what a layer read, over all tasks, or their complement",
        "count": "how many directions",
        "complement": "which of the two",
    }
    basis: Tensor
    count: Tensor
    complement: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(width, width // 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("complement", torch.tensor(False))

    @property
    def size(self) -> int:
        """Dimensions of M."""
        return len(self.basis) - int(self.count) if self.complement else int(self.count)

    def free(self, inputs: Tensor) -> Tensor:
        """What of R [D, n] is orthogonal to M: (I − M Mᵀ) R, or M⊥ M⊥ᵀ R, in float64."""
        inputs, basis = inputs.double(), self.basis.double()
        within = basis @ (basis.T @ inputs)
        return within if self.complement else inputs - within

    def design(self, inputs: Tensor, rank: int) -> Tensor:
        """Rows [rank, D] that are orthonormal, orthogonal to M, and as near to R [D, n] as so few can be.

        They are the main left singular vectors of what of R is orthogonal to M. Where that has fewer, rows of zeros
        follow: there is nothing left to learn in.
        """
        found = self._directions(inputs)[:, :rank]
        rows = self.basis.new_zeros(rank, len(self.basis))
        rows[: found.shape[1]] = found.T.to(rows)
        return rows

    def update(self, inputs: Tensor, share: float) -> None:
        """Take up main directions of R [D, n] until M holds ``share`` of ‖R‖²_F; at least one, of the first inputs."""
        free, total = self.free(inputs), inputs.double().square().sum()
        vectors = self._directions(inputs)
        missing = free.square().sum() - (vectors.T @ free).square().sum(1).cumsum(0)  # after 1, 2, … of them
        left = torch.cat([free.square().sum()[None], missing])
        count = int((left > (1 - share) * total).sum()) if share < 1 else vectors.shape[1]
        count = min(max(count, not self.size), vectors.shape[1])
        if count:
            self._take(vectors[:, :count])

    def _take(self, vectors: Tensor) -> None:
        """M gets these directions [D, r], which are orthonormal and orthogonal to it."""
        kept = self.basis[:, : int(self.count)].double()
        if self.complement:
            kept = _beside(vectors, within=kept)
        else:
            kept = torch.cat([kept, vectors], dim=1)
            if 2 * kept.shape[1] > len(kept):
                kept, self.complement = _beside(kept), torch.ones_like(self.complement)
        self.count.fill_(kept.shape[1])
        self.basis.zero_()
        self.basis[:, : kept.shape[1]] = kept.to(self.basis)

    def _directions(self, inputs: Tensor) -> Tensor:
        """The left singular vectors of what of R is orthogonal to M, those of nothing left out, [D, n] in float64."""
        vectors, strength, _ = torch.linalg.svd(self.free(inputs), full_matrices=False)
        scale = torch.linalg.matrix_norm(inputs.double(), 2)
        alive = int((strength > RESOLVED * scale).sum())
        return _orthogonal(self.free(vectors[:, :alive]))


RESOLVED = 1e-6
"""Singular values below this share of the largest are rounding: M is kept in float32."""


def _orthogonal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of columns [D, n] that are nearly one, in their order."""
    q, r = torch.linalg.qr(vectors)
    return cast(Tensor, q * r.diagonal().sign())


def _beside(vectors: Tensor, within: Tensor | None = None) -> Tensor:
    """An orthonormal basis of what is orthogonal to ``vectors`` [D, n], in all of the space or ``within`` a basis."""
    count = vectors.shape[1]
    if within is None:
        return cast(Tensor, torch.linalg.svd(vectors, full_matrices=True).U[:, count:])
    rest = within - vectors @ (vectors.T @ within)
    return cast(Tensor, torch.linalg.svd(rest, full_matrices=False).U[:, : within.shape[1] - count])
