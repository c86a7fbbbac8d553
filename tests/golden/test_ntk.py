"""ntk_*.npz: NTK-CL's branches, fusion, losses, averages, heads and one whole training step, by the method itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape, TimmViT
from evertune.engine.optimizer import make_optimizer
from evertune.heads import CosineHead, HybridFusion, section_scores
from evertune.methods import NTKCL, Batch, Collect, Generators, Optimise, Solve, TaskInfo
from evertune.methods.losses import (
    dissimilarity,
    dissimilarity_released,
    old_directions,
    overlap,
    overlap_released,
    released_residual,
)
from evertune.tuning import Tuning

pytestmark = pytest.mark.golden
Read = Callable[[str], Any]

BRANCHES = ("channel", "patch")
PLACES = {
    "channel": {f"{part}_{kind}": f"{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias")},
    "patch": {"generator_weight": "generator.weight", "norm_weight": "norm.weight", "norm_bias": "norm.bias"},
}
"""Our names of a block's parameters, and theirs. The generator's bias, which its norm takes off again, we have not."""


@pytest.fixture(autouse=True)
def by_default(dtype: torch.dtype) -> Iterator[None]:
    """What a method makes for itself is of the precision that is compared."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def method_for(vit: TimmViT, **options: Any) -> NTKCL:
    config = NTKCL.config_type.make("released", **{"tuning.dropout": 0.0, "fusion_dropout": 0.0} | options)
    return NTKCL(config, vit.shape, vit.shape.width, Generators()).eval()


def passes_of(vit: TimmViT, images: Tensor) -> Any:
    """The passes of a batch; in float64 their stand-in, as features leave the passes themselves in float32."""
    return Passes(vit, images) if images.dtype == torch.float32 else functools.cache(functools.partial(vit, images))


def fill(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def load(tuning: Tuning, kind: str, golden: Any, owner: str) -> None:
    for i in tuning.indices:
        for ours, theirs in PLACES[kind].items():
            fill(getattr(tuning.block(i), ours), golden[f"{owner}.block{i}.{kind}.{theirs}"])


def load_branches(method: NTKCL, golden: Any) -> None:
    for kind in BRANCHES:
        subnetwork: Any = method.subnetworks[kind]
        load(subnetwork.cur, kind, golden, "cur")
        load(subnetwork.pre[0], kind, golden, "pre")


def parameter(method: NTKCL, name: str) -> nn.Parameter:
    """The trained parameter that they call ``name``, as ``cur.block3.patch.norm.bias``."""
    owner, *place = name.split(".", 3)
    if owner == "session_head":
        return getattr(method.head, place[0])
    if owner == "fusion":
        return getattr(method.fusion, "_".join(place))
    block, kind, theirs = place
    ours = next(o for o, t in PLACES[kind].items() if t == theirs)
    tuning: Any = method.subnetworks[kind]
    return getattr((tuning.cur if owner == "cur" else tuning.pre[0]).block(int(block.removeprefix("block"))), ours)


# -- branches (§4.2 to §4.4) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_branches(vit: TimmViT, vectors: Read, plain: bool) -> None:
    golden = vectors("ntk_branches")
    torch.testing.assert_close(vit.vit.pos_embed.data, golden["pos_embed"], rtol=0, atol=1e-6)
    method = method_for(vit, plain=plain)
    load_branches(method, golden)
    found = method.features(passes_of(vit, golden["images"]))
    for kind in BRANCHES:
        golden.check_features(f"S{2 + plain}.{kind}_features", found[kind])
    if plain:
        golden.check_features("ptm_features", found["channel"][:, : vit.shape.width])
        return
    torch.stack([found[kind].square().sum() for kind in BRANCHES]).sum().backward()
    checked = [n for n in golden.arrays if n.startswith("grad.") and not n.endswith("_f64")]
    assert len(checked) == 4
    for name in checked:
        golden.check_gradient(name, parameter(method, name.removeprefix("grad.")).grad)


def test_branches_as_released_at_first(vit: TimmViT, vectors: Read) -> None:
    """Adapters are the plain model; prompts of zeros are not."""
    golden = vectors("ntk_branches")
    found = method_for(vit).features(passes_of(vit, golden["images"]))
    for kind in BRANCHES:
        golden.check_features(f"released_init.{kind}_features", found[kind])
    golden.check_features("ptm_features", vit(golden["images"]))


def test_stream_of_the_patch_branch(vit: TimmViT, vectors: Read) -> None:
    golden, width = vectors("ntk_branches"), vit.shape.tokens
    method = method_for(vit)
    load_branches(method, golden)
    subnetwork: Any = method.subnetworks["patch"]
    tokens = vit.embed(golden["images"][:1])
    for block in (0, 1):
        tokens = vit.run(tokens, subnetwork.cur, block, block + 1)
        theirs = torch.cat([tokens[:, :1], tokens[:, width:], tokens[:, 1:width]], 1)  # their prompts are behind CLS
        golden.check_features(f"cur.patch_branch.tokens_after_block{block}_image0", theirs)


# -- one training step and the end of a session (§5 to §8) -------------------------------------------------------------

TASK = TaskInfo(index=1, present=(50, 51, 52, 53, 54), new=(50, 51, 52, 53, 54), known=50, size=8)
STEP = {"rate": 0.02, "weight_decay": 5e-3, "w_dis": 0.2, "batch_size": 8}
FUSION = [f"fusion.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")]


