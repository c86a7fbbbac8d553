"""Several tunings as one, against the election written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evertune.backbones import TimmViT
from evertune.tuning import Tuning, fuse, make_tuning


def drawn(vit: TimmViT, kind: str, seed: int) -> Tuning:
    """Values of which many cancel, and many are zero."""
    generator = torch.Generator().manual_seed(seed)
    tuning = make_tuning(kind, vit.shape, generator)
    with torch.no_grad():
        for p in tuning.parameters():
            p.copy_(torch.randint(-3, 4, p.shape, generator=generator))
    return tuning


@pytest.mark.parametrize("kind", ["adapter", "lora", "ssf", "vpt"])
def test_each_number_is_the_largest_of_the_elected_sign(vit: TimmViT, kind: str) -> None:
    several, target = [drawn(vit, kind, seed) for seed in range(3)], drawn(vit, kind, 9)
    before = [tuning.fingerprint() for tuning in several]
    fuse(target, several)
    signs = set()
    for name, value in target.named_parameters():
        columns = np.stack([t.get_parameter(name).detach().numpy().ravel() for t in several])
        for got, column in zip(value.detach().numpy().ravel(), columns.T, strict=True):
            pro, contra = column[column > 0], column[column < 0]
            total = pro.sum() + contra.sum()
            wanted = pro.max() if total > 0 else contra.min() if total < 0 else 0.0
            assert got == wanted
            signs.add(np.sign(total))
    assert signs == {-1, 0, 1}
    assert [tuning.fingerprint() for tuning in several] == before


def test_one_alone_is_itself(vit: TimmViT) -> None:
    one, target = drawn(vit, "adapter", 0), drawn(vit, "adapter", 1)
    fuse(target, [one])
    assert all(p.equal(one.get_parameter(name)) for name, p in target.named_parameters())


def test_a_bottleneck_writes_by_its_last_matrix(vit: TimmViT) -> None:
    """What a tuning adds lies in the span of the columns of ``writes``; other kinds have none."""
    wide = vit.shape.width
    for kind, targets in (("adapter", 1), ("sequential_adapter", 1), ("lora", 2)):
        matrices = make_tuning(kind, vit.shape, torch.Generator(), blocks="0-1").writes()
        assert [tuple(m.shape) for m in matrices] == [(wide, matrices[0].shape[1])] * (2 * targets)
    adapter = drawn(vit, "adapter", 0)
    x = torch.randn(1, 2, wide)
    block = adapter.block(0)
    assert block is not None
    with torch.no_grad():
        adapter.eval().get_parameter("blocks.0.up_bias").zero_()
        added = block.beside_mlp(x)[0].T
        columns = adapter.writes()[0]
        torch.testing.assert_close(columns @ torch.linalg.lstsq(columns, added).solution, added, rtol=1e-3, atol=1e-2)
    assert make_tuning("ssf", vit.shape, torch.Generator()).writes() == []
