"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads beside a busy neighbour cost five times

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evertune.backbones import TimmViT
from evertune.streams import ArraySource


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, weights and golden vectors beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("EVERTUNE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs {folder} (real data and golden vectors)")
    return folder


@pytest.fixture(scope="session")
def tiny() -> TimmViT:
    """A real timm transformer, small enough to learn in a blink: 32 px, 16 patches, width 48, 3 blocks."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
    with torch.no_grad():  # timm's small initial weights hardly look at the image
        model.patch_embed.proj.weight.mul_(20)
        for block in model.blocks:
            block.attn.qkv.weight.mul_(5)
            block.mlp.fc1.weight.mul_(5)
    return TimmViT(model, "tiny")


@pytest.fixture(scope="session")
def blobs() -> tuple[ArraySource, ArraySource]:
    """Six classes of 32 px images with a bright spot at a place of their own: 12 to learn from, 5 to test on."""
    return blob_data(6, 12, 5)


def blob_data(classes: int, train: int, test: int) -> tuple[ArraySource, ArraySource]:
    rng = np.random.default_rng(0)
    axis = np.arange(32)
    centres = [(6 + 10 * (c % 3), 8 + 14 * (c // 3 % 2)) for c in range(classes)]

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), count)
        places = np.array([centres[c] for c in labels]) + rng.normal(0, 1.5, (len(labels), 2))
        distance = (axis[None, :, None] - places[:, 1, None, None]) ** 2 + (
            axis[None, None] - places[:, 0, None, None]
        ) ** 2
        pixels = 200 * np.exp(-distance / 18) + rng.uniform(0, 40, distance.shape)
        return pixels.clip(0, 255).astype(np.uint8), labels

    names = [f"spot {c}" for c in range(classes)]
    return tuple(ArraySource(*images(n), names, name=part) for n, part in ((train, "train"), (test, "test")))  # type: ignore[return-value]
