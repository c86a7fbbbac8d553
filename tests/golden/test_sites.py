"""hide_tuning_*.npz, ntk_branches.npz: the sites can express what HiDe-PET and NTK-CL put into a block.

The tunings here are local to the test: one short :class:`BlockTuning` each, with a slot per sample where a bank mixes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import TimmViT
from evertune.tuning import BlockTuning, Tuning, make_tuning

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]
SLOTS = ["slot0", "slot1", "slot2", "mixed"]
TUNED = 5
"""HiDe-PET tunes blocks 0 to 4."""


class Assembled(Tuning):
    kind = "assembled"

    def __init__(self, vit: TimmViT, blocks: Iterable[BlockTuning], prepended: int = 0) -> None:
        parts = list(blocks)
        super().__init__(vit.shape, range(len(parts)))
        self.blocks = nn.ModuleDict({str(i): part for i, part in enumerate(parts)})
        self.prepended = prepended


class LowRank(BlockTuning):
    """Δ = s · x A B for k and v; A is [B, in, r], B is [B, r, out]."""

    def __init__(self, factors: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.factors, self.scale = factors, scale

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        if name not in self.factors:
            return y
        a, b = self.factors[name]
        return y + self.scale * (x @ a @ b)


class SequentialAdapter(BlockTuning):
    def __init__(self, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> None:
        super().__init__()
        self.down, self.down_bias, self.up, self.up_bias = down, down_bias[:, None], up, up_bias[:, None]

    def attended(self, y: Tensor) -> Tensor:
        return y + F.relu(y @ self.down + self.down_bias) @ self.up + self.up_bias


class Prefix(BlockTuning):
    """Key and value prefixes [B, p, D]."""

    def __init__(self, key: Tensor, value: Tensor, heads: int) -> None:
        super().__init__()
        self.extra = tuple(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (key, value))

    def prefix(self) -> tuple[Tensor, Tensor]:
        key, value = self.extra
        return key, value


class KeptPrompts(BlockTuning):
    """Prompts [B, p, D] put in front of everything, and kept."""

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.prompts = prompts

    def tokens_in(self, x: Tensor) -> Tensor:
        return torch.cat([self.prompts, x], dim=1)


def slots(golden: Any, which: str) -> Tensor:
    """The slot of each of the four images."""
    return golden["slot_ids"] if which == "mixed" else torch.full((4,), int(which[-1]))


@pytest.mark.parametrize("which", SLOTS)
def test_hide_lora(vit: TimmViT, vectors: Read, which: str) -> None:
    golden = vectors("hide_tuning_lora")
    bank = {f"{n}.{m}": golden[f"bank.{n}.{m}"].requires_grad_() for n in "kv" for m in "AB"}
    ids = slots(golden, which)

    def block(i: int) -> BlockTuning:
        return LowRank({n: (bank[f"{n}.A"][ids, i], bank[f"{n}.B"][ids, i]) for n in "kv"}, 0.2)

    features = vit(golden["images"], Assembled(vit, map(block, range(TUNED))))
    golden.check_features(f"{which}.features", features)
    if which == "mixed":
        features.square().sum().backward()
        golden.check_gradient("grad.bank.k.A[:,0]", bank["k.A"].grad[:, 0])
        golden.check_gradient("grad.bank.v.B[:,4]", bank["v.B"].grad[:, 4])


def test_hide_lora_is_our_lora(vit: TimmViT, vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("hide_tuning_lora")
    lora = make_tuning(
        "lora", vit.shape, torch.Generator().manual_seed(0), blocks="0-4", rank=5, alpha=1.0, init="wide"
    )
    lora.to(dtype)
    golden.check_features("init.features", vit(golden["images"], lora))
    golden.check_features("ptm_features", vit(golden["images"]))
    with torch.no_grad():
        for i in range(TUNED):
            for n in "kv":
                lora.blocks[str(i)].a[n].copy_(golden[f"bank.{n}.A"][1, i])
                lora.blocks[str(i)].b[n].copy_(golden[f"bank.{n}.B"][1, i])
    golden.check_features("slot1.features", vit(golden["images"], lora))
    features = vit(golden["images"], lora)
    torch.testing.assert_close(features.double(), golden["merged_slot1.features"].double(), rtol=0, atol=5e-4)


@pytest.mark.parametrize("which", SLOTS)
def test_hide_adapter(vit: TimmViT, vectors: Read, which: str) -> None:
    golden = vectors("hide_tuning_adapter")
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    bank = {n: golden[f"bank.{n}"].requires_grad_() for n in names}
    ids = slots(golden, which)
    blocks = [SequentialAdapter(*(bank[n][ids, i] for n in names)) for i in range(TUNED)]
    features = vit(golden["images"], Assembled(vit, blocks))
    golden.check_features(f"{which}.features", features)
    if which == "mixed":
        features.square().sum().backward()
        golden.check_gradient("grad.bank.down.weight[:,0]", bank["down.weight"].grad[:, 0])
        golden.check_gradient("grad.bank.up.bias[:,4]", bank["up.bias"].grad[:, 4])


def test_hide_adapter_is_the_frozen_model_at_first(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("hide_tuning_adapter")
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    zero = {n: golden[f"bank.{n}"][:1, 0] * (n == "down.weight") for n in names}
    blocks = [SequentialAdapter(*(zero[n] for n in names)) for _ in range(TUNED)]
    golden.check_features("init.features", vit(golden["images"], Assembled(vit, blocks)))
    golden.check_features("ptm_features", vit(golden["images"]))


@pytest.mark.parametrize("which", SLOTS)
def test_hide_prefix(vit: TimmViT, vectors: Read, which: str) -> None:
    golden = vectors("hide_tuning_prefix")
    bank = golden["bank.prefix"].requires_grad_()  # [slot, key/value, block, p, D]
    ids = slots(golden, which)
    blocks = [Prefix(bank[ids, 0, i], bank[ids, 1, i], vit.shape.heads) for i in range(TUNED)]
    features = vit(golden["images"], Assembled(vit, blocks))
    golden.check_features(f"{which}.features", features)
    golden.check_features("ptm_features", vit(golden["images"]))
    if which == "mixed":
        features.square().sum().backward()
        golden.check_gradient("grad.bank.prefix[:,:,0]", bank.grad[:, :, 0])


def test_hide_prefix_may_be_one_for_all(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("hide_tuning_prefix")
    bank = golden["bank.prefix"]
    blocks = [Prefix(bank[2:3, 0, i], bank[2:3, 1, i], vit.shape.heads) for i in range(TUNED)]
    golden.check_features("slot2.features", vit(golden["images"], Assembled(vit, blocks)))


def test_hide_kept_prompts(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("hide_tuning_prompt")
    bank, ids = golden["bank.prompt"], golden["slot_ids"]  # [block, slot, p, D]
    prepended = TUNED * bank.shape[2]
    tuning = Assembled(vit, [KeptPrompts(bank[i, ids]) for i in range(TUNED)], prepended)
    golden.check_features("mixed.features", vit(golden["images"], tuning))
    golden.check_features("ptm_features", vit(golden["images"]))
    assert prepended == int(golden["cls_index"])
    tokens = vit.run(vit.embed(golden["images"]), tuning, 0, vit.shape.depth - 1)
    assert tokens.shape[1] == int(golden["n_tokens_out"])


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
