"""The last block answers CLS alone: exact under every tuning, forward and backward."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.tuning import BlockTuning, Tuning, make_tuning

Make = Callable[..., VisionTransformer]


class Everything(BlockTuning):
    """Steers every site at once: kept prompts, prefix, projections, norms, attention, both streams, beside the MLP."""

    def __init__(self, width: int, heads: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.3 * torch.randn(shape, generator=generator))

        self.prompts = draw(2, width)
        self.extra = draw(2, 1, heads, 3, width // heads)
        self.low = nn.ParameterDict(
            {n: draw(width) for n in ("q", "k", "v", "o", "fc2", "norm1", "norm2", "att", "in")}
        )
        self.low["fc1"] = draw(hidden)
        self.mix = draw(width, width)

    def tokens_in(self, x: Tensor) -> Tensor:
        return torch.cat([self.prompts.expand(len(x), -1, -1), x], dim=1)

    def project(self, x: Tensor, name: str, y: Tensor) -> Tensor:
        return y * (1 + self.low[name]) + x.mean(dim=-1, keepdim=True)

    def normed(self, name: str, y: Tensor) -> Tensor:
        return y * (1 + self.low[name])

    def prefix(self) -> tuple[Tensor, Tensor]:
        return self.extra[0], self.extra[1]

    def attended(self, y: Tensor) -> Tensor:
        return y + torch.tanh(y) * self.low["att"]

    def beside_mlp(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.mix)


class Between(BlockTuning):
    """A stream into the MLP that mixes tokens: only allowed to matter before the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.rate * torch.cat([x[:, :1], x[:, 1:].flip(1)], dim=1), x


def tuning(kind: str, vit: TimmViT) -> Tuning:
    generator = torch.Generator().manual_seed(3)
    shape = vit.shape
    if kind == "between":
        made = Tuning(shape, range(shape.depth - 1))
        made.blocks = nn.ModuleDict({str(i): Between() for i in made.indices})
        return made.double()
    if kind == "everything":
        made = Tuning(shape, range(shape.depth))
        made.prepended = 2 * shape.depth
        made.blocks = nn.ModuleDict(
            {str(i): Everything(shape.width, shape.heads, shape.hidden, generator) for i in made.indices}
        )
        return made.double()
    options: dict[str, Any] = {"deep": kind == "vpt-deep"} if kind.startswith("vpt") else {}
    made = make_tuning(kind.split("-")[0], shape, generator, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.double().eval()


KINDS = ["adapter", "lora", "ssf", "vpt-deep", "vpt-shallow", "token_mixing", "between", "everything"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_whole_last_block(make_model: Make, images: Tensor, kind: str) -> None:
    vit = TimmViT(make_model(), "cls", preprocessing="unit")
    whole = copy.deepcopy(vit)
    whole.reads_cls = False  # answers all tokens; timm then reads CLS out of them
    results = []
    for backbone in (vit, whole):
        made = tuning(kind, backbone)
        features = backbone(images, made)
        features.square().sum().backward()
        results.append((features.detach(), {n: p.grad for n, p in made.named_parameters()}))
    (features, gradients), (expected, expected_gradients) = results
    assert not torch.allclose(features, vit(images))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_pass_may_rest_at_any_half_place(make_model: Make, images: Tensor, kind: str, pool: str) -> None:
    """Also inside the last block, where CLS alone is left after the attention."""
    vit = TimmViT(make_model(global_pool=pool), "halves", preprocessing="unit")
    made = tuning(kind, vit)
    whole = vit.run(vit.embed(images, made), made, 0, 4)
    stations = [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 3.5, 4.0]
    tokens = vit.embed(images, made)
    for start, stop in itertools.pairwise(stations):
        tokens = vit.run(tokens, made, start, stop)
        assert (tokens.shape[1] == 1) == (pool == "token" and stop >= 3.5)
    torch.testing.assert_close(tokens, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_other_pools_leave_prepended_tokens_out(make_model: Make, images: Tensor, pool: str) -> None:
    model = make_model("vit_base_patch16_siglip_224") if pool == "map" else make_model(global_pool="avg")
    vit = TimmViT(model, "pool", preprocessing="unit")
    made = tuning("everything", vit)
    tokens = vit.run(vit.embed(images), made, 0, 4)
    assert tokens.shape[1] == vit.shape.tokens + made.prepended
    by_hand = vit.vit.forward_head(vit.vit.norm(tokens[:, made.prepended :]), pre_logits=True)
    torch.testing.assert_close(vit(images, made), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["vpt-deep", "vpt-shallow"])
def test_other_pools_never_see_visual_prompts(make_model: Make, images: Tensor, kind: str) -> None:
    vit = TimmViT(make_model(global_pool="avg"), "pool", preprocessing="unit")
    tokens = vit.run(vit.embed(images), tuning(kind, vit), 0, 4)
    assert tokens.shape[1] == vit.shape.tokens
