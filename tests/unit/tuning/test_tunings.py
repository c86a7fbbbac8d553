"""The tunings: sizes, identity at the start, what trains, and what their options refuse."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from evertune.backbones import Shape, TimmViT
from evertune.errors import ConfigError
from evertune.tuning import (
    SSF,
    TUNINGS,
    VPT,
    BlockTuning,
    Tuning,
    make_tuning,
    parse_blocks,
    tuning_options,
    validate_tuning,
)

VIT_B = Shape(width=768, depth=12, heads=12, hidden=3072, tokens=197)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("adapter", {}),
    ("lora", {"targets": "qkv"}),
    ("full", {}),
    ("ssf", {}),
    ("vpt", {"deep": True}),
    ("vpt", {"deep": False}),
    ("sequential_adapter", {}),
    ("prefix", {"length": 3}),
    ("prompt", {"length": 3}),
    ("token_mixing", {"length": 3}),
]
IDS = ["adapter", "lora", "full", "ssf", "vpt-deep", "vpt-shallow", "sequential", "prefix", "prompt", "mixing"]
kinds = pytest.mark.parametrize(("kind", "options"), KINDS, ids=IDS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(vit: TimmViT, kind: str, **options: Any) -> Tuning:
    return make_tuning(kind, vit.shape, seeded(), **options).double()


def shaken(tuning: Tuning, seed: int = 9) -> Tuning:
    """As after training: every parameter moved."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tuning


# -- sizes and starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "count"),
    [
        ("adapter", {}, 1_189_632),
        ("full", {"blocks": "0-1"}, 2 * 7_087_872),  # what timm's blocks have
        ("ssf", {}, 205_824),
        ("vpt", {"deep": True}, 46_080),
        ("vpt", {"deep": False}, 3_840),
        ("adapter", {"bottleneck": 16}, 304_320),
        *[("lora", {"rank": r, "blocks": "0-4"}, n) for r, n in ((4, 61_440), (5, 76_800), (8, 122_880))],
        *[("sequential_adapter", {"bottleneck": r, "blocks": "0-4"}, n) for r, n in ((5, 42_265), (8, 65_320))],
        ("prefix", {"length": 20, "blocks": "0-4"}, 153_600),
        ("prompt", {"length": 20, "blocks": "0-4"}, 76_800),
        ("token_mixing", {}, 11 * (1_970 + 1_536)),
    ],
)
def test_trainable_parameters_of_a_vit_b(kind: str, options: dict[str, Any], count: int) -> None:
    tuning = make_tuning(kind, VIT_B, seeded(), **options)
    assert sum(p.numel() for p in tuning.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("kind", ["adapter", "lora", "full", "sequential_adapter"])
def test_identity_at_the_start(vit: TimmViT, images: Tensor, kind: str) -> None:
    torch.testing.assert_close(vit(images, fresh(vit, kind).eval()), vit(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["adapter", "sequential_adapter"])
def test_an_adapter_of_scale_zero_is_the_plain_model_even_trained(vit: TimmViT, images: Tensor, kind: str) -> None:
    adapter = shaken(fresh(vit, kind, scale=0.0)).eval()
    torch.testing.assert_close(vit(images, adapter), vit(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ssf", {}),
        ("vpt", {}),
        ("vpt", {"init": "zeros"}),
        ("prefix", {}),
        ("prompt", {}),
        ("token_mixing", {}),
        ("token_mixing", {"init": "zeros"}),
    ],
)
def test_the_others_do_not_start_at_the_plain_model(
    vit: TimmViT, images: Tensor, kind: str, options: dict[str, Any]
) -> None:
    assert not torch.allclose(vit(images, fresh(vit, kind, **options)), vit(images))


def test_scale_one_and_shift_zero_is_the_plain_model(vit: TimmViT, images: Tensor) -> None:
    ssf = fresh(vit, "ssf", std=0.0)
    assert all((p == (1 if name.endswith("gamma") else 0)).all() for name, p in ssf.named_parameters())
    torch.testing.assert_close(vit(images, ssf), vit(images), rtol=0, atol=1e-12)


def test_the_seed_decides_the_start() -> None:
    for kind, options in KINDS:
        if kind == "full":  # draws nothing
            continue
        one, same, other = (make_tuning(kind, VIT_B, seeded(s), **options).fingerprint() for s in (1, 1, 2))
        assert one == same != other


def test_the_starts_have_the_laws_of_the_papers() -> None:
    adapter = make_tuning("adapter", VIT_B, seeded()).block(0)
    assert adapter is not None
    bound = 1 / math.sqrt(768)  # Kaiming-uniform with a = √5
    assert 0.99 * bound < adapter.down_weight.abs().max() <= bound
    assert not any(getattr(adapter, n).any() for n in ("down_bias", "up_weight", "up_bias"))
    for init, bound in (("lora", 1 / math.sqrt(768)), ("wide", 1 / math.sqrt(5))):
        lora = make_tuning("lora", VIT_B, seeded(), rank=5, init=init).block(0)
        assert lora is not None
        assert 0.99 * bound < lora.a["k"].abs().max() <= bound and not lora.b["k"].any()
    ssf = torch.cat([p.flatten() for n, p in make_tuning("ssf", VIT_B, seeded()).named_parameters() if "gamma" in n])
    assert ssf.mean().item() == pytest.approx(1, abs=1e-3) and ssf.std().item() == pytest.approx(0.02, rel=0.02)
    prompts = torch.cat([p.flatten() for p in make_tuning("vpt", VIT_B, seeded()).parameters()])
    assert prompts.std().item() == pytest.approx(0.02, rel=0.02)
    for init, fan in (("wide", 5), ("usual", 768)):  # Kaiming-normal with a = √5
        blocks = make_tuning("sequential_adapter", VIT_B, seeded(), init=init).blocks.values()
        down = torch.cat([block.down_weight for block in blocks])
        assert down.std().item() == pytest.approx(1 / math.sqrt(3 * fan), rel=0.02)
        assert not any(getattr(b, n).any() for b in blocks for n in ("down_bias", "up_weight", "up_bias"))
    for kind in ("prefix", "prompt"):
        for bound in (1.0, 0.25):
            drawn = torch.cat([p.flatten() for p in make_tuning(kind, VIT_B, seeded(), bound=bound).parameters()])
            assert 0.99 * bound < drawn.abs().max() <= bound
            assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


# -- training --------------------------------------------------------------------------------------------------------


@kinds
def test_only_the_tuning_trains(vit: TimmViT, images: Tensor, kind: str, options: dict[str, Any]) -> None:
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    tuning = shaken(fresh(vit, kind, **options)).train()
    optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    vit(images, tuning).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tuning.parameters())
    assert all(p.grad is None for p in vit.parameters())
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())


