"""Prompts chosen per sample: in a batch each is steered as it would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, TimmViT
from evertune.errors import ConfigError
from evertune.tuning import KeyedBank, Prefix, PromptPool


@pytest.fixture
def pool(vit: TimmViT) -> PromptPool:
    return PromptPool(vit.shape, torch.Generator().manual_seed(3), size=5, length=2, top=2).double()


@pytest.fixture
def bank(vit: TimmViT) -> KeyedBank:
    draw = torch.Generator().manual_seed(3)
    made = KeyedBank(Prefix(vit.shape, [0], draw, length=2), Prefix(vit.shape, [1, 2], draw, length=3)).double()
    for _ in range(3):
        made.open(draw)
        with torch.no_grad():
            for p in made.experts[len(made.experts) - 1].parameters():
                p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return made


def test_nearest_keys_are_chosen(pool: PromptPool) -> None:
    query = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    distance = torch.cdist(F.normalize(query, dim=1), F.normalize(pool.keys, dim=1))  # falls as the cosine rises
    assert torch.equal(pool.nearest(query), distance.argsort(1)[:, :2])
    keys = pool.keys.detach()
    chosen = zip(query, pool.nearest(query), strict=True)
    wanted = sum(float(F.cosine_similarity(q, keys[i], dim=0)) for q, row in chosen for i in row)
    assert float(pool.pull(query, pool.nearest(query))) == pytest.approx(wanted / 7)


def test_a_batch_votes(pool: PromptPool) -> None:
    keys = pool.keys.detach()
    query = torch.stack([keys[1] + 0.5 * keys[4], keys[1] + 0.5 * keys[4], keys[2] + 0.5 * keys[1]])
    voted = pool.voted(query)
    counts = torch.bincount(pool.nearest(query).flatten(), minlength=5)
    assert (voted == voted[0]).all() and counts[voted[0]].sum() == counts.topk(2).values.sum()


def test_the_feature_is_the_mean_of_the_prompts(vit: TimmViT, images: Tensor, pool: PromptPool) -> None:
    ids = torch.tensor([[0, 1], [4, 2], [3, 0], [1, 0]])
    passes = Passes(vit, images)
    features = passes.steered(pool, ids)
    for b, own in enumerate(ids):
        prompts = pool.prompts[own].flatten(0, 1) + vit.cls_position
        tokens = torch.cat([prompts[None], vit.embed(images[b : b + 1])], dim=1)
        alone = vit.vit.norm(vit.vit.blocks(tokens))[0, :4].mean(0)
        torch.testing.assert_close(features[b], alone.float(), rtol=1e-5, atol=1e-5)
    assert passes.forwards == 1


def test_gradients_reach_the_chosen_alone(vit: TimmViT, images: Tensor, pool: PromptPool) -> None:
    ids = torch.tensor([[0, 1]] * 4)
    Passes(vit, images).steered(pool, ids).square().sum().backward()
    moved = pool.prompts.grad
    assert moved is not None and (moved[:2].abs().amax((1, 2)) > 0).all() and not moved[2:].any()


def test_each_sample_has_its_tasks_prefix(vit: TimmViT, images: Tensor, bank: KeyedBank) -> None:
    tasks = torch.tensor([2, 0, 1, 2])
    together = Passes(vit, images).steered(bank, tasks)
    for b in range(4):
        alone = Passes(vit, images[b : b + 1]).steered(bank, tasks[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)
    other = Passes(vit, images).steered(bank, tasks.flip(0))
    assert not torch.allclose(together[0], other[1], atol=1e-3)


def test_closed_tasks_no_longer_learn(bank: KeyedBank) -> None:
    bank.close()
    bank.open(torch.Generator())
    learning = {name for name, p in bank.named_parameters() if p.requires_grad}
    assert all(name.startswith(("general.", "experts.slots.3.")) for name in learning) and len(learning) == 2 + 4 + 1
    assert torch.equal(bank.nearest(bank.keys), torch.arange(4))


def test_what_cannot_be(vit: TimmViT) -> None:
    draw = torch.Generator()
    with pytest.raises(ConfigError, match="top=6 of size=5"):
        PromptPool(vit.shape, draw, size=5, top=6)
    with pytest.raises(ConfigError, match="take a kind that mixes"):
        KeyedBank(Prefix(vit.shape, [0, 1], draw), Prefix(vit.shape, [1], draw))
