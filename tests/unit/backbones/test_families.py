"""The sites reproduce timm's own forward, for every family and at another input size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.tuning import BlockTuning, Tuning

Make = Callable[..., VisionTransformer]

FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {  # model, how it is made small, another input size
    "vit": ("vit_tiny_patch16_224", {}, 48),
    "augreg-avg": ("vit_tiny_patch16_224", {"global_pool": "avg"}, 48),
    "no-class-token": ("vit_base_patch16_gap_224", {}, 48),
    "deit": ("deit_tiny_patch16_224", {}, 48),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {}, 48),
    "deit3": ("deit3_small_patch16_224", {}, 48),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 14, "img_size": 56}, 84),
    "clip": ("vit_base_patch32_clip_224", {}, 48),
    "clip-quickgelu": ("vit_base_patch32_clip_quickgelu_224", {}, 48),
    "siglip-map": ("vit_base_patch16_siglip_224", {}, 48),
    "siglip-native-384-of-14": ("vit_so400m_patch14_siglip_384", {"patch_size": 14, "img_size": 48}, 70),
    "qk-norm": ("vit_little_patch16_reg1_gap_256", {}, 48),
    "beit3-inner-norms": ("beit3_base_patch16_224", {}, 48),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"patch_size": 2, "img_size": 64}, 64),
}


def library(model: VisionTransformer, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, make_model: Make) -> tuple[VisionTransformer, int]:
    name, kwargs, other = FAMILIES[request.param]
    return make_model(name, **{"depth": 2, **kwargs}), other


@pytest.mark.parametrize("native", [True, False], ids=["native size", "another size"])
def test_equals_the_library(family: tuple[VisionTransformer, int], native: bool) -> None:
    model, other = family
    reference = copy.deepcopy(model)
    size = model.patch_embed.img_size[0] if native else other
    if not native:
        reference.set_input_size((size, size))
    vit = TimmViT(model, "family", input_size=size)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = (torch.tensor(t, dtype=torch.float64).view(1, 3, 1, 1) for t in (vit.identity.mean, vit.identity.std))
    expected = library(reference, (images - mean) / std)
    close = {"rtol": 0, "atol": 1e-12}
    vit.double()
    vit.mean.copy_(mean)  # the buffers are float32 by nature: here they must not set the error
    vit.std.copy_(std)
    torch.testing.assert_close(vit(images), expected, **close)
    open_sites = Tuning(vit.shape, range(vit.shape.depth))
    open_sites.blocks = nn.ModuleDict({str(i): BlockTuning() for i in open_sites.indices})
    torch.testing.assert_close(vit(images, open_sites), expected, **close)
    tokens = vit.embed(images)
    assert tokens.shape == (2, vit.shape.tokens, vit.shape.width)
    for i in range(vit.shape.depth):
        tokens = vit.run(tokens, None, i, i + 1)
    torch.testing.assert_close(vit.read(tokens, None), expected, **close)


def test_the_position_of_cls_is_what_embedding_adds_to_it_at_last(family: tuple[VisionTransformer, int]) -> None:
    vit = TimmViT(family[0], "family", preprocessing="unit")
    size, model = vit.identity.input_size, vit.vit
    assert vit.cls_position.shape == (vit.shape.width,) and not vit.cls_position.requires_grad
    bare = model.cls_token is None or model.no_embed_class or not isinstance(model.norm_pre, nn.Identity)
    assert bool(vit.cls_position.any()) != bare
    if not bare:
        tokens = vit.embed(torch.rand(1, 3, size, size, dtype=torch.float64))
        torch.testing.assert_close(tokens[0, 0], model.cls_token[0, 0] + vit.cls_position, rtol=0, atol=1e-12)


def test_half_a_block_is_its_attention(family: tuple[VisionTransformer, int]) -> None:
    """With the residual and the layer scale of the library's block; the other half leads to its end."""
    vit = TimmViT(family[0], "family", preprocessing="unit")
    size, shape = vit.identity.input_size, vit.shape
    tokens = vit.embed(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    close = {"rtol": 0, "atol": 1e-11}
    for i, block in enumerate(vit.vit.blocks):
        answered = 1 if vit.reads_cls and i == shape.depth - 1 else shape.tokens
        middle = vit.run(tokens, None, i, i + 0.5)
        wanted = tokens + block.ls1(block.attn(block.norm1(tokens)))
        torch.testing.assert_close(middle, wanted[:, :answered], **close)
        end = vit.run(middle, None, i + 0.5, i + 1)
        torch.testing.assert_close(end, block(tokens)[:, :answered], **close)
        tokens = end


def test_only_cls_readers_answer_one_query(make_model: Make) -> None:
    for name, kwargs in (("vit_tiny_patch16_224", {}), ("vit_base_patch32_clip_224", {})):
        vit = TimmViT(make_model(name, **kwargs), name)
        assert vit.run(vit.embed(torch.rand(2, 3, 32, 32).double()), None, 0, 4).shape == (2, 1, 32)
    for name in ("deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224", "vit_base_patch16_gap_224"):
        vit = TimmViT(make_model(name), name)
        assert vit.run(vit.embed(torch.rand(2, 3, 32, 32).double()), None, 0, 4).shape == (2, vit.shape.tokens, 32)


def test_shape_and_registers(make_model: Make) -> None:
    model = make_model("vit_small_patch14_reg4_dinov2", patch_size=14, img_size=56)
    shape = TimmViT(model, "dinov2").shape
    assert (shape.width, shape.depth, shape.heads, shape.hidden) == (32, 4, 2, 128)
    assert shape.tokens == 1 + 4 + 16


def test_unit_preprocessing_is_the_bare_model(make_model: Make, images: Tensor) -> None:
    model = make_model()
    expected = library(copy.deepcopy(model), images)
    torch.testing.assert_close(TimmViT(model, "unit", preprocessing="unit")(images), expected, rtol=0, atol=1e-12)


def test_native_preprocessing_follows_the_checkpoint(make_model: Make) -> None:
    clip = TimmViT(make_model("vit_base_patch32_clip_224"), "clip")
    assert clip.identity.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    deit = TimmViT(make_model("deit_tiny_patch16_224"), "deit")
    assert deit.identity.std == pytest.approx((0.229, 0.224, 0.225))


def test_a_backbone_is_frozen_whatever_is_asked(vit: TimmViT) -> None:
    vit.train()
    assert not any(m.training for m in vit.modules())
    assert not any(p.requires_grad for p in vit.parameters())
