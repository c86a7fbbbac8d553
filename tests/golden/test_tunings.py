"""safe_tuning_{adapter,ssf,vpt}.npz: SAFE's and RanPAC's tunings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.tuning import SSF, Adapter, Tuning, make_tuning

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]


def fresh(kind: str, vit: TimmViT, **options: Any) -> Tuning:
    tuning = make_tuning(kind, vit.shape, torch.Generator().manual_seed(0), **options)
    return tuning.to(vit.vit.pos_embed.dtype).eval()


def fill(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def gradients(vit: TimmViT, tuning: Tuning, images: Tensor) -> Tensor:
    """Features [B, L]; the gradients of their sum of squares lie in the tuning."""
    features = vit(images, tuning)
    features.square().sum().backward()
    return features


def load_adapter(adapter: Adapter, golden: Any) -> None:
    for i in adapter.indices:
        block = adapter.blocks[str(i)]
        for part in ("down", "up"):
            fill(getattr(block, f"{part}_weight"), golden[f"block{i}.adapter.{part}.weight"])
            fill(getattr(block, f"{part}_bias"), golden[f"block{i}.adapter.{part}.bias"])


def test_fresh_adapter_is_the_frozen_model(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("safe_tuning_adapter")
    features = vit(golden["images"], fresh("adapter", vit))
    golden.check_features("features_identity_at_init", features)
    torch.testing.assert_close(features, vit(golden["images"]), rtol=0, atol=1e-5)


def test_adapter(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("safe_tuning_adapter")
    torch.testing.assert_close(vit.vit.pos_embed.data, golden["pos_embed"], rtol=0, atol=1e-6)
    adapter = fresh("adapter", vit, bottleneck=64, scale=0.1)
    load_adapter(adapter, golden)
    golden.check_features("features", gradients(vit, adapter, golden["images"]))
    golden.check_gradient("grad.block0.adapter.down.weight", adapter.blocks["0"].down_weight.grad)
    golden.check_gradient("grad.block7.adapter.up.bias", adapter.blocks["7"].up_bias.grad)


def load_ssf(ssf: SSF, golden: Any) -> None:
    def at(place: nn.Module, name: str, columns: slice = slice(None)) -> None:
        fill(place.gamma, golden[f"{name}.ssf.scale"][columns])
        fill(place.beta, golden[f"{name}.ssf.shift"][columns])

    width = ssf.shape.width
    at(ssf.ends["patch_embed"], "patch_embed")
    at(ssf.ends["norm"], "norm")
    for i in ssf.indices:
        places = ssf.blocks[str(i)].at
        for ours, theirs in {
            "norm1": "norm1",
            "norm2": "norm2",
            "o": "attn.proj",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        }.items():
            at(places[ours], f"block{i}.{theirs}")
        for k, letter in enumerate("qkv"):
            at(places[letter], f"block{i}.attn.qkv", slice(k * width, (k + 1) * width))


def test_ssf(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("safe_tuning_ssf")
    ssf = fresh("ssf", vit)
    load_ssf(ssf, golden)
    golden.check_features("features", gradients(vit, ssf, golden["images"]))
    places = ssf.blocks["3"].at
    golden.check_gradient("grad.block3.attn.qkv.ssf.scale", torch.cat([places[letter].gamma.grad for letter in "qkv"]))
    golden.check_gradient("grad.patch_embed.ssf.shift", ssf.ends["patch_embed"].beta.grad)


def all_prompts(vpt: Tuning) -> list[nn.Parameter]:
    return [block.prompts for block in vpt.blocks.values() if block.prompts is not None]


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_vpt(vit: TimmViT, vectors: Read, depth: str) -> None:
    golden = vectors("safe_tuning_vpt")
    vpt = fresh("vpt", vit, prompts=5, deep=depth == "deep")
    prompts = all_prompts(vpt)
    for prompt, stored in zip(prompts, golden[f"{depth}.prompts"], strict=True):
        fill(prompt, stored)
    golden.check_features(f"{depth}.features", gradients(vit, vpt, golden["images"]))
    golden.check_gradient(f"{depth}.grad.prompts", torch.stack([p.grad for p in prompts]))


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_vpt_from_zero_keeps_its_prompts_equal(vit: TimmViT, vectors: Read, depth: str) -> None:
    golden = vectors("safe_tuning_vpt")
    vpt = fresh("vpt", vit, prompts=5, deep=depth == "deep", init="zeros")
    golden.check_features(f"{depth}.features_zero_prompts", gradients(vit, vpt, golden["images"]))
    gradient = torch.stack([p.grad for p in all_prompts(vpt)])
    golden.check_gradient(f"{depth}.grad.prompts_at_zero", gradient)
    spread = (gradient - gradient[:, :1]).abs().max() / gradient.abs().max()
    assert spread < (1e-12 if gradient.dtype == torch.float64 else 1e-5)  # trap T9: equal but for the kernels' rounding
