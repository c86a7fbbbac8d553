"""hide_tuning_*.npz and the ensembles of hide_ensemble_ema_router.npz: HiDe-PET's tunings in banks of slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import Shape, TimmViT, digest
from evertune.tuning import Bank, Tuning, make_tuning, merged

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 5, "alpha": 1.0, "init": "wide"}),
    "adapter": ("sequential_adapter", {"bottleneck": 5}),
    "prefix": ("prefix", {"length": 20}),
    "prompt": ("prompt", {"length": 4}),
}
FACTORS = [(name, factor) for name in "kv" for factor in "AB"]
LAYERS = [(layer, part) for layer in ("down", "up") for part in ("weight", "bias")]


def template(file: str, shape: Shape, dtype: torch.dtype, blocks: str = "0-4", **options: Any) -> Tuning:
    kind, chosen = KINDS[file]
    return make_tuning(kind, shape, torch.Generator().manual_seed(0), blocks=blocks, **{**chosen, **options}).to(dtype)


def stored(golden: Any, file: str, slot: int, block: int, bank: str) -> dict[str, Tensor]:
    """The tensors of one block of a slot, by our names."""
    if file == "lora":
        return {f"{factor.lower()}.{name}": golden[f"{bank}.{name}.{factor}"][slot, block] for name, factor in FACTORS}
    if file == "adapter":
        return {f"{layer}_{part}": golden[f"{bank}.{layer}.{part}"][slot, block] for layer, part in LAYERS}
    if file == "prefix":
        return {name: golden[bank][slot, i, block] for i, name in enumerate(("key", "value"))}
    return {"prompts": golden[bank][block, slot]}


def fill(slot: Tuning, golden: Any, file: str, number: int, bank: str) -> None:
    state = {
        f"blocks.{i}.{name}": value
        for i in slot.indices
        for name, value in stored(golden, file, number, i, bank).items()
    }
    slot.load_state_dict(state)


def loaded(vit: TimmViT, golden: Any, file: str, dtype: torch.dtype) -> Bank:
    bank = Bank(template(file, vit.shape, dtype))
    for number in range(3):
        fill(bank.open(), golden, file, number, f"bank.{file}" if file.startswith("pr") else "bank")
    return bank


def gradient(bank: Bank, name: str) -> Tensor:
    """[slot, …], of one parameter."""
    return torch.stack([slot.get_parameter(name).grad for slot in bank])  # type: ignore[misc]


@pytest.mark.parametrize("file", KINDS)
def test_fresh_slots(vit: TimmViT, vectors: Read, dtype: torch.dtype, file: str) -> None:
    golden = vectors(f"hide_tuning_{file}")
    bank = Bank(template(file, vit.shape, dtype))
    bank.open()
    plain, fresh = vit(golden["images"]), vit(golden["images"], bank[0])
    torch.testing.assert_close(vit.vit.pos_embed.data, golden["pos_embed"], rtol=0, atol=1e-6)
    golden.check_features("ptm_features", plain)
    if file in ("lora", "adapter"):
        golden.check_features("init.features", fresh)
    else:
        assert (fresh - plain).norm() > 0.1 * plain.norm()  # not function-preserving


@pytest.mark.parametrize("slot", range(3))
@pytest.mark.parametrize("file", ["lora", "adapter", "prefix"])
def test_single_slots(vit: TimmViT, vectors: Read, dtype: torch.dtype, file: str, slot: int) -> None:
    golden = vectors(f"hide_tuning_{file}")
    bank = loaded(vit, golden, file, dtype)
    golden.check_features(f"slot{slot}.features", vit(golden["images"], bank[slot]))
    golden.check_features(f"slot{slot}.features", vit(golden["images"], bank.select(torch.full((4,), slot))))


@pytest.mark.parametrize("file", KINDS)
def test_mixed_slots_and_their_gradients(vit: TimmViT, vectors: Read, dtype: torch.dtype, file: str) -> None:
    golden = vectors(f"hide_tuning_{file}")
    bank = loaded(vit, golden, file, dtype)
    features = vit(golden["images"], bank.select(golden["slot_ids"]))
    golden.check_features("mixed.features", features)
    features.square().sum().backward()
    if file == "lora":
        golden.check_gradient("grad.bank.k.A[:,0]", gradient(bank, "blocks.0.a.k"))
        golden.check_gradient("grad.bank.v.B[:,4]", gradient(bank, "blocks.4.b.v"))
    elif file == "adapter":
        golden.check_gradient("grad.bank.down.weight[:,0]", gradient(bank, "blocks.0.down_weight"))
        golden.check_gradient("grad.bank.up.bias[:,4]", gradient(bank, "blocks.4.up_bias"))
    elif file == "prefix":
        both = torch.stack([gradient(bank, "blocks.0.key"), gradient(bank, "blocks.0.value")], dim=1)
        golden.check_gradient("grad.bank.prefix[:,:,0]", both)


def test_a_merged_slot(vit: TimmViT, vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("hide_tuning_lora")
    slot, before = loaded(vit, golden, "lora", dtype)[1], digest(vit.state_dict())
    tuned, queries = vit(golden["images"], slot), [vit.weight(i, "q").clone() for i in range(5)]
    with merged(vit, slot):
        features = vit(golden["images"])
        assert all(torch.equal(vit.weight(i, "q"), q) for i, q in enumerate(queries))
    expected = torch.from_numpy(golden.arrays["merged_slot1.features"]).double()  # made in float32
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=5e-4)
    scale = tuned.abs().max()
    torch.testing.assert_close(features / scale, tuned / scale, rtol=0, atol=1e-5)
    assert digest(vit.state_dict()) == before


def test_prompts_stay_in_front_of_cls(vit: TimmViT, vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("hide_tuning_prompt")
    tuning = loaded(vit, golden, "prompt", dtype).select(golden["slot_ids"])
    assert tuning.prepended == int(golden["cls_index"])
    tokens = vit.run(vit.embed(golden["images"]), tuning, 0, vit.shape.depth - 1)
    assert tokens.shape[1] == int(golden["n_tokens_out"])


@pytest.mark.parametrize("file", ["lora", "adapter", "prefix"])
def test_ensembles(vectors: Read, dtype: torch.dtype, file: str) -> None:
    """After tasks 1, 2 and 3 in turn, each with the earlier slots already merged."""
    golden = vectors("hide_ensemble_ema_router")
    shape = Shape(width=12, depth=2, heads=2, hidden=48, tokens=5)
    sizes = {"lora": {"rank": 3}, "adapter": {"bottleneck": 3}, "prefix": {"length": 4}}[file]
    weight = float(golden["ensemble.momentum_prefix" if file == "prefix" else "ensemble.momentum_lora_adapter"])
    bank, expected = (Bank(template(file, shape, dtype, "all", **sizes)) for _ in range(2))
    for task in range(4):
        fill(expected.open(), golden, file, task, f"ensemble.{file}.after")
        fill(bank.open(), golden, file, task, f"ensemble.{file}.before")
        bank.ensemble(task, weight)
        bank.freeze(task)
    for name, value in bank.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-6)