def test_adapter_dropout_only_in_training(vit: TimmViT, images: Tensor) -> None:
    adapter = shaken(fresh(vit, "adapter", dropout=0.5))
    adapter.eval()
    assert torch.equal(vit(images, adapter), vit(images, adapter))
    adapter.train()
    assert not torch.equal(vit(images, adapter), vit(images, adapter))
    assert torch.equal(vit(images, without := shaken(fresh(vit, "adapter", dropout=0.0))), vit(images, without))
    adapter.freeze().train()
    assert torch.equal(vit(images, adapter), vit(images, without.eval()))


@kinds
def test_a_frozen_tuning_stays_so(kind: str, options: dict[str, Any]) -> None:
    tuning = make_tuning(kind, VIT_B, seeded(), **options)
    assert not tuning.frozen and tuning.train().training
    tuning.freeze().train()
    assert tuning.frozen and not any(m.training for m in tuning.modules())


def test_a_frozen_tuning_has_no_gradient_left_to_move_it(vit: TimmViT, images: Tensor) -> None:
    tuning = shaken(fresh(vit, "lora"))
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # momentum, too
        vit(images, tuning).square().sum().backward()
        optimizer.step()
    kept = tuning.freeze().fingerprint()
    for to_none in (False, True):
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    assert tuning.fingerprint() == kept


# -- each kind -------------------------------------------------------------------------------------------------------


def test_lora_touches_its_targets_alone(vit: TimmViT) -> None:
    block = shaken(fresh(vit, "lora", targets="kv", rank=2, alpha=3.0)).block(0)
    assert block is not None
    x, y = torch.rand(2, 5, 32).double(), torch.rand(2, 5, 32).double()
    for name in ("q", "o", "fc1", "fc2"):
        assert block.project(x, name, y) is y
    for name in "kv":
        torch.testing.assert_close(block.project(x, name, y), y + 3.0 / 2 * x @ block.a[name] @ block.b[name])


