"""L2P and DualPrompt over a real, tiny transformer."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch

from evertune.backbones import Passes, TimmViT
from evertune.errors import ConfigError
from evertune.heads import LinearHead
from evertune.learner import Learner
from evertune.methods.dualprompt import DualPrompt
from evertune.methods.l2p import L2P
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8}


def learner(name: str, backbone: TimmViT, **options: Any) -> Learner:
    return Learner(name, backbone, progress=False, device="cpu", **QUICK | options)


def test_l2p_moves_no_row_of_another_task(backbone: TimmViT, stream: Stream) -> None:
    me = learner("l2p", backbone)
    method = cast(L2P, me.method)
    me.learn(stream[0])
    rows, keys = method.head.weight.detach().clone(), method.pool.keys.detach().clone()
    me.learn(stream[1])
    assert torch.equal(method.head.weight[:2], rows) and not torch.equal(method.pool.keys, keys)


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_a_linear_head_learns_from_rows_drawn_at_random(
    name: str, backbone: TimmViT, stream: Stream, test: Source
) -> None:
    """The published settings: no means are collected, and the gradient's norm is bounded."""
    me = learner(name, backbone, preset="paper", **({"blocks": "0-2"} if name == "dualprompt" else {}))
    reports = me.learn(stream[0])
    assert [r.name for r in reports] == ["open", "grow head", "prompts", "close"]
    head = me.method.head
    assert isinstance(head, LinearHead) and head.weight.shape[0] == 2 and bool(head.bias.any())
    before = head.weight.detach().clone()
    me.learn(stream[1])
    assert torch.equal(head.weight[:2], before)
    scores = me.scores(test)
    assert scores.shape[1] == 4 and bool(scores.isfinite().all())


def test_prompts_of_l2p_stand_at_the_position_of_cls(backbone: TimmViT, stream: Stream) -> None:
    method = cast(L2P, learner("l2p", backbone).method)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = method.pool.nearest(backbone(images))
    pool = copy.deepcopy(method.pool)
    assert bool(backbone.cls_position.any())
    with torch.no_grad():
        pool.prompts += backbone.cls_position
        expected = torch.cat([backbone(images[b : b + 1], pool.select(ids[b : b + 1])) for b in range(3)])
        torch.testing.assert_close(method.feature(Passes(backbone, images)), expected, rtol=1e-4, atol=1e-5)


def test_l2p_votes_only_while_learning(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me, voted = learner("l2p", backbone), learner("l2p", backbone, voting="batch")
    for one in (me, voted):
        one.learn(stream[0])
    assert not torch.equal(me.scores(test), voted.scores(test))
    alone = torch.cat([voted.scores(test.select([i])) for i in range(4)])
    torch.testing.assert_close(voted.scores(test)[:4], alone, rtol=1e-4, atol=1e-4)


def test_new_rows_of_l2p_start_the_same_whatever_the_batches(backbone: TimmViT, stream: Stream) -> None:
    rows = []
    for size in (2, 64):
        me = learner("l2p", backbone, voting="batch", epochs=0, eval_batch=size)
        me.learn(stream[0])
        rows.append(me.method.head.weight.detach())
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-5, atol=1e-6)


def test_dualprompt_asks_the_nearest_key(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner("dualprompt", backbone, blocks="0-2")
    method = cast(DualPrompt, me.method)
    me.learn(stream[0])
    first = copy.deepcopy(method.pool.experts[0].state_dict())
    general = method.pool.general.blocks["0"].key.detach().clone()
    me.learn(stream[1])
    assert all(torch.equal(value, first[name]) for name, value in method.pool.experts[0].state_dict().items())
    assert not torch.equal(method.pool.general.blocks["0"].key, general)
    found = me.engine.compute(test, method.branches, lambda p: {"t": method.identify(p)})["t"].long()
    query = me.engine.features(test)
    cosine = torch.nn.functional.cosine_similarity(query[:, None], method.pool.keys[None].detach(), dim=2)
    assert torch.equal(found, cosine.argmax(1)) and len(found.unique()) == 2
    told = me.engine.compute(test, method.branches, lambda p: {"told": method.told(p, method.identify(p))})["told"]
    torch.testing.assert_close(told, me.scores(test), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
@pytest.mark.parametrize("options", [{"sigma_init": 0}, {"clip": 0}, {"pull": -1}])
def test_impossible_options(name: str, options: dict[str, Any], backbone: TimmViT) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        learner(name, backbone, **options)


def test_impossible_prompts(backbone: TimmViT) -> None:
    with pytest.raises(ConfigError, match="top=11"):
        learner("l2p", backbone, top=11)
    with pytest.raises(ConfigError, match="none is left"):
        learner("dualprompt", backbone, blocks="0-1")
