"""prompt_{l2p,dualprompt,coda}.npz: which prompts are chosen for an input, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evertune.backbones import Shape, TimmViT
from evertune.tuning import ComponentPool, KeyedBank, Prefix, PromptPool
from evertune.tuning.components import orthonormal
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
    assert torch.equal(torch.bincount(pool.nearest(query).flatten(), minlength=6), golden["module.batchwise.counts"])
    ids = pool.nearest(query) if how == "per_sample" else pool.voted(query)
    assert torch.equal(ids, golden[f"module.{how}.prompt_idx"])
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
    ids = pool.voted(query)
    assert torch.equal(ids.sort(1).values, golden["vit.prompt_idx"].sort(1).values)  # two have equally many votes
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
    return bank.to(keys.dtype)


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
    voted = nearest.mode().values.expand_as(nearest)  # released: the batch's most frequent choice
    assert torch.equal(voted, golden["module.batchwise.prompt_idx"][:, 0])
    for name, ids in (("per_sample", nearest), ("batchwise", voted)):
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
    golden.check_algebra("vit.reduce_sim", pull)
    golden.check_features("vit.corrected_features", vit(images, bank.select(nearest)))
    forced = bank.select(torch.ones_like(nearest))
    golden.check_features("vit.train_task1.corrected_features", vit(images, forced))


def components_of(shape: Shape, layers: list[dict[str, Tensor]], per_task: int) -> ComponentPool:
    """The parts of each block, [M, ...], dealt to tasks."""
    size, twice = layers[0]["prompts"].shape[:2]
    pool = ComponentPool(shape, range(len(layers)), size=per_task, length=twice // 2).to(layers[0]["prompts"].dtype)
    parts = {
        f"tasks.slots.{t}.blocks.{i}.{name}": values
        for i, layer in enumerate(layers)
        for name, part in layer.items()
        for t, values in enumerate(part.split(per_task))
    }
    pool.load_state_dict(parts)
    for task in range(size // per_task - 1):
        pool.tasks.freeze(task)
    return pool


def layer(golden: Any, number: int, prompts: str = "layer{}.prompt", count: int = 4) -> dict[str, Tensor]:
    names = {"prompts": prompts, "keys": "layer{}.key", "attention": "layer{}.attention"}
    return {part: golden[name.format(number)][:count] for part, name in names.items()}


def test_coda_components(vectors: Read) -> None:
    """The second task of two: the first two components are frozen."""
    golden = vectors("prompt_coda")
    query, per_task = golden["query"], int(golden["components_per_task"])
    shape = Shape(width=192, depth=12, heads=3, hidden=768, tokens=37)
    pool = components_of(shape, [layer(golden, 0)], per_task)
    golden.check_algebra("layer0.weights_f64", pool.weights(0, query))
    golden.check_algebra("layer0.ortho_penalty_times_mu", 0.1 * pool.penalty())
    block = pool.select(query).block(0)
    assert block is not None
    both = block.prefix()
    assert both is not None
    for name, found in zip(("key", "value"), both, strict=True):
        golden.check_algebra(f"layer0.train.prefix_{name}", found.transpose(1, 2).flatten(2))
        golden.check_algebra(f"layer0.eval.prefix_{name}", found.transpose(1, 2).flatten(2))
    torch.stack(both).square().sum().backward()
    new = pool.tasks[1].blocks["0"]
    for name, part in (("prompt", "prompts"), ("key", "keys"), ("attention", "attention")):
        gradient = new.get_parameter(part).grad
        assert gradient is not None
        zeros = torch.zeros_like(gradient)  # of the task before, and of the one to come
        golden.check_gradient(f"layer0.train.grad.{name}", torch.cat([zeros, gradient, zeros]))


def test_coda_starts_orthonormal(vectors: Read) -> None:
    """As the released Gram-Schmidt leaves them; which directions it drew is chance."""
    golden = vectors("prompt_coda")
    for part in ("prompt", "key", "attention"):
        wanted = golden[f"layer0.initial.{part}"][:4].flatten(1)
        drawn = orthonormal(wanted[:2], 2, torch.Generator().manual_seed(0)).to(wanted)
        for rows in (wanted, torch.cat([wanted[:2], drawn])):
            torch.testing.assert_close(rows @ rows.T, torch.eye(4).to(rows), rtol=0, atol=1e-6)


def test_coda_feature(vit: TimmViT, vectors: Read) -> None:
    golden = vectors("prompt_coda")
    pool = components_of(vit.shape, [layer(golden, i, "vit.layer{}.prompt") for i in range(5)], 2)
    images = golden["vit.images"]
    golden.check_features("vit.features", vit(images, pool.select(vit(images))))