def test_lora_is_a_change_of_the_weights(vit: TimmViT, images: Tensor) -> None:
    lora = shaken(fresh(vit, "lora", targets="qkv", rank=3, alpha=3.0))
    merged = copy.deepcopy(vit)
    for i, block in enumerate(merged.vit.blocks):
        change = torch.cat([lora.blocks[str(i)].a[t] @ lora.blocks[str(i)].b[t] for t in "qkv"], dim=1)
        block.attn.qkv.weight.data += change.T
    torch.testing.assert_close(vit(images, lora), merged(images), rtol=0, atol=1e-11)


def test_scale_and_shift_fold_into_the_weights(vit: TimmViT, images: Tensor) -> None:
    ssf = shaken(fresh(vit, "ssf"))
    folded = copy.deepcopy(vit)

    def fold(layer: nn.Module, gamma: Tensor, beta: Tensor) -> None:
        layer.weight.data *= gamma.view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.data.mul_(gamma).add_(beta)

    with torch.no_grad():
        fold(folded.vit.patch_embed.proj, ssf.ends["patch_embed"].gamma, ssf.ends["patch_embed"].beta)
        fold(folded.vit.norm, ssf.ends["norm"].gamma, ssf.ends["norm"].beta)
        for i, block in enumerate(folded.vit.blocks):
            at = ssf.blocks[str(i)].at
            fold(block.attn.qkv, torch.cat([at[t].gamma for t in "qkv"]), torch.cat([at[t].beta for t in "qkv"]))
            layers = {"norm1": block.norm1, "norm2": block.norm2, "o": block.attn.proj}
            layers |= {"fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
            for name, layer in layers.items():
                fold(layer, at[name].gamma, at[name].beta)
    torch.testing.assert_close(vit(images, ssf), folded(images), rtol=0, atol=1e-11)


def test_scale_and_shift_of_late_blocks_leaves_the_embedding(vit: TimmViT, images: Tensor) -> None:
    late = fresh(vit, "ssf", blocks="1-2")
    assert isinstance(late, SSF) and not late.tunes_embedding and late.begins == 1
    assert torch.equal(vit.embed(images, late), vit.embed(images))
    assert fresh(vit, "ssf").tunes_embedding


@pytest.mark.parametrize("deep", [True, False])
def test_the_order_of_prompts_does_not_matter(vit: TimmViT, images: Tensor, deep: bool) -> None:
    vpt = shaken(fresh(vit, "vpt", deep=deep))
    expected = vit(images, vpt)
    with torch.no_grad():
        for prompts in vpt.parameters():
            prompts.copy_(prompts[torch.randperm(5, generator=seeded(4))])
    torch.testing.assert_close(vit(images, vpt), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("init", "differ"), [("random", True), ("zeros", False)])
def test_prompts_differ_after_training_unless_they_start_at_zero(
    vit: TimmViT, images: Tensor, init: str, differ: bool
) -> None:
    vpt = fresh(vit, "vpt", init=init)  # trap T9
    optimizer = torch.optim.SGD(vpt.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        vit(images, vpt).square().sum().backward()
        optimizer.step()
    for prompts in vpt.parameters():
        assert prompts.any()
        assert torch.allclose(prompts, prompts[:1].expand_as(prompts), rtol=0, atol=1e-9) is not differ


def test_deep_prompts_leave_after_each_block_shallow_ones_after_the_last(vit: TimmViT, images: Tensor) -> None:
    def lengths(vpt: Tuning) -> list[int]:
        tokens, found = vit.embed(images), []
        for i in range(2):
            tokens = vit.run(tokens, vpt, i, i + 1)
            found.append(tokens.shape[1] - vit.shape.tokens)
        return found

    assert lengths(fresh(vit, "vpt", prompts=5, deep=True)) == [0, 0]
    assert lengths(fresh(vit, "vpt", prompts=5, deep=False)) == [5, 5]
    assert lengths(fresh(vit, "vpt", prompts=5, deep=False, blocks="0-1")) == [5, 0]
    assert lengths(fresh(vit, "vpt", prompts=5, deep=False, blocks="1")) == [0, 0]


def test_one_block_is_the_same_deep_and_shallow(vit: TimmViT, images: Tensor) -> None:
    deep, shallow = (fresh(vit, "vpt", deep=d, blocks="1") for d in (True, False))
    torch.testing.assert_close(vit(images, deep), vit(images, shallow), rtol=0, atol=1e-12)


def test_a_sequential_adapter_acts_behind_the_attention(vit: TimmViT) -> None:
    block = shaken(fresh(vit, "sequential_adapter", bottleneck=3, scale=0.5)).block(1)
    assert block is not None
    o = torch.randn(2, 5, 32, generator=seeded(), dtype=torch.float64)
    hidden = (o @ block.down_weight + block.down_bias).clamp(min=0)
    torch.testing.assert_close(block.attended(o), o + 0.5 * (hidden @ block.up_weight + block.up_bias))


def test_prefixes_are_keys_and_values_of_each_head(vit: TimmViT) -> None:
    """Against a block written out for one image, one head at a time."""
    prefix = fresh(vit, "prefix", length=3)
    part, block = prefix.block(0), vit.vit.blocks[0]
    assert part is not None
    x = torch.randn(1, 7, 32, generator=seeded(), dtype=torch.float64)
    q, k, v = block.attn.qkv(block.norm1(x))[0].chunk(3, dim=1)
    heads = []
    for columns in (slice(0, 16), slice(16, 32)):
        keys = torch.cat([part.key[:, columns], k[:, columns]])
        values = torch.cat([part.value[:, columns], v[:, columns]])
        heads.append((q[:, columns] @ keys.T / 4).softmax(1) @ values)
    after = x + block.attn.proj(torch.cat(heads, dim=1))
    torch.testing.assert_close(vit.run(x, prefix, 0, 1), after + block.mlp(block.norm2(after)))


@pytest.mark.parametrize("blocks", ["2", "0-1", "0,2", "0-2"])
def test_kept_prompts_against_the_librarys_blocks(vit: TimmViT, images: Tensor, blocks: str) -> None:
    prompt = fresh(vit, "prompt", length=2, blocks=blocks)
    x = vit.embed(images)
    for i, block in enumerate(vit.vit.blocks):
        part = prompt.block(i)
        x = block(x if part is None else torch.cat([part.prompts.expand(4, -1, -1), x], dim=1))
    assert x.shape[1] == vit.shape.tokens + prompt.prepended
    torch.testing.assert_close(vit(images, prompt), vit.vit.norm(x)[:, prompt.prepended], rtol=0, atol=1e-11)


# -- all kinds -------------------------------------------------------------------------------------------------------


@kinds
def test_state_makes_an_equal_tuning(vit: TimmViT, images: Tensor, kind: str, options: dict[str, Any]) -> None:
    tuning = shaken(fresh(vit, kind, **options)).eval()
    other = make_tuning(kind, vit.shape, seeded(77), **options).double().eval()
    assert other.fingerprint() != tuning.fingerprint()
    other.load_state_dict(tuning.state_dict())
    assert other.fingerprint() == tuning.fingerprint()
    assert torch.equal(vit(images, other), vit(images, tuning))


def test_constants_that_change_features_change_the_fingerprint() -> None:
    kinds = (("adapter", "scale"), ("lora", "alpha"), ("sequential_adapter", "scale"), ("token_mixing", "carry"))
    for kind, name in kinds:
        one, two = (make_tuning(kind, VIT_B, seeded(), **{name: v}).fingerprint() for v in (0.5, 2.0))
        assert one != two
    first, second = (make_tuning("vpt", VIT_B, seeded(), blocks=b).fingerprint() for b in ("0", "1"))
    assert first != second


@kinds
def test_blocks_before_the_first_are_the_plain_model(
    vit: TimmViT, images: Tensor, kind: str, options: dict[str, Any]
) -> None:
    tuning = shaken(fresh(vit, kind, blocks="1-2", **options)).eval()
    assert tuning.begins == 1 + 0.5 * tuning.spares_attention and tuning.block(0) is None
    tokens = vit.embed(images)
    assert torch.equal(vit.run(tokens, tuning, 0, tuning.begins), vit.run(tokens, None, 0, tuning.begins))
    assert not torch.allclose(vit(images, tuning), vit(images))


def test_a_plain_block_tuning_is_the_identity_at_every_site() -> None:
    block, x, y = BlockTuning(), torch.rand(1, 2, 3), torch.rand(1, 2, 3)
    assert block.tokens_in(x) is block.tokens_out(x) is block.attended(x) is x
    assert block.project(x, "q", y) is block.normed("norm1", y) is y
    assert block.prefix() is None and block.beside_mlp(x) is None
    assert all(stream is x for stream in block.between(x))


# -- options ---------------------------------------------------------------------------------------------------------


def test_options_by_kind() -> None:
    assert set(TUNINGS) == {
        "adapter",
        "full",
        "lora",
        "prefix",
        "prompt",
        "sequential_adapter",
        "ssf",
        "token_mixing",
        "vpt",
    }
    assert tuning_options("lora") == {"rank": 5, "alpha": 1.0, "targets": "kv", "init": "lora"}
    assert tuning_options("vpt") == {"prompts": 5, "deep": True, "init": "random"}
    validate_tuning("ssf", {"std": 0.1})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("adaptr", {}, "No tuning is called 'adaptr'. Did you mean 'adapter'"),
        ("adapter", {"botleneck": 3}, "'adapter' has no option 'botleneck'. Did you mean 'bottleneck'"),
        ("ssf", {"rank": 3}, "'ssf' has no option 'rank'"),
        ("adapter", {"bottleneck": 0}, "bottleneck=0 must be at least 1"),
        ("adapter", {"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ("adapter", {"dropout": -0.1}, "dropout=-0.1 must be"),
        ("lora", {"rank": 0}, "rank=0 must be at least 1"),
        ("lora", {"targets": "kx"}, "targets 'kx' must be letters out of q, k and v"),
        ("lora", {"targets": ""}, "targets '' must be letters"),
        ("lora", {"init": "huge"}, "init 'huge' does not exist; choose 'lora'"),
        ("vpt", {"prompts": 0}, "prompts=0 must be at least 1"),
        ("vpt", {"init": "ones"}, "init 'ones' does not exist; choose 'random' or 'zeros'"),
        ("vpt", {"deep": False, "blocks": "0,2"}, "shallow prompts pass through neighbouring blocks"),
        ("sequential_adapter", {"bottleneck": 0}, "bottleneck=0 must be at least 1"),
        ("sequential_adapter", {"init": "lora"}, "init 'lora' does not exist; choose 'wide'"),
        ("prefix", {"length": 0}, "prefix: length=0 must be at least 1"),
        ("prefix", {"bound": 0.0}, "prefix: bound=0.0 must be above 0"),
        ("prompt", {"length": -1}, "prompt: length=-1 must be at least 1"),
        ("prompt", {"bound": math.nan}, "prompt: bound=nan must be above 0 and finite"),
        ("token_mixing", {"length": 0}, "token_mixing: length=0 must be at least 1"),
        ("token_mixing", {"init": "normal"}, "init 'normal' does not exist; choose 'kaiming' or 'zeros'"),
        ("ssf", {"blocks": "10-13"}, r"ssf: blocks \[12, 13\] asked for, the backbone has blocks 0 to 11"),
        ("ssf", {"blocks": "5-2"}, r"blocks \(none\) asked for"),
        ("ssf", {"blocks": "first"}, "blocks='first' is not understood: write 'all', '0-4' or '0,2,5-7'"),
        ("ssf", {"blocks": "-1"}, "blocks='-1' is not understood"),
        ("ssf", {"blocks": ""}, "blocks='' is not understood"),
    ],
)
def test_options_that_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tuning(kind, VIT_B, seeded(), **options)


def test_a_tuning_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="none"):
        VPT(VIT_B, (), seeded())


@given(st.sets(st.integers(0, 40), min_size=1))
def test_blocks_written_one_by_one_or_as_ranges(chosen: set[int]) -> None:
    expected = tuple(sorted(chosen))
    assert parse_blocks(",".join(map(str, chosen)), 41) == expected
    runs: list[list[int]] = []
    for i in expected:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    assert parse_blocks(" , ".join(f"{a}-{b}" for a, b in runs), 41) == expected
    assert parse_blocks("all", 3) == (0, 1, 2)
