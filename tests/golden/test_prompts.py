"""prompt_{l2p,dualprompt}.npz: which prompts are chosen for an input, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import Shape, TimmViT
from evertune.tuning import KeyedBank, Prefix, PromptPool
from evertune.tuning.pool import cosines

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]


def pool_of(prompts: Tensor, keys: Tensor) -> PromptPool:
    size, length, width = prompts.shape
    shape = Shape(width=width, depth=12, heads=1, hidden=4 * width, tokens=37)
    pool = PromptPool(shape, torch.Generator().manual_seed(0), size=size, length=length, top=2)
    pool.to(prompts.dtype).load_state_dict({"prompts": prompts, "keys": keys})
    return pool


@pytest.mark.parametrize("how", ["per_sample", "batchwise"])
def test_l2p_pool(vectors: Read, how: str) -> None:
    golden = vectors("prompt_l2p")
    query, tokens = golden["module.cls_features"], golden["module.x_embed"]
    pool = pool_of(golden["module.prompt"], golden["module.key"])
    golden.check_algebra("module.similarity", cosines(query, pool.keys))
    votes = torch.bincount(pool.nearest(query).flatten(), minlength=6)
    assert torch.equal(votes, golden["module.batchwise.counts"])
    ids = pool.nearest(query) if how == "per_sample" else pool.voted(query)
    wanted = golden[f"module.{how}.prompt_idx"]
    if how == "batchwise":  # ids of equal votes have no order
        assert torch.equal(ids.sort(1).values, wanted.sort(1).values)
        ids = wanted
    assert torch.equal(ids, wanted)
    pull = pool.pull(query, ids)
    golden.check_algebra(f"module.{how}.reduce_sim", pull)
    pull.backward()
    golden.check_gradient(f"module.{how}.grad_key_of_reduce_sim", pool.keys.grad)
    block = pool.select(ids).block(0)
    assert block is not None
    golden.check_algebra(f"module.{how}.prompted_embedding", block.tokens_in(tokens))


def test_l2p_feature(vit: TimmViT, vectors: Read) -> None:
    """The released code adds the position of CLS to each prompt; here it is part of the prompt."""
    golden = vectors("prompt_l2p")
    images, position = golden["vit.images"], golden["vit.pos_embed_base"]
    torch.testing.assert_close(vit.vit.pos_embed.data, position, rtol=0, atol=1e-6)
    repeated = torch.cat([position[:, :1].expand(-1, 7, -1), position[:, 1:]], dim=1)  # CLS and six tokens of prompts
    torch.testing.assert_close(golden["vit.pos_embed_with_prompts"], repeated, rtol=0, atol=1e-6)
    query = vit(images)
    golden.check_features("vit.query_cls_features", query)
    pool = pool_of(golden["vit.prompt"] + position[0, 0], golden["vit.key"])
    ids = golden["vit.prompt_idx"]
    assert torch.equal(pool.voted(query).sort(1).values, ids.sort(1).values)
    golden.check_algebra("vit.reduce_sim", pool.pull(query, ids))
    features = vit(images, pool.select(ids))
    golden.check_features("vit.features", features)
    features.square().sum().backward()
    golden.check_gradient("vit.grad.prompt", pool.prompts.grad)


def prefixes(shape: Shape, blocks: range, values: Tensor) -> Prefix:
    """Of values [block, key/value, length, head, d]."""
    length = values.shape[2]
    prefix = Prefix(shape, blocks, torch.Generator().manual_seed(0), length=length).to(values.dtype)
    parts = {
        f"blocks.{i}.{name}": v.flatten(1)
        for i, b in zip(blocks, values, strict=True)
        for name, v in zip(("key", "value"), b, strict=True)
    }
    prefix.load_state_dict(parts)
    return prefix


def bank_of(shape: Shape, general: Tensor, expert: Tensor, keys: Tensor) -> KeyedBank:
    """G-Prompts [block, key/value, length, head, d]; E-Prompts [block, key/value, task, length, head, d]."""
    first = len(general)
    behind = range(first, first + len(expert))
    bank = KeyedBank(prefixes(shape, range(first), general), prefixes(shape, behind, expert[:, :, 0]))
    for t, key in enumerate(keys):
        bank.open(torch.Generator().manual_seed(0))
        bank.experts[t].load_state_dict({**prefixes(shape, behind, expert[:, :, t]).state_dict(), "key": key})
    return bank


def test_dualprompt_prefixes(vectors: Read) -> None:
    """The corrected layout: each sample has its task's keys and values."""
    golden = vectors("prompt_dualprompt")
    query, expert, keys = (golden[f"module.{name}"] for name in ("cls_features", "prompt", "key"))
    shape = Shape(width=24, depth=12, heads=3, hidden=96, tokens=8)
    bank = bank_of(shape, torch.zeros_like(expert[:1, :, 0]), expert, keys)
    similarity = cosines(query, bank.keys)
    golden.check_algebra("module.similarity", similarity)
    nearest = bank.nearest(query)
    assert torch.equal(nearest, golden["module.per_sample.prompt_idx"][:, 0])
    golden.check_algebra("module.per_sample.reduce_sim", similarity.amax(1).mean())
    golden.check_algebra("module.train_mask.reduce_sim", similarity[:, 2].mean())
    for name, ids in (("per_sample", nearest), ("batchwise", golden["module.batchwise.prompt_idx"][:, 0])):
        golden.check_algebra(f"module.{name}.reduce_sim", similarity.gather(1, ids[:, None]).mean())
        chosen, found = bank.select(ids), []
        for i in (1, 2, 3):
            block = chosen.block(i)
            assert block is not None
            both = block.prefix()
            assert both is not None
            found.append(torch.stack([t.expand(4, -1, -1, -1).transpose(1, 2) for t in both], dim=1))
        golden.check_algebra(f"module.{name}.corrected_batched_prompt", torch.stack(found))


def test_dualprompt_feature(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("prompt_dualprompt")
    images = golden["vit.images"]
    query = vit(images)
    golden.check_features("vit.query_cls_features", query)
    bank = bank_of(vit.shape, golden["vit.g_prompt"], golden["vit.e_prompt"], golden["vit.key"])
    nearest = bank.nearest(query)
    assert torch.equal(nearest, golden["vit.prompt_idx"][:, 0])
    pull = cosines(query, bank.keys).amax(1).mean()
    golden.check_algebra("vit.reduce_sim", pull, rtol=1e-7)  # the keys are stored in float32
    golden.check_features("vit.corrected_features", vit(images, bank.select(nearest)))
    forced = bank.select(torch.ones_like(nearest))
    golden.check_features("vit.train_task1.corrected_features", vit(images, forced))
