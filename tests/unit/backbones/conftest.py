"""Small transformers with random weights, of every family that timm's ``VisionTransformer`` covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from evertune.backbones import TimmViT

SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}


def random_model(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> VisionTransformer:
    """In float64; every parameter is random, so that nothing (LayerScale, biases, tokens) is near its neutral value."""
    model = timm.create_model(name, pretrained=False, **{**SMALL, **kwargs}).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., VisionTransformer]:
    return random_model


@pytest.fixture(scope="session")
def vit() -> TimmViT:
    """Four blocks, width 32, 17 tokens, CLS feature, float64, inputs in [0, 1]. Shared: do not change it."""
    return TimmViT(random_model(), "small", preprocessing="unit")


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