def begun(vit: TimmViT, vectors: Read) -> tuple[NTKCL, Optimise, Solve, Collect]:
    """The method at the step that was recorded, and what remains of its session."""
    step, branches = vectors("ntk_training_step"), vectors("ntk_branches")
    method = method_for(vit, **STEP)
    prototypes: Any = method.means["hybrid"]
    prototypes.sums, prototypes.counts = step["prototypes"][:50].double(), torch.ones(50, dtype=torch.long)
    method.averaged[0] = 1
    load_branches(method, branches)
    for name in FUSION:
        fill(parameter(method, name), step[name])
    now = {name: p.detach().clone() for name, p in method._kept()}
    fused = dict(method.fusion.named_parameters())
    for name, p in method._kept():  # the session before ended elsewhere
        fill(p, ((0.5 if name in fused else 0.9) * now[name].float()).to(p))
    begin, session, average, collect = method.phases(TASK)
    assert isinstance(begin, Solve) and isinstance(session, Optimise)
    assert isinstance(average, Solve) and isinstance(collect, Collect)
    with torch.no_grad():
        begin.run()
    for name, p in method._kept():
        fill(p, now[name])
    fill(method.head.weight, step["session_head.weight"])
    fill(method.head.sigma, step["session_head.sigma"][0])
    return method.train(), session, average, collect


def beyond_our_parameters(vectors: Read) -> float:
    """What their L_reg counts for patch parameters of the last block, which reach no feature and which we have not."""
    golden = vectors("ntk_branches")
    last = [golden[f"cur.block11.patch.{name}"] for name in ("generator.weight", "norm.weight")]
    return sum(float((now - (0.9 * now.float()).to(now)).square().sum()) for now in last)


