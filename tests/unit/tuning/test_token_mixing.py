"""Prompts made of the image's own tokens: against blocks written out in the order of the publication."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from evertune.backbones import Shape, TimmViT
from evertune.errors import ConfigError
from evertune.tuning import TokenMixing, make_tuning

VIT_B = Shape(width=768, depth=12, heads=12, hidden=3072, tokens=197)


def make(vit: TimmViT, *, trained: bool = True, **options: Any) -> TokenMixing:
    """In float64, as after training unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    tuning = make_tuning("token_mixing", vit.shape, generator, **{"length": 2} | options).double()
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(trained * 0.3 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(tuning, TokenMixing)
    return tuning


def model(pool: str = "token", **changes: Any) -> TimmViT:
    sizes = {"depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, global_pool=pool, **sizes | changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return TimmViT(vit.double(), "small", preprocessing="unit")


def by_hand(vit: TimmViT, tuning: TokenMixing, images: Tensor, bias: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Tokens after the last block, prompts behind CLS as published, and those after each block; G has a ``bias``."""
    x, old, streams = vit.embed(images), None, []
    for i, block in enumerate(vit.vit.blocks):
        h = x + block.attn(block.norm1(x))
        part: Any = tuning.block(i)
        if part is None:
            x = h + block.mlp(block.norm2(h))
            streams.append(x)
            continue
        count = len(part.generator_weight)
        cls, patches = h[:, :1], h[:, 1:] if old is None else h[:, 1 + count :]
        mixed = torch.einsum("qn,bnd->bqd", part.generator_weight, torch.cat([cls, patches], 1)) + bias
        variance = mixed.var(2, correction=0, keepdim=True)
        new = (mixed - mixed.mean(2, keepdim=True)) / (variance + 1e-6).sqrt() * part.norm_weight + part.norm_bias
        if old is not None:
            new = new + 0.1 * h[:, 1 : 1 + count]
        residual = torch.cat([cls, torch.zeros_like(new), patches], 1) if old is None else h
        x = block.mlp(block.norm2(torch.cat([cls, new, patches], 1))) + residual
        old = x[:, 1 : 1 + count]
        streams.append(x)
    return x, streams


# -- what it computes (§4.3) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_against_published_blocks(vit: TimmViT, images: Tensor, bias: float) -> None:
    """The order of the tokens does not matter, and the norm takes a bias of the generator off again."""
    tuning = make(vit)
    tokens, _ = by_hand(vit, tuning, images, bias)
    torch.testing.assert_close(vit(images, tuning), vit.vit.norm(tokens)[:, 0], rtol=0, atol=1e-11)
    mine = torch.autograd.grad(vit(images, tuning).square().sum(), list(tuning.parameters()))
    tokens, _ = by_hand(vit, tuning, images, bias)
    wanted = torch.autograd.grad(vit.vit.norm(tokens)[:, 0].square().sum(), list(tuning.parameters()))
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


def test_residuals_of_the_prompts(vit: TimmViT, images: Tensor) -> None:
    """None in the first block; the prompts of the block before, not the new ones, in the next."""
    tuning, tokens = make(vit), vit.shape.tokens
    x, (_, streams) = vit.embed(images), by_hand(vit, tuning, images)
    assert x.shape[1] == tokens
    for i in (0, 1):
        h = vit.run(x, tuning, i, i + 0.5)
        assert h.shape[1] == tokens + 2 * i
        u = h[:, tokens:]
        entering, _ = tuning.block(i).between(h)
        q = entering[:, tokens:]
        block = vit.vit.blocks[i]
        x = vit.run(x, tuning, i, i + 1)
        assert x.shape[1] == tokens + 2
        y = block.mlp(block.norm2(q))
        torch.testing.assert_close(x[:, tokens:], y if i == 0 else u + y, rtol=0, atol=1e-13)
        torch.testing.assert_close(x[:, tokens:], streams[i][:, 1:3], rtol=0, atol=1e-11)
        torch.testing.assert_close(x[:, 1:tokens], streams[i][:, 3:], rtol=0, atol=1e-11)


def test_the_carry_is_how_much_of_the_old_prompts_stays(vit: TimmViT) -> None:
    part: Any = make(vit, carry=0.4).block(1)
    plain: Any = make(vit, carry=0.0).block(1)
    h = torch.randn(2, 19, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    difference = part.between(h)[0] - plain.between(h)[0]
    torch.testing.assert_close(difference[:, 17:], 0.4 * h[:, 17:])
    assert not difference[:, :17].any()


@pytest.mark.parametrize("size", [16, 40])
def test_any_number_of_tokens(size: int) -> None:
    vit = model(img_size=size)
    images = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tuning = make(vit)
    assert tuning.block(0).generator_weight.shape == (2, 1 + (size // 8) ** 2)
    tokens, _ = by_hand(vit, tuning, images)
    torch.testing.assert_close(vit(images, tuning), vit.vit.norm(tokens)[:, 0], rtol=0, atol=1e-11)


def test_a_pooled_feature_leaves_the_prompts_out(images: Tensor) -> None:
    vit = model("avg")
    tuning = make(vit)
    assert tuning.indices == (0, 1)
    tokens, _ = by_hand(vit, tuning, images)
    kept = torch.cat([tokens[:, :1], tokens[:, 3:]], 1)
    wanted = vit.vit.forward_head(vit.vit.norm(kept), pre_logits=True)
    torch.testing.assert_close(vit(images, tuning), wanted, rtol=0, atol=1e-11)
    with_prompts = vit.vit.forward_head(vit.vit.norm(tokens), pre_logits=True)
    assert not torch.allclose(with_prompts, wanted, atol=1e-3)


@pytest.mark.parametrize("blocks", ["0", "1", "0-1"])
def test_prompts_stay_behind_the_blocks_that_made_them(vit: TimmViT, images: Tensor, blocks: str) -> None:
    tuning = make(vit, blocks=blocks)
    tokens, _ = by_hand(vit, tuning, images)
    assert tokens.shape[1] == vit.shape.tokens + 2
    torch.testing.assert_close(vit(images, tuning), vit.vit.norm(tokens)[:, 0], rtol=0, atol=1e-11)


# -- what learns (§4.7, §12.4) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_parameter_reaches_the_feature(images: Tensor, pool: str) -> None:
    """In the last block nothing mixes tokens behind the prompts, so it has none."""
    assert sum(p.numel() for p in make_tuning("token_mixing", VIT_B, torch.Generator()).parameters()) == 38_566
    vit = model(pool)
    tuning = make(vit)
    assert tuning.indices == (0, 1)
    vit(images, tuning).square().sum().backward()
    assert all(p.grad.any() for p in tuning.parameters())


def descend(vit: TimmViT, tuning: TokenMixing, images: Tensor) -> dict[str, list[bool]]:
    """Whether each kind of parameter had a gradient, in every block, at each of four steps."""
    optimizer = torch.optim.SGD(tuning.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    found: dict[str, list[bool]] = {"generator_weight": [], "norm_weight": [], "norm_bias": []}
    for _ in range(4):
        optimizer.zero_grad()
        vit(images, tuning).square().sum().backward()
        for name, steps in found.items():
            gradients = [getattr(tuning.block(i), name).grad.any() for i in tuning.indices]
            assert len(set(map(bool, gradients))) == 1
            steps.append(bool(gradients[0]))
        optimizer.step()
    return found


def test_how_the_generator_comes_to_learn(vit: TimmViT, images: Tensor) -> None:
    tuning = make(vit, trained=False)
    assert descend(vit, tuning, images) == {
        "generator_weight": [False, True, True, True],
        "norm_weight": [True] * 4,
        "norm_bias": [True] * 4,
    }


def test_from_zeros_the_generator_never_learns(vit: TimmViT, images: Tensor) -> None:
    """Trap T1."""
    tuning = make(vit, trained=False, init="zeros")
    assert not any(p.any() for p in tuning.parameters())
    assert descend(vit, tuning, images) == {
        "generator_weight": [False] * 4,
        "norm_weight": [False] * 4,
        "norm_bias": [True] * 4,
    }
    for i in tuning.indices:
        assert not tuning.block(i).generator_weight.any() and not tuning.block(i).norm_weight.any()


def test_the_start_has_the_law_of_the_paper() -> None:
    tuning = make_tuning("token_mixing", VIT_B, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(197)
    drawn = torch.cat([tuning.block(i).generator_weight for i in tuning.indices])
    assert 0.99 * bound < drawn.abs().max() <= bound
    assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(p.any() for name, p in tuning.named_parameters() if "norm" in name)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 9])
@pytest.mark.parametrize(("size", "met"), [(24, 10), (40, 26), (16, 5)])
def test_another_number_of_tokens_is_refused(vit: TimmViT, size: int, met: int, length: int) -> None:
    """Also when the tokens are as many more as there are prompts: 26 are 17 and 9."""
    images = torch.rand(1, 3, size, size, dtype=torch.float64)
    with pytest.raises(ConfigError, match=f"made for 17 tokens and meets {met}.*one input size; no padding"):
        model(img_size=size)(images, make(vit, length=length))


def test_a_last_block_alone_is_refused(vit: TimmViT) -> None:
    for backbone in (vit, model("avg")):
        with pytest.raises(ConfigError, match="the last block cannot reach the feature any more; tune one before"):
            make(backbone, blocks="2")
