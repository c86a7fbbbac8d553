"""The backbone that ships: its size, its licence, and that it earns its place on digits it never saw."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from evertune import load_backbone
from evertune.streams import ArraySource, Batches, TestView


def test_the_file_is_small_half_precision_and_ours() -> None:
    file = resources.files("evertune.backbones") / "embedded.safetensors"
    with resources.as_file(file) as path:
        assert path.stat().st_size <= 6_000_000
        with safe_open(path, "pt") as content:
            assert content.metadata()["licence"] == "Apache-2.0"
            assert {str(content.get_tensor(name).dtype) for name in content.keys()} == {"torch.float16"}  # noqa: SIM118


def test_its_shape_and_identity() -> None:
    backbone = load_backbone()
    assert backbone.shape.width == 192 and backbone.shape.depth == 6 and backbone.shape.tokens == 65
    assert backbone.identity.input_size == 32 and backbone.identity.name == "embedded"
    assert len(backbone.identity.weights) == 64


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frozen features of scikit-learn's digits, split 70/30 by class with seed 0."""
    data = load_digits()
    source = ArraySource(np.rint(data.images * 255 / 16).astype(np.uint8), data.target)
    backbone = load_backbone()
    with torch.inference_mode():
        batches = Batches(source, TestView(32), 256, shuffle=False, seed=(0,), epoch=0)
        features = torch.cat([backbone(images.float() / 255) for _, images, _ in batches]).numpy()
    return tuple(train_test_split(features, data.target, test_size=0.3, stratify=data.target, random_state=0))


def test_nearest_mean_of_frozen_features(digits: tuple[np.ndarray, ...]) -> None:
    x, x_test, y, y_test = digits
    centroids = NearestCentroid().fit(x, y).centroids_
    nearest = (normalize(x_test) @ normalize(centroids).T).argmax(1)
    assert (nearest == y_test).mean() >= 0.85


def test_ridge_on_frozen_features(digits: tuple[np.ndarray, ...]) -> None:
    x, x_test, y, y_test = digits
    assert RidgeClassifierCV(np.logspace(-2, 5, 8)).fit(x, y).score(x_test, y_test) >= 0.95
