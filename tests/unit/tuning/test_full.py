"""Full fine-tuning beside the frozen weights, against a model whose own weights are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import HFEncoder, TimmViT
from evertune.engine.optimizer import make_optimizer
from evertune.methods import Recipe
from evertune.tuning import Full, make_tuning


def moved(full: Full) -> Full:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in full.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return full


def made(vit: TimmViT, blocks: str = "all") -> Full:
    full = make_tuning("full", vit.shape, torch.Generator(), blocks=blocks).double()
    assert isinstance(full, Full)
    return full


def pairs(full: Full, model: nn.Module) -> Iterator[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Each parameter of a timm block with what is added to it, which for query, key and value is three."""
    for i in full.indices:
        block, own = model.blocks[i], full.blocks[str(i)]
        for kind in ("weight", "bias"):
            parts = getattr(own, kind)
            yield getattr(block.attn.qkv, kind), [parts[name] for name in "qkv"]
            for name, layer in (("o", block.attn.proj), ("fc1", block.mlp.fc1), ("fc2", block.mlp.fc2)):
                yield getattr(layer, kind), [parts[name]]
        for name in ("norm1", "norm2"):
            yield getattr(block, name).bias, [own.shift[name]]


def tuned(vit: TimmViT, full: Full) -> TimmViT:
    """A copy whose weights are W + ΔW."""
    other = copy.deepcopy(vit)
    with torch.no_grad():
        for i in full.indices:
            for name in ("norm1", "norm2"):
                norm = getattr(other.vit.blocks[i], name)
                norm.weight.mul_(1 + full.blocks[str(i)].gain[name])
                norm.bias.mul_(1 + full.blocks[str(i)].gain[name])
        for weight, parts in pairs(full, other.vit):
            weight.add_(torch.cat(parts))
    return other


@pytest.mark.parametrize("blocks", ["all", "1", "0,2"])
def test_the_features_are_those_of_the_moved_weights(vit: TimmViT, images: Tensor, blocks: str) -> None:
    full = moved(made(vit, blocks))
    assert not torch.allclose(vit(images, full), vit(images))
    torch.testing.assert_close(vit(images, full), tuned(vit, full).vit(images), rtol=0, atol=1e-11)


def test_the_gradients_are_those_of_the_moved_weights(vit: TimmViT, images: Tensor) -> None:
    full = moved(made(vit))
    other = tuned(vit, full).vit.requires_grad_(True)
    vit(images, full).pow(3).sum().backward()
    other(images).pow(3).sum().backward()
    for weight, parts in pairs(full, other):
        torch.testing.assert_close(torch.cat([p.grad for p in parts]), weight.grad, rtol=1e-9, atol=1e-9)
    for i in full.indices:  # y ⊙ (1 + γ) turns the norm's scale and shift together
        for name in ("norm1", "norm2"):
            own, frozen = full.blocks[str(i)], getattr(vit.vit.blocks[i], name)
            norm = getattr(other.blocks[i], name)
            wanted = frozen.weight * norm.weight.grad + frozen.bias * norm.bias.grad
            torch.testing.assert_close(own.gain[name].grad, wanted, rtol=1e-9, atol=1e-9)


def test_slow_steps_are_those_of_slow_fine_tuning(vit: TimmViT, images: Tensor) -> None:
    """SGD with momentum, the classifier a hundred times faster: the released two groups."""
    full, other = made(vit), copy.deepcopy(vit).vit.requires_grad_(True)
    heads = [nn.Linear(32, 3).double() for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    own = [
        p for block in full.blocks.values() for part in (block.weight, block.bias, block.shift) for p in part.values()
    ]
    theirs = [weight for weight, _ in pairs(full, other)]
    recipe, rate = Recipe(epochs=1, batch_size=4, rate=0.2, momentum=0.9), 0.2
    optimizer = make_optimizer([*own, *heads[0].parameters()], recipe, [(own, 0.01)])
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate_at(0, group["factor"])
    reference = torch.optim.SGD(
        [{"params": theirs, "lr": rate / 100}, {"params": heads[1].parameters(), "lr": rate}], momentum=0.9
    )
    labels = torch.tensor([0, 1, 2, 0])
    for _ in range(4):
        for step, logits in ((optimizer, heads[0](vit(images, full))), (reference, heads[1](other(images)))):
            step.zero_grad()
            F.cross_entropy(logits, labels).backward()
            step.step()
    assert full.blocks["0"].weight["fc1"].abs().max() > 1e-5
    for (weight, parts), (frozen, _) in zip(pairs(full, other), pairs(full, vit.vit), strict=True):
        torch.testing.assert_close(frozen + torch.cat(parts), weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_texts_read_the_moved_weights(encoder: Callable[..., HFEncoder], family: str) -> None:
    backbone = copy.deepcopy(encoder(family)).double()
    full = moved(make_tuning("full", backbone.shape, torch.Generator()).double())
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    got, plain = backbone(ids, full), backbone(ids)
    with torch.no_grad():
        for i in full.indices:
            parts, own = backbone._blocks[i], full.blocks[str(i)]
            for name in own.weight:
                getattr(parts, name).weight.add_(own.weight[name])
                getattr(parts, name).bias.add_(own.bias[name])
            for name in own.gain:
                getattr(parts, name).weight.mul_(1 + own.gain[name])
                getattr(parts, name).bias.mul_(1 + own.gain[name]).add_(own.shift[name])
    assert not torch.allclose(got, plain)
    torch.testing.assert_close(got, backbone(ids), rtol=0, atol=1e-11)
