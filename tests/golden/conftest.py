"""Golden vectors, and the backbone they were made with, in both precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import TimmViT, load_backbone

TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
WEIGHTS = f"data/weights/{TAG}.f32.safetensors"


@dataclass(frozen=True)
class Vectors:
    """One file of golden vectors, read in one precision."""

    arrays: Mapping[str, np.ndarray]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        """An input."""
        tensor = torch.from_numpy(self.arrays[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _expected(self, name: str) -> tuple[Tensor, bool]:
        """An output, and whether both it and what it is compared with were made in float64."""
        twice = f"{name}_f64" in self.arrays
        exact = self.dtype == torch.float64 and twice
        alone = twice and name not in self.arrays
        return torch.from_numpy(np.asarray(self.arrays[f"{name}_f64" if exact or alone else name])).double(), exact

    def check_features(self, name: str, actual: Tensor) -> None:
        """Tolerance F: 1e-9 in float64, 5e-4 in float32."""
        expected, exact = self._expected(name)
        torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=1e-9 if exact else 5e-4)

    def check_gradient(self, name: str, actual: Tensor | None) -> None:
        """Tolerance G: 1e-9 (float64) or 1e-4 (float32) of the largest entry."""
        assert actual is not None
        expected, exact = self._expected(name)
        atol = (1e-9 if exact else 1e-4) * expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)

    def check_algebra(self, name: str, actual: Tensor, rtol: float = 1e-10) -> None:
        """Tolerance L: ``rtol`` in float64, 1e-5 in float32."""
        expected, exact = self._expected(name)
        rtol, atol = (rtol, 1e-12) if exact else (1e-5, 1e-6)
        torch.testing.assert_close(actual.detach().double(), expected, rtol=rtol, atol=atol)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def vectors(shared: Path, dtype: torch.dtype) -> Callable[[str], Vectors]:
    def read(name: str) -> Vectors:
        with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as file:
            return Vectors(dict(file), dtype)

    return read


@pytest.fixture(scope="session")
def weights(shared: Path) -> Path:
    return shared / WEIGHTS


@pytest.fixture(scope="session")
def both_precisions(weights: Path) -> dict[torch.dtype, TimmViT]:
    vit = load_backbone(TAG, weights=weights, input_size=96, preprocessing="unit")
    return {torch.float32: vit, torch.float64: copy.deepcopy(vit).double()}


@pytest.fixture
def vit(both_precisions: dict[torch.dtype, TimmViT], dtype: torch.dtype) -> TimmViT:
    """ViT-Ti at 96 px, inputs in [0, 1]."""
    return both_precisions[dtype]
