"""Prompts composed of components, against arithmetic one input and one component at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import Passes, TimmViT
from evertune.errors import ConfigError
from evertune.tuning import ComponentPool, Prefix
from evertune.tuning.components import orthonormal


@pytest.fixture
def pool(vit: TimmViT) -> ComponentPool:
    """Two tasks of three components, all moved away from where they start."""
    draw = torch.Generator().manual_seed(3)
    made = ComponentPool(vit.shape, [0, 2], size=3, length=2).double()
    for _ in range(2):
        made.open(draw)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return made


def composed(pool: ComponentPool, block: int, query: Tensor) -> np.ndarray:
    """Σ_m cos(q ⊙ A_m, K_m) P_m for each query, [B, 2p, D]."""
    prompts, keys, attention = (pool.all(block, part).detach().numpy() for part in ("prompts", "keys", "attention"))
    found = []
    for q in query.numpy():
        prompt = np.zeros(prompts.shape[1:])
        for p, k, a in zip(prompts, keys, attention, strict=True):
            prompt += (q * a) @ k / (np.linalg.norm(q * a) * np.linalg.norm(k)) * p
        found.append(prompt)
    return np.stack(found)


def test_each_input_composes_its_prefixes(vit: TimmViT, images: Tensor, pool: ComponentPool) -> None:
    query = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    together = Passes(vit, images).steered(pool, query)
    prefix = Prefix(vit.shape, [0, 2], torch.Generator(), length=2).double()
    for b in range(4):
        values = {
            f"blocks.{i}.{name}": torch.from_numpy(composed(pool, i, query[b : b + 1])[0, half])
            for i in (0, 2)
            for name, half in (("key", slice(0, 2)), ("value", slice(2, 4)))
        }
        prefix.load_state_dict(values)
        torch.testing.assert_close(together[b : b + 1], vit(images[b : b + 1], prefix).float(), rtol=1e-5, atol=1e-5)


def test_the_penalty_is_how_far_from_orthonormal(pool: ComponentPool) -> None:
    wanted = 0.0
    for block in (0, 2):
        for part in ("prompts", "keys", "attention"):
            t = pool.all(block, part).detach().flatten(1).numpy()
            wanted += float(np.mean((t @ t.T - np.eye(6)) ** 2))
    assert float(pool.penalty().detach()) == pytest.approx(wanted)


def test_new_components_are_orthogonal_to_all(vit: TimmViT) -> None:
    pool = ComponentPool(vit.shape, [1], size=3, length=2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        pool.open(draw)
    assert float(pool.penalty().detach()) < 1e-10
    with torch.no_grad():  # trained, the first are orthonormal no more
        for part in ("prompts", "keys", "attention"):
            pool.tasks[0].blocks["1"].get_parameter(part).mul_(3).add_(0.1)
    pool.open(draw)
    for part in ("prompts", "keys", "attention"):
        rows = pool.all(1, part).detach().flatten(1)
        own, earlier = rows[-3:], rows[:-3]
        torch.testing.assert_close(own @ own.T, torch.eye(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(own @ earlier.T, torch.zeros(3, 9), rtol=0, atol=1e-4)


def test_without_room_they_are_orthogonal_to_each_other() -> None:
    earlier = torch.eye(5)[:3]
    rows = orthonormal(earlier, 3, torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3), rtol=0, atol=1e-6)
    fits = orthonormal(earlier, 2, torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(fits @ earlier.T, torch.zeros(2, 3), rtol=0, atol=1e-6)


def test_earlier_components_take_part_and_stay(vit: TimmViT, images: Tensor, pool: ComponentPool) -> None:
    pool.close()
    pool.open(torch.Generator().manual_seed(5))
    query = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert pool.weights(0, query).shape == (4, 9)
    (Passes(vit, images).steered(pool, query).square().sum() + pool.penalty()).backward()
    moved = {name for name, p in pool.named_parameters() if p.grad is not None and p.grad.any()}
    parts = ("prompts", "keys", "attention")
    assert moved == {f"tasks.slots.2.blocks.{i}.{part}" for i in (0, 2) for part in parts}


@pytest.mark.parametrize(("size", "length"), [(0, 4), (33, 4), (2, 0)])
def test_what_cannot_be(vit: TimmViT, size: int, length: int) -> None:
    with pytest.raises(ConfigError, match=f"component_pool: {size} components of length {length}"):
        ComponentPool(vit.shape, [0], size=size, length=length)
