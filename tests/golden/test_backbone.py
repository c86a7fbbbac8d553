"""backbone.npz: the frozen ViT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from evertune.backbones import Passes, TimmViT, load_backbone

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]
TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def with_positions(vit: TimmViT, positions: torch.Tensor) -> TimmViT:
    vit = copy.deepcopy(vit)
    vit.vit.pos_embed = nn.Parameter(positions, requires_grad=False)
    return vit


def test_features_with_our_own_resampled_positions(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("backbone")
    torch.testing.assert_close(vit.vit.pos_embed.data, golden["antialias.pos_embed"], rtol=0, atol=1e-6)
    golden.check_features("antialias.features", vit(golden["images"]))


def test_features_through_passes(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("backbone")
    features = Passes(vit, golden["images"])()
    assert features.dtype == torch.float32
    expected = torch.from_numpy(golden.arrays["antialias.features"])
    torch.testing.assert_close(features, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("resampling", ["antialias", "no_antialias"])
def test_features_with_the_stored_positions(vit: TimmViT, vectors: Read, resampling: str) -> None:
    golden = vectors("backbone")
    stored = with_positions(vit, golden[f"{resampling}.pos_embed"])
    golden.check_features(f"{resampling}.features", stored(golden["images"]))


@pytest.mark.parametrize("block", [0, 11])
def test_tokens_after_a_block(vit: TimmViT, vectors: Read, block: int) -> None:
    golden = vectors("backbone")
    whole = copy.deepcopy(vit)
    whole.reads_cls = False  # so that the last block answers all tokens
    tokens = whole.run(whole.embed(golden["images"][:2]), None, 0, block + 1)
    golden.check_features(f"antialias.tokens_after_block{block}", tokens)


def test_features_of_normalised_inputs(weights: Path, vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("backbone")
    native = load_backbone(TAG, weights=weights, input_size=96).to(dtype)
    assert native.identity.mean == native.identity.std == (0.5, 0.5, 0.5)
    golden.check_features("antialias.features_normalised_input", native(golden["images"]))


def test_features_and_logits_at_the_native_size(weights: Path, vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("backbone")
    native = load_backbone(TAG, weights=weights).to(dtype)
    features = native(golden["native224.images"])
    golden.check_features("native224.features_normalised_input", features)
    stored = load_file(weights)
    logits = F.linear(features, stored["head.weight"].to(dtype), stored["head.bias"].to(dtype))
    golden.check_features("native224.logits_1000", logits)
