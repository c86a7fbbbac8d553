"""What methods are checked on: a real, tiny transformer and data that it can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evertune.backbones import Backbone, TimmViT
from evertune.streams import ArraySource, Source

CLASSES = tuple("abcdef")


@dataclass(frozen=True)
class Material:
    """A backbone and examples for it.

    ``backbone()`` is a new one; ``examples(rows, seed)`` [N] makes row i of kind i mod 6; ``source(examples, labels,
    classes)`` puts labels to them.
    """

    name: str
    backbone: Callable[[], Backbone]
    examples: Callable[[int, int], NDArray[Any]]
    source: Callable[[NDArray[Any], NDArray[np.int64], Sequence[str]], Source]


def vision() -> TimmViT:
    """A vision transformer of timm's: 32 px, 16 patches, width 48, 3 blocks of 3 heads."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
        for p in vit.parameters():  # timm's own draw is so small that every image looks alike
            if p.ndim >= 2:
                torch.nn.init.normal_(p, std=0.2)
    return TimmViT(vit, "tiny")


def pictures(rows: int, seed: int) -> NDArray[np.uint8]:
    """Noisy images [rows, 8, 8, 3] of six patterns."""
    patterns = np.random.default_rng(99).uniform(0, 255, (len(CLASSES), 8, 8, 3))
    noise = np.random.default_rng(seed).normal(0, 40, (rows, 8, 8, 3))
    return np.clip(patterns[np.arange(rows) % len(CLASSES)] + noise, 0, 255).astype(np.uint8)


def labelled_pictures(x: NDArray[Any], labels: NDArray[np.int64], classes: Sequence[str]) -> Source:
    return ArraySource(x, labels, classes=classes, name="array")


IMAGES = Material("images", vision, pictures, labelled_pictures)
