"""A small transformer with random weights, and images for it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from evertune.backbones import TimmViT


@pytest.fixture(scope="session")
def vit() -> TimmViT:
    """Three blocks, width 32, 17 tokens, CLS feature, float64, inputs in [0, 1]. Shared: leave it as it is."""
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, depth=3, embed_dim=32, num_heads=2, img_size=32, patch_size=8
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return TimmViT(model.double(), "small", preprocessing="unit")


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
