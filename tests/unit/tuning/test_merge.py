"""LoRA merged into the weights for a while, and the weights a backbone shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import TimmViT, digest
from evertune.errors import BackboneError, ConfigError
from evertune.tuning import Tuning, make_tuning, merged


def trained(vit: TimmViT, kind: str = "lora", **options: Any) -> Tuning:
    tuning = make_tuning(kind, vit.shape, torch.Generator().manual_seed(0), **options).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tuning


@pytest.mark.parametrize("options", [{}, {"targets": "qkv", "alpha": 4.0}, {"blocks": "1", "rank": 3}])
def test_merged_is_tuned(vit: TimmViT, images: Tensor, options: dict[str, Any]) -> None:
    lora = trained(vit, **options)
    expected, plain, before = vit(images, lora), vit(images), digest(vit.state_dict())
    assert not torch.allclose(expected, plain)
    with merged(vit, lora) as same:
        assert same is vit and digest(vit.state_dict()) != before
        torch.testing.assert_close(vit(images), expected, rtol=0, atol=1e-11)
    assert digest(vit.state_dict()) == before
    assert torch.equal(vit(images), plain)
    assert not any(p.requires_grad for p in vit.parameters())


def test_only_the_targets_change(vit: TimmViT) -> None:
    names = ("q", "k", "v", "o", "fc1", "fc2")
    before = {(i, n): vit.weight(i, n).clone() for i in range(3) for n in names}
    lora = trained(vit, targets="kv", blocks="0,2", alpha=3.0)
    with merged(vit, lora):
        for (i, name), weight in before.items():
            block = lora.block(i)
            if block is None or name not in "kv":
                assert torch.equal(vit.weight(i, name), weight)
            else:
                change = 3.0 / 5 * (block.a[name] @ block.b[name]).T
                torch.testing.assert_close(vit.weight(i, name), weight + change)


def test_the_weights_come_back_after_an_error(vit: TimmViT) -> None:
    before = digest(vit.state_dict())
    with pytest.raises(ZeroDivisionError), merged(vit, trained(vit)):
        raise ZeroDivisionError
    assert digest(vit.state_dict()) == before


def test_scopes_do_not_overlap(vit: TimmViT, images: Tensor) -> None:
    first, again, other = trained(vit, blocks="0-1"), trained(vit, blocks="1-2"), trained(vit, blocks="2")
    before = digest(vit.state_dict())
    with merged(vit, first):
        inside = digest(vit.state_dict())
        with pytest.raises(ConfigError, match="Weight k of block 1 is merged already"), merged(vit, again):
            pass
        assert digest(vit.state_dict()) == inside
        with merged(vit, other):  # another block
            assert digest(vit.state_dict()) != inside
        assert digest(vit.state_dict()) == inside
    assert digest(vit.state_dict()) == before
    expected = vit(images, again)
    with merged(vit, again):  # free again
        torch.testing.assert_close(vit(images), expected, rtol=0, atol=1e-11)
    assert digest(vit.state_dict()) == before


@pytest.mark.parametrize("kind", ["adapter", "sequential_adapter", "prefix", "prompt", "ssf", "vpt"])
def test_only_lora_can_be_merged(vit: TimmViT, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"Only LoRA .* this is a {kind}"), merged(vit, trained(vit, kind)):
        pass


def test_a_lora_of_another_shape(vit: TimmViT, tiny: TimmViT) -> None:
    with pytest.raises(ConfigError, match=r"width=48.*cannot be merged into a backbone of .*width=32"):
        merged(vit, make_tuning("lora", tiny.shape, torch.Generator())).__enter__()


def test_the_weights_are_views_of_the_linear_maps(vit: TimmViT) -> None:
    block, x = vit.vit.blocks[1], torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heads = [F.linear(x, vit.weight(1, n)) + block.attn.qkv.bias[32 * i : 32 * i + 32] for i, n in enumerate("qkv")]
    torch.testing.assert_close(torch.cat(heads, dim=1), block.attn.qkv(x))
    for name, layer in (("o", block.attn.proj), ("fc1", block.mlp.fc1), ("fc2", block.mlp.fc2)):
        assert vit.weight(1, name).data_ptr() == layer.weight.data_ptr()
        assert vit.weight(1, name).shape == (layer.out_features, layer.in_features)
    assert vit.weight(1, "v").data_ptr() == block.attn.qkv.weight[64:].data_ptr()


@pytest.mark.parametrize(("block", "name"), [(3, "q"), (-1, "q"), (0, "qkv"), (0, "norm1")])
def test_a_weight_that_is_not_there(vit: TimmViT, block: int, name: str) -> None:
    with pytest.raises(BackboneError, match=f"small has no weight '{name}' in block {block}: .* blocks 0 to 2"):
        vit.weight(block, name)
