"""ntk_branches.npz: the sites can express what NTK-CL puts into a block.

The tunings here are local to the test: one short :class:`BlockTuning` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.tuning import BlockTuning, Tuning

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]


class Assembled(Tuning):
    kind = "assembled"

    def __init__(self, vit: TimmViT, blocks: Iterable[BlockTuning]) -> None:
        parts = list(blocks)
        super().__init__(vit.shape, range(len(parts)))
        self.blocks = nn.ModuleDict({str(i): part for i, part in enumerate(parts)})


class Channel(BlockTuning):
    """NTK-CL's adapter beside the MLP, factor 0.1."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def beside_mlp(self, x: Tensor) -> Tensor:
        w = self.weights
        hidden = F.relu(F.linear(x, w["down.weight"], w["down.bias"]))
        return 0.1 * F.linear(hidden, w["up.weight"], w["up.bias"])


class Patch(BlockTuning):
    """NTK-CL's prompts: mixtures of the tokens, normalised, behind CLS; the first block gives them no residual."""

    def __init__(self, weights: dict[str, Tensor], first: bool) -> None:
        super().__init__()
        self.weights, self.first = weights, first

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self.weights
        count = len(w["generator.bias"])
        cls, old, patches = (x[:, :1], None, x[:, 1:]) if self.first else x.split([1, count, x.shape[1] - count - 1], 1)
        mixed = w["generator.weight"] @ torch.cat([cls, patches], 1) + w["generator.bias"][:, None]
        new = F.layer_norm(mixed, mixed.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-6)
        if old is not None:
            new = new + 0.1 * old
        residual = torch.cat([cls, torch.zeros_like(new), patches], 1) if old is None else x
        return torch.cat([cls, new, patches], 1), residual


def branch(vit: TimmViT, golden: Any, owner: str, kind: str) -> tuple[Assembled, list[dict[str, Tensor]]]:
    parts = {
        "channel": ("down.weight", "down.bias", "up.weight", "up.bias"),
        "patch": ("generator.weight", "generator.bias", "norm.weight", "norm.bias"),
    }[kind]
    weights = [
        {n: golden[f"{owner}.block{i}.{kind}.{n}"].requires_grad_() for n in parts} for i in range(vit.shape.depth)
    ]
    blocks = [Channel(w) if kind == "channel" else Patch(w, first=i == 0) for i, w in enumerate(weights)]
    return Assembled(vit, blocks), weights


@pytest.mark.parametrize(
    ("kind", "checked"),
    [
        ("channel", [(0, "down.weight"), (11, "up.bias")]),
        ("patch", [(1, "generator.weight"), (4, "norm.weight")]),
    ],
)
def test_ntk_branches(vit: TimmViT, vectors: Read, kind: str, checked: list[tuple[int, str]]) -> None:
    golden = vectors("ntk_branches")
    images = golden["images"]
    cur, weights = branch(vit, golden, "cur", kind)
    pre, _ = branch(vit, golden, "pre", kind)
    both = torch.cat([vit(images, pre), vit(images, cur)], dim=1)
    golden.check_features(f"S2.{kind}_features", both)
    golden.check_features(f"S3.{kind}_features", torch.cat([vit(images), both], dim=1))
    both.square().sum().backward()
    for block, name in checked:
        golden.check_gradient(f"grad.cur.block{block}.{kind}.{name}", weights[block][name].grad)


def test_ntk_patch_tokens(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("ntk_branches")
    cur, _ = branch(vit, golden, "cur", "patch")
    tokens = vit.embed(golden["images"][:1])
    for block in (0, 1):
        tokens = vit.run(tokens, cur, block, block + 1)
        golden.check_features(f"cur.patch_branch.tokens_after_block{block}_image0", tokens)


def test_ntk_branches_as_released_at_first(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("ntk_branches")
    for kind in ("channel", "patch"):
        tuning, weights = branch(vit, golden, "cur", kind)
        for block in weights:
            for name, value in block.items():
                if kind == "patch" or name != "down.weight":
                    value.data.zero_()
        features = vit(golden["images"], tuning)
        golden.check_features(f"released_init.{kind}_features", torch.cat([features, features], dim=1))
    golden.check_features("ptm_features", vit(golden["images"]))
