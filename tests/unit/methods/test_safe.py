"""SAFE over a real, tiny transformer: what trains, what stays, what is counted, what is mixed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, TimmViT
from evertune.heads import project
from evertune.learner import Learner
from evertune.methods import SAFE, Batch, Optimise, Solve, TaskInfo, make_method
from evertune.methods.losses import aggregate
from evertune.streams import Source, Stream

QUICK: dict[str, Any] = {
    "preset": "paper",
    "features": 64,
    "batch_size": 8,
    "epochs": 2,
    "follow_epochs": 2,
    "rate": 0.05,
}


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("safe", backbone, progress=False, device="cpu", **QUICK | options)


def images(source: Source, learner: Learner) -> Tensor:
    return learner.engine.runtime.inputs(
        torch.stack([learner.test_view(source.load(i), None) for i in range(len(source))])
    )  # type: ignore[arg-type]


def features(learner: Learner, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        passes = Passes(learner.backbone, x)
        return {"slow": passes(learner.method.slow), "fast": passes(learner.method.fast), "plain": passes()}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("tuning", ["adapter", "ssf", "vpt", "lora"])
def test_the_learners_part_after_the_first_session(
    backbone: TimmViT, stream: Stream, test: Source, tuning: str
) -> None:
    me = learner(backbone, tuning=tuning)
    x = images(test, me)
    me.learn(stream[0])
    first = features(me, x)
    assert torch.equal(first["slow"], first["fast"])
    assert not torch.equal(first["slow"], first["plain"])
    parts = me.engine.scores(me.method, test)
    assert torch.equal(parts["mixture"], parts["slow"]) and torch.equal(parts["mixture"], parts["fast"])
    assert torch.equal(me.method.ridge_fast.A, me.method.ridge_slow.A)
    slow_head = me.method.head_slow.weight.clone()
    for task in stream[1:]:
        before = features(me, x)["fast"]
        me.learn(task)
        later = features(me, x)
        assert torch.equal(later["slow"], first["slow"])
        assert not torch.equal(later["fast"], before)
        assert torch.equal(me.method.head_slow.weight[:2], slow_head)
        assert all(p.grad is None or not p.grad.any() for p in me.method.slow.parameters() if p.requires_grad)
        assert not any(p.requires_grad for p in (*me.method.slow.parameters(), *me.method.head_slow.parameters()))


def test_new_rows_are_imprinted(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone, follow_epochs=0)
    for task in stream[:2]:
        me.learn(task)
    head = me.method.head_slow.weight
    slow = features(me, images(stream[1].train, me))["slow"]
    labels = torch.tensor([me.classes.index(stream[1].train.classes[i]) for i in stream[1].train.labels])
    for c in (2, 3):
        wanted = F.normalize(slow, dim=1)[labels == c].mean(0)
        assert cosine(head[c][None], wanted[None]).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(head[2:].norm(dim=1), head[:2].norm(dim=1).mean().expand(2))
    # with no epochs the fast learner is still the slow one, and so are its rows
    torch.testing.assert_close(me.method.head_fast.weight, head)


@pytest.mark.parametrize(("rows", "frozen"), [("imprint", False), ("zeros", True)])
def test_head_growth(backbone: TimmViT, stream: Stream, rows: str, frozen: bool) -> None:
    """Imprinted rows stay O(1); the released zero rows are thrown to norms beyond 10⁹ (T1), or never move."""
    me = learner(backbone, new_rows=rows, follow_epochs=2)
    for task in stream[:2]:
        me.learn(task)
    norms = me.method.head_fast.weight[2:].norm(dim=1)
    assert bool((norms > 1e9).all()) == frozen
    assert bool((norms < 10).all()) != frozen
    assert bool(me.method.head_slow.weight[2:].any()) != frozen


def test_a_huge_alignment_keeps_the_fast_learner_at_the_slow_one(
    backbone: TimmViT, stream: Stream, test: Source
) -> None:
    for weight, holds in ((1e6, True), (0.0, False)):
        me = learner(
            backbone, tuning="lora", lambda_cos=weight, lambda_cc=0.0, optimizer="adam", rate=0.02,
            follow_rate=1e-5 if holds else 0.02, follow_epochs=8,
        )  # fmt: skip
        for task in stream[:2]:
            me.learn(task)
        both = features(me, images(test, me))
        assert (cosine(both["fast"], both["slow"]).min() > 0.9999) == holds


def session(me: Learner, stream: Stream, index: int) -> tuple[SAFE, TaskInfo, Batch]:
    """The method as its training phase of ``stream[index]`` finds it, and a batch of that task."""
    method: Any = copy.deepcopy(me.method)
    task = stream[index]
    known = len(me.classes)
    new = tuple(range(known, known + len(task.classes)))
    info = TaskInfo(index, new, new, known, len(task.train))
    x = images(task.train, me)
    names = list(task.classes)
    labels = torch.tensor([known + names.index(task.train.classes[i]) for i in task.train.labels])
    for phase in method.phases(info):
        match phase:
            case Optimise():
                break
            case Solve():
                with torch.no_grad():
                    phase.run()
            case _:
                with torch.no_grad():
                    phase.update(Batch(Passes(me.backbone, x), labels, torch.arange(len(labels))))
    return method, info, Batch(Passes(me.backbone, x), labels, torch.arange(len(labels)))


@pytest.mark.parametrize(
    ("options", "index", "forwards"),
    [
        ({}, 0, 1),
        ({"lambda_diag": 0.01, "lambda_rdn": 10.0}, 0, 2),
        ({}, 1, 2),
        ({"lambda_cos": 0.0}, 1, 2),
        ({"lambda_cos": 0.0, "lambda_cc": 0.0}, 1, 1),
    ],
)
def test_a_step_costs_one_forward_of_each_learner_it_needs(
    backbone: TimmViT, stream: Stream, options: dict[str, Any], index: int, forwards: int
) -> None:
    me = learner(backbone, **options)
    for task in stream[:index]:
        me.learn(task)
    method, _, batch = session(me, stream, index)
    (method.slow_loss if index == 0 else method.fast_loss)(batch)
    assert batch.passes.forwards == forwards


def test_one_forward_has_the_gradients_of_two(backbone: TimmViT, stream: Stream) -> None:
    """T13: the release runs the fast learner once for L_cls and once for the other terms."""
    me = learner(backbone, **{"tuning.dropout": 0.0})
    me.learn(stream[0])
    method, _, batch = session(me, stream, 1)
    method.train()
    sum(method.fast_loss(batch).values()).backward()  # type: ignore[union-attr]
    fused = [p.grad.clone() for p in (*method.fast.parameters(), *method.head_fast.parameters())]
    method.zero_grad(set_to_none=True)
    for part in (["classification"], ["alignment", "slow to fast", "fast to slow"]):
        apart = Batch(Passes(me.backbone, batch.passes.inputs), batch.labels, batch.rows)
        terms = method.fast_loss(apart)
        torch.stack([terms[name] for name in part]).sum().backward()
    for p, wanted in zip((*method.fast.parameters(), *method.head_fast.parameters()), fused, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-5)


def test_each_head_is_imprinted_by_its_own_learner(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    for task in stream[:2]:
        me.learn(task)
    method, _, batch = session(me, stream, 2)
    both = features(me, batch.passes.inputs)
    for name, head in (("slow", method.head_slow), ("fast", method.head_fast)):
        for c in (4, 5):
            wanted = F.normalize(both[name], dim=1)[batch.labels == c].mean(0)
            torch.testing.assert_close(F.normalize(head.weight[c], dim=0), F.normalize(wanted, dim=0))
    assert not torch.equal(both["slow"], both["fast"])


def test_wiring_of_the_cross_terms(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    me.learn(stream[0])
    method, _, batch = session(me, stream, 1)
    for name, reaches_tuning in (("slow to fast", False), ("fast to slow", True)):
        method.zero_grad(set_to_none=True)
        again = Batch(Passes(me.backbone, batch.passes.inputs), batch.labels, batch.rows)
        method.fast_loss(again)[name].backward()
        moved = any(p.grad is not None and p.grad.any() for p in method.fast.parameters())
        assert moved == reaches_tuning
        assert method.head_fast.weight.grad is not None and method.head_fast.weight.grad.any()
        for frozen in (*method.slow.parameters(), *method.head_slow.parameters(), *me.backbone.parameters()):
            assert frozen.grad is None


def test_the_plain_model_gets_no_gradient_from_the_transfer_loss(backbone: TimmViT, stream: Stream) -> None:
    method, _, batch = session(learner(backbone, lambda_diag=0.01, lambda_rdn=10.0), stream, 0)
    terms = method.slow_loss(batch)
    assert set(terms) == {"classification", "diagonal", "redundancy"}
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert not batch.passes().requires_grad
    assert all(p.grad is None for p in backbone.parameters())


def test_at_the_start_the_adapter_is_the_plain_model(backbone: TimmViT, stream: Stream, test: Source) -> None:
    me = learner(backbone)
    both = features(me, images(test, me))
    torch.testing.assert_close(cosine(both["slow"], both["plain"]), torch.ones(len(test)))
    torch.testing.assert_close(both["slow"], both["plain"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_what_the_statistics_hold(backbone: TimmViT, stream: Stream, mode: str) -> None:
    """Separate: each learner's own sums. Shared: both learners' in one, each first-session example twice (D3)."""
    me = learner(backbone, statistics=mode)
    moments: dict[str, list[Tensor]] = {"fast": [], "slow": []}
    for number, task in enumerate(stream[:2]):
        me.learn(task)
        x = images(task.train, me)
        for name in moments:
            h = project(features(me, x)[name], me.method.R).double()
            moments[name].append(h.T @ h)
        if mode == "shared":
            assert me.method.gram_slow is None
            total = sum(moments["fast"]) + sum(moments["slow"])
            torch.testing.assert_close(me.method.gram_fast.G, total, rtol=1e-5, atol=1e-3)
            if number == 0:
                torch.testing.assert_close(me.method.gram_fast.G, 2 * moments["slow"][0], rtol=1e-5, atol=1e-3)
        else:
            torch.testing.assert_close(me.method.gram_fast.G, sum(moments["fast"]), rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(me.method.gram_slow.G, sum(moments["slow"]), rtol=1e-5, atol=1e-3)
    assert me.method.gram_fast.counts.tolist() == [16 if mode == "shared" else 8] * 4


@pytest.mark.parametrize("inference_scale", ["fixed", "trained"])
def test_parts_and_their_mixture(backbone: TimmViT, stream: Stream, test: Source, inference_scale: str) -> None:
    me = learner(backbone, gamma=3.0, inference_scale=inference_scale)
    for task in stream[:2]:
        me.learn(task)
    me.method.head_fast.sigma.data.fill_(12.5)
    parts = me.engine.scores(me.method, test)
    assert list(parts) == ["mixture", "slow", "fast"]
    assert parts["mixture"].shape == (30, 4)
    torch.testing.assert_close(parts["mixture"], aggregate(parts["fast"], parts["slow"], gamma=3.0))
    both = features(me, images(test, me))
    scale = {"fixed": 10.0, "trained": 12.5}[inference_scale]
    for name, sigma in (("slow", 10.0), ("fast", scale)):
        head = getattr(me.method, f"ridge_{name}")
        torch.testing.assert_close(parts[name], sigma * head(project(both[name], me.method.R)), rtol=1e-4, atol=1e-4)


def test_an_explicit_scale(backbone: TimmViT, stream: Stream, test: Source) -> None:
    one, two = (learner(backbone, scale=s) for s in (10.0, 20.0))
    for me in (one, two):
        me.learn(stream[0])
    torch.testing.assert_close(
        2 * one.engine.scores(one.method, test)["slow"], two.engine.scores(two.method, test)["slow"]
    )


def test_phases_change_nothing_themselves(backbone: TimmViT) -> None:
    method = make_method("safe", backbone, features=16)
    before = copy.deepcopy(method.state_dict())
    for index, new in ((0, (0, 1)), (1, (2,)), (2, ())):
        method.phases(TaskInfo(index, (0, 1), new, 2 * index, 5))
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


@pytest.mark.parametrize("new_rows", ["imprint", "zeros"])
def test_a_new_domain_brings_no_rows(backbone: TimmViT, domains: Stream, new_rows: str, test: Source) -> None:
    me = learner(backbone, new_rows=new_rows)
    me.learn(domains[0])
    slow_rows, fast_rows = me.method.head_slow.weight.clone(), me.method.head_fast.weight.clone()
    reports = [me.learn(task) for task in domains[1:]]
    assert torch.equal(me.method.head_slow.weight, slow_rows)
    assert me.method.head_fast.weight.shape == fast_rows.shape and not torch.equal(
        me.method.head_fast.weight, fast_rows
    )
    assert int(me.method.known) == 6
    assert me.method.gram_fast.counts.tolist() == [8] * 6
    trained = next(r for r in reports[0] if r.kind == "optimise")
    assert trained.images == 2 * 16
    assert set(trained.losses) == {"classification", "alignment", "slow to fast", "fast to slow"}


def test_the_strengths_are_told_and_kept(backbone: TimmViT, stream: Stream, tmp_path: Any) -> None:
    me = learner(backbone)
    me.learn(stream[0])
    told = me.method.describe()
    assert set(told) == {"ridge strength fast", "ridge strength slow"} and all(v > 0 for v in told.values())
    me.save(tmp_path)
    assert Learner.load(tmp_path, backbone, progress=False).method.describe() == told