def test_training_step(vit: TimmViT, vectors: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    step = vectors("ntk_training_step")
    torch.testing.assert_close(vit.vit.pos_embed.data, step["pos_embed"], rtol=0, atol=1e-6)
    method, session, average, collect = begun(vit, vectors)
    drawn = step["selected_rows"]
    monkeypatch.setattr(torch, "randperm", lambda n: torch.cat([drawn, torch.arange(n)]))
    batch = Batch(passes_of(vit, step["images"]), step["labels"], torch.arange(8))

    features = method.features(batch.passes)
    for name in ("channel", "patch", "hybrid"):
        step.check_features(f"{name}_features", features[name])
        step.check_algebra(f"session_logits_{name}", method.head(features[name]), rtol=1e-9)
    terms = session.loss(batch)
    for name in ("channel", "patch", "hybrid"):
        step.check_algebra(f"loss.L_cls_{name}", terms[name], rtol=1e-9)
    step.check_algebra("loss.released_L_dis", terms["dissimilarity"] / 0.2, rtol=1e-9)
    step.check_algebra("loss.released_L_orth", terms["orthogonality"] / 1e-4, rtol=1e-9)
    missing = beyond_our_parameters(vectors)
    assert missing > 0
    step.check_algebra("loss.released_L_reg", terms["pull"] / 1e-3 + missing, rtol=1e-9)
    total = torch.stack(list(terms.values())).sum()
    step.check_algebra("loss.total", total + 1e-3 * missing, rtol=1e-9)
    assert len(terms) == 6

    parameters = list(session.parameters())
    optimizer = make_optimizer(parameters, session.recipe)
    total.backward()
    for name in [n.removeprefix("grad.") for n in step.arrays if n.startswith("grad.") and not n.endswith("_f64")]:
        gradient = parameter(method, name.removesuffix("_rows0to7")).grad
        assert gradient is not None
        gradient = gradient[:8] if name.endswith("_rows0to7") else gradient
        step.check_gradient(f"grad.{name}", gradient.view(1) if name.endswith("sigma") else gradient)
    optimizer.step()
    exact = vit.vit.pos_embed.dtype == torch.float64
    for key in [n for n in step.arrays if n.startswith("after_sgd_step.") and not n.endswith("_f64")]:
        value = parameter(method, key.removeprefix("after_sgd_step.")).detach()
        wanted = step.arrays[f"{key}_f64" if exact else key]
        np.testing.assert_allclose(value.numpy().reshape(wanted.shape), wanted, rtol=0, atol=1e-11 if exact else 1e-6)

    method.eval()
    with torch.no_grad():
        average.run()
        step.check_algebra(
            "after_session.pre.block0.channel.down.weight", parameter(method, "pre.block0.channel.down.weight"), 1e-9
        )
        after = Batch(passes_of(vit, step["images"]), step["labels"], torch.arange(8))
        collect.update(after)
        prototypes: Any = method.means["hybrid"]
        new_rows = prototypes.sums[50:] / prototypes.counts[50:, None]
        step.check_features("after_session.prototypes_new_rows", new_rows)
        assert torch.equal(prototypes.means[:50], step["prototypes"][:50].float())
        scores = method.scores(after.passes)
    assert next(iter(scores)) == "hybrid"
    step.check_algebra("after_session.hybrid_scores", scores["hybrid"], 1e-6)  # prototypes are kept in float32


# -- fusion (§4.5) -----------------------------------------------------------------------------------------------------


def test_fusion(vectors: Read) -> None:
    golden = vectors("ntk_losses_heads_ema")
    fusion = HybridFusion(48, torch.Generator(), attention=True).eval()
    for part in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            fill(getattr(fusion, f"{part}_{kind}"), golden[f"fusion48.{part}.{kind}"])
    given = {name: golden[f"fusion48.{name}_features"].requires_grad_() for name in BRANCHES}
    output = fusion(given["channel"], given["patch"])
    golden.check_algebra("fusion48.output", output)
    output.square().sum().backward()
    for name in BRANCHES:
        golden.check_gradient(f"fusion48.grad.{name}_features", given[name].grad)
    golden.check_gradient("fusion48.grad.value.weight", fusion.value_weight.grad)
    for part in ("query", "key"):
        assert not golden.arrays[f"fusion48.grad.{part}.weight_f64"].any()
        assert not golden.arrays[f"fusion48.grad.{part}.weight"].any()
        assert getattr(fusion, f"{part}_weight").grad is None


# -- regularisers (§5) -------------------------------------------------------------------------------------------------


def test_dissimilarity(vectors: Read) -> None:
    golden = vectors("ntk_losses_heads_ema")
    old = golden["dis.old_prototypes"][golden["dis.selected_rows"]]
    for form, loss, gradient in (
        (dissimilarity_released, "dis.released_L_dis", "dis.released_grad_of_L_dis"),
        (dissimilarity, "dis.corrected_L_dis", "dis.corrected_grad"),
    ):
        m = golden["dis.hybrid_features"].requires_grad_()
        value = form(m, golden["dis.labels"], old, tau=0.1)
        value.backward()
        golden.check_algebra(loss, value)
        golden.check_gradient(gradient, m.grad)
        if form is dissimilarity_released:
            golden.check_algebra("dis.released_I", -value)


def test_dissimilarity_without_pairs(vectors: Read) -> None:
    """Released, I is infinite and the term counts as 0."""
    golden = vectors("ntk_losses_heads_ema")
    m = golden["dis.hybrid_features"][:3].requires_grad_()
    assert golden["dis.nopos.is_infinite"]
    old = golden["dis.old_prototypes"][golden["dis.selected_rows"]]
    value = dissimilarity_released(m, golden["dis.nopos.labels"], old, tau=0.1)
    assert value == golden["dis.nopos.value_after_replacement"] == 0
    assert not value.requires_grad and not golden["dis.nopos.grad_after_replacement"].any()


def test_orthogonality_as_released(vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("ntk_losses_heads_ema")
    c, p = (golden[f"orth.{name}_features"].requires_grad_() for name in BRANCHES)
    value = overlap_released(released_residual(golden["orth.prototypes"], 40), c, p)
    value.backward()
    exact = dtype == torch.float64
    wanted = golden.arrays["orth.released_L_orth" + "_f64" * exact]
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-9 if exact else 1e-4)
    for name, features in zip(BRANCHES, (c, p), strict=True):
        golden.check_gradient(f"orth.released_grad.{name}_features", features.grad)


def test_orthogonality_as_released_before_there_are_prototypes(vectors: Read) -> None:
    golden = vectors("ntk_losses_heads_ema")
    c, p = (golden[f"orth.{name}_features"] for name in BRANCHES)
    value = overlap_released(released_residual(torch.zeros(10, 96), 40), c, p)
    golden.check_algebra("orth.session0.released_L_orth", value)


def test_orthogonality(vectors: Read, dtype: torch.dtype) -> None:
    golden = vectors("ntk_losses_heads_ema")
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    U = old_directions(golden["orth.prototypes"], 40)
    diagonal = (U @ U.T).diagonal().numpy()
    np.testing.assert_allclose(diagonal, golden.arrays["orth.projector_diag_f64"], rtol=0, atol=rtol)
    rows = nn.functional.normalize(golden["orth.prototypes"], dim=1)
    strength = (rows @ old_directions(golden["orth.prototypes"], 60)).norm(dim=0).numpy()
    np.testing.assert_allclose(strength, golden.arrays["orth.singular_values_f64"], rtol=rtol)
    c, p, m = (golden[f"orth.{name}_features"] for name in (*BRANCHES, "hybrid"))
    golden.check_algebra("orth.corrected_L_orth_cp", overlap(U, c, p), 1e-9)
    golden.check_algebra("orth.corrected_L_orth_cpm", overlap(U, c, p, m), 1e-9)


# -- heads (§4.6, §8) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "omega"), [("S2", (0.3, 0.1)), ("S3", (1.0, 0.3, 0.1))])
def test_scores_by_section(vectors: Read, vit: TimmViT, case: str, omega: tuple[float, ...]) -> None:
    golden = vectors("ntk_losses_heads_ema")
    assert tuple(method_for(vit, plain=case == "S3").weights) == omega
    prototypes = golden[f"head.{case}.prototypes"]
    assert not prototypes[-1].any()
    scores = section_scores(golden[f"head.{case}.features"], prototypes, omega)
    golden.check_algebra(f"head.{case}.reweighted_scores", scores)


def test_session_head(vectors: Read) -> None:
    golden = vectors("ntk_losses_heads_ema")
    head = CosineHead(48, golden["session_head.sigma"].item())
    head.grow(golden["session_head.weight"])
    golden.check_algebra("session_head.logits", head(golden["session_head.features"]))


# -- average (§7) ------------------------------------------------------------------------------------------------------


def averaging(**options: Any) -> tuple[NTKCL, nn.Parameter, nn.Parameter]:
    """A method whose channel branch has a parameter of the recorded shape [3, 4]: it, and its average."""
    shape = Shape(width=4, depth=1, heads=1, hidden=4, tokens=2)
    config = NTKCL.config_type.make("released", branch="channel", **{"tuning.bottleneck": 3} | options)
    method = NTKCL(config, shape, 4, Generators())
    subnetwork: Any = method.subnetworks["channel"]
    return method, subnetwork.cur.block(0).down_weight, subnetwork.pre[0].block(0).down_weight


@pytest.mark.parametrize("total", [None, 10])
def test_average_of_the_sessions(vectors: Read, total: int | None) -> None:
    golden = vectors("ntk_losses_heads_ema")
    method, cur, pre = averaging(total_tasks=total)
    fill(pre, golden["ema.target_initial"])
    for t, wanted in enumerate(golden["ema.after_each_session"]):
        fill(cur, golden["ema.sequence"][t])
        with torch.no_grad():
            method._average(t)
        if t == 9 and total:  # released: none after the last
            wanted = golden["ema.after_each_session"][8]
        torch.testing.assert_close(pre.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_ratios_of_the_average(vectors: Read) -> None:
    golden = vectors("ntk_losses_heads_ema")
    method, cur, pre = averaging()
    for t, ratios in enumerate(golden.arrays["ema.ratios_previous_current"]):
        for previous, current, ratio in ((1, 0, ratios[0]), (0, 1, ratios[1])):
            fill(pre, torch.full_like(pre, previous))
            fill(cur, torch.full_like(cur, current))
            method.averaged[0] = t
            with torch.no_grad():
                method._average(t)
            np.testing.assert_allclose(pre.detach().numpy(), ratio, rtol=0, atol=1e-7)
