"""Full fine-tuning beside the frozen weights: what is trained is how far each of them has moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Shape
from evertune.tuning.tuning import BlockTuning, Tuning


class FullBlock(BlockTuning):
    """x (W + ΔW)ᵀ + b + Δb for every linear map of a block, and y ⊙ (1 + γ) + β for what its norms y give.

    The gradients of ΔW, Δb and β are those of the weights themselves. For a norm's own scale w and shift c, that of γ
    is w ⊙ ∂w + c ⊙ ∂c: γ turns both together.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        maps = dict.fromkeys("qkvo", (shape.width, shape.width))
        maps |= {"fc1": (shape.hidden, shape.width), "fc2": (shape.width, shape.hidden)}
        norms = dict.fromkeys(("norm1", "norm2"), (shape.width,))
        self.weight = _zeros(maps)
        self.bias = _zeros({name: size[:1] for name, size in maps.items()})
        self.gain, self.shift = _zeros(norms), _zeros(norms)

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        return y + F.linear(x, self.weight[name], self.bias[name])

    def normed(self, name: str, y: Tensor) -> Tensor:
        return torch.addcmul(y + self.shift[name], y, self.gain[name])


class Full(Tuning):
    """All weights of the tuned blocks; equals the plain model until trained.

    As many numbers as the blocks have, and every linear map is computed twice, once for W and once for ΔW. Weight decay
    pulls towards the pre-trained weights, not to zero. The embedding and the last norm stay, and so do the scales of
    LayerScale and the norms of queries and keys, where there are any; a map without a bias gets one.
    """

    kind = "full"

    def __init__(self, shape: Shape, blocks: Iterable[int], generator: torch.Generator) -> None:
        super().__init__(shape, blocks)
        for i in self.indices:
            self.blocks[str(i)] = FullBlock(shape)


def _zeros(sizes: Mapping[str, tuple[int, ...]]) -> nn.ParameterDict:
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})
