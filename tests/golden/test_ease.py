"""ease.npz: EASE's synthesised prototypes and reweighted scores against the published code's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.heads import section_scores
from evertune.statistics import SectionMeans
from evertune.statistics.sections import complete

pytestmark = pytest.mark.golden
ALPHA, BETA = 0.1, 0.2


def shown(golden: Any) -> Tensor:
    """[10, 3]: classes 0 to 3 belong to the first task, 4 to 6 to the second, 7 to 9 to the last."""
    sizes = torch.from_numpy(golden.arrays["session_sizes"])
    task = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return task[:, None] == torch.arange(len(sizes))


def test_synthesis(vectors: Callable[[str], Any]) -> None:
    golden = vectors("ease")
    own = shown(golden)
    before = golden["synthesis.prototypes_before"].view(10, 3, -1)
    known = torch.ones_like(own)
    known[:7, 2] = False  # the newest section saw its own classes alone
    after = complete(before, known, own, own)
    assert not after[:7, 2].equal(before[:7, 2])
    golden.check_algebra("synthesis.prototypes_after", after.flatten(1), rtol=1e-6)  # recorded in float32


@pytest.mark.parametrize("case", ["no_ptm", "with_ptm"])
def test_reweighting(vectors: Callable[[str], Any], case: str) -> None:
    golden = vectors("ease")
    sections = SectionMeans()
    sections.shown = shown(golden)
    weights = sections.weights(ALPHA).double()
    if case == "with_ptm":
        weights = torch.cat([torch.full((10, 1), BETA, dtype=torch.float64), weights], 1)
    prototypes, features = golden[f"reweight.{case}.prototypes"], golden[f"reweight.{case}.features"]
    golden.check_algebra(f"reweight.{case}.scores", section_scores(features, prototypes, weights), rtol=1e-6)
