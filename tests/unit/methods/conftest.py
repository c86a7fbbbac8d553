"""A real transformer of a few kilobytes, and images that can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evertune.backbones import TimmViT
from evertune.streams import Stream
from evertune.streams.arrays import ArraySource


@pytest.fixture(scope="session")
def backbone() -> TimmViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
        for p in vit.parameters():  # timm's own draw is so small that every image looks alike
            if p.ndim >= 2:
                torch.nn.init.normal_(p, std=0.2)
        return TimmViT(vit, "tiny")


def coloured(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images [rows, 8, 8, 3], one colour and pattern per class, and their labels."""
    patterns = np.random.default_rng(99).uniform(0, 255, (classes, 8, 8, 3))
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    return np.clip(patterns[labels] + rng.normal(0, 40, (rows, 8, 8, 3)), 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def train() -> ArraySource:
    return ArraySource(*coloured(48, 6, 0), classes=list("abcdef"), domains=np.arange(48) // 16, name="train")


@pytest.fixture(scope="session")
def test() -> ArraySource:
    return ArraySource(*coloured(30, 6, 1), classes=list("abcdef"), domains=np.arange(30) // 10, name="test")


@pytest.fixture(scope="session")
def stream(train: ArraySource, test: ArraySource) -> Stream:
    """Three tasks of two classes."""
    return Stream.class_incremental(train, test, first=2, increment=2)


@pytest.fixture(scope="session")
def domains(train: ArraySource, test: ArraySource) -> Stream:
    """Three domains of the same six classes."""
    return Stream.domain_incremental(train, test)
