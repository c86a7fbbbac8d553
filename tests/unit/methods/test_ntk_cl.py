"""NTK-CL over a real, tiny transformer: sections, averages, what the loss is made of, what stays, what is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evertune.backbones import Passes, Shape, TimmViT
from evertune.errors import ConfigError
from evertune.heads import section_scores
from evertune.learner import Learner
from evertune.methods import NTKCL, Batch, Collect, Generators, Optimise, Solve, TaskInfo
from evertune.methods.losses import (
    dissimilarity,
    dissimilarity_released,
    old_directions,
    overlap,
    overlap_released,
    released_residual,
)
from evertune.statistics import ClassMeans
from evertune.streams import Source, Stream

VIT_B = Shape(width=768, depth=12, heads=12, hidden=3072, tokens=197)
STILL: dict[str, Any] = {"tuning.dropout": 0.0, "fusion_dropout": 0.0}
QUICK: dict[str, Any] = {"preset": "reference", "batch_size": 8, "epochs": 1, "rate": 0.05, "prompts": 3, "w_reg": 0.1}
NAMES = ("hybrid", "channel", "patch")

# -- material: a method in float64, and learners -----------------------------------------------------------------------


@pytest.fixture
def exact() -> Iterator[None]:
    """What methods make for themselves is in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def vit(tiny: TimmViT) -> TimmViT:
    return copy.deepcopy(tiny).double()


def make(shape: Shape, preset: str = "reference", **options: Any) -> NTKCL:
    config = NTKCL.config_type.make(preset, **{"prompts": 3, "batch_size": 5} | options)
    return NTKCL(config, shape, shape.width, Generators()).eval()


def shaken(method: NTKCL, seed: int = 5, *parts: nn.Module) -> NTKCL:
    """As after training: every parameter of the ``parts`` (of all) moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts or (method,):
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def cur(method: NTKCL, name: str) -> nn.Module:
    return method.subnetworks[name].cur  # type: ignore[return-value]


def pre(method: NTKCL, name: str, index: int = 0) -> nn.Module:
    return method.subnetworks[name].pre[index]  # type: ignore[index, return-value]


def held(method: NTKCL, name: str) -> ClassMeans:
    """The means of a feature that are kept."""
    return method.means[name]  # type: ignore[return-value]


def values(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def seen(vit: TimmViT, rows: int = 6, seed: int = 3) -> Any:
    """Passes of a batch; features leave :class:`Passes` in float32, these in float64."""
    size = vit.identity.input_size
    images = torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functools.cache(functools.partial(vit, images))


def begun(method: NTKCL, task: TaskInfo) -> tuple[Optimise, Solve, Collect]:
    """The phases of a session that has begun."""
    begin, session, average, collect = method.phases(task)
    assert isinstance(begin, Solve) and isinstance(session, Optimise)
    assert isinstance(average, Solve) and isinstance(collect, Collect)
    with torch.no_grad():
        begin.run()
    return session, average, collect


def new(index: int, classes: tuple[int, ...], known: int) -> TaskInfo:
    return TaskInfo(index=index, present=classes, new=classes, known=known, size=6)


def knowing(vit: TimmViT, classes: int = 4, **options: Any) -> NTKCL:
    """A method with prototypes of some classes, all its parameters moved."""
    method = shaken(make(vit.shape, **STILL | options))
    generator = torch.Generator().manual_seed(8)
    for name in method.means:
        rows = torch.randn(3 * classes, method.head.weight.shape[1], generator=generator)
        held(method, name).update(rows, torch.arange(3 * classes) % classes)
    return method


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("ntk_cl", backbone, progress=False, device="cpu", **QUICK | options)


def method_of(me: Learner) -> NTKCL:
    assert isinstance(me.method, NTKCL)
    return me.method


@pytest.fixture(scope="module")
def stream(blobs: tuple[Source, Source]) -> Stream:
    return Stream.class_incremental(*blobs, first=2, increment=2)


# -- features (§4.4, §12.1) --------------------------------------------------------------------------------------------


def test_adapters_begin_as_the_plain_model(exact: None, vit: TimmViT) -> None:
    passes, width = seen(vit), vit.shape.width
    sections = make(vit.shape, plain=True).features(passes)["channel"].split(width, 1)
    assert len(sections) == 3
    assert all(torch.equal(section, passes()) for section in sections)


@pytest.mark.parametrize(("plain", "frozen"), [(False, 1), (True, 1), (True, 3)])
def test_sections_are_plain_frozen_and_current(exact: None, vit: TimmViT, plain: bool, frozen: int) -> None:
    method = shaken(make(vit.shape, plain=plain, frozen=frozen, segment=1))
    passes = seen(vit)
    found = method.features(passes)
    assert tuple(found) == NAMES
    for name in ("channel", "patch"):
        wanted = (
            [passes()] * plain + [passes(pre(method, name, k)) for k in range(frozen)] + [passes(cur(method, name))]
        )
        assert torch.equal(found[name], torch.cat(wanted, 1))
        assert len({section[0, 0].item() for section in wanted}) == plain + frozen + 1
    c, p, fusion = found["channel"], found["patch"], method.fusion
    assert fusion is not None
    wanted = 0.5 * (c @ fusion.value_weight.T + fusion.value_bias) + c + 0.1 * p
    torch.testing.assert_close(found["hybrid"], wanted, rtol=0, atol=1e-11)
    assert tuple(method.weights) == (1.0,) * plain + (0.3,) * frozen + (0.1,)


def test_frozen_sets_are_no_part_of_the_graph(exact: None, vit: TimmViT) -> None:
    method = shaken(make(vit.shape, frozen=2, segment=1))
    sections = method.features(seen(vit))
    for name in ("channel", "patch"):
        assert all(not p.requires_grad for k in range(2) for p in pre(method, name, k).parameters())
        assert sections[name].requires_grad


@pytest.mark.parametrize(("branch", "tunings"), [("both", 4), ("channel", 2), ("patch", 2)])
@pytest.mark.parametrize("plain", [False, True])
def test_a_batch_costs_one_pass_of_each_branch(tiny: TimmViT, branch: str, tunings: int, plain: bool) -> None:
    method = make(tiny.shape, branch=branch, plain=plain)
    passes = Passes(tiny, torch.rand(2, 3, 32, 32))
    method.features(passes)
    method.features(passes)
    assert passes.forwards == tunings + plain == len(method.branches)


def test_shared_passes_equal_passes_of_their_own(tiny: TimmViT) -> None:
    """Values to 1e-5 and gradients to 1e-4, in float32 (§12.18): what is shared changes nothing."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method = shaken(make(tiny.shape, plain=True, fusion_dropout=0.0, **{"tuning.dropout": 0.0})).float()
    parameters = [p for p in method.trained() if p.requires_grad and p is not method.head.sigma and len(p)]

    def features(read: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        return method.features(read)["hybrid"]  # type: ignore[arg-type]

    found = []
    for read in (Passes(tiny, images), lambda tuning=None: tiny(images, tuning)):
        hybrid = features(read)
        found.append((hybrid.detach(), torch.autograd.grad(hybrid.square().sum(), parameters, allow_unused=True)))
    (shared, shared_gradients), (own, own_gradients) = found
    torch.testing.assert_close(shared, own, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert sum(g is not None for g in own_gradients) > 10
    for one, two in zip(shared_gradients, own_gradients, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert (one - two).norm() <= 1e-4 * two.norm()


@pytest.mark.parametrize("branch", ["channel", "patch"])
def test_one_subnetwork_alone(exact: None, vit: TimmViT, branch: str) -> None:
    """Its cross-entropy alone, its own prototypes, no fusion."""
    method = knowing(vit, branch=branch)
    assert method.fusion is None and list(method.means) == [branch] == list(method.subnetworks)
    session, _, _ = begun(method, new(1, (4, 5), 4))
    passes, labels = seen(vit), torch.tensor([4, 5, 4, 4, 5, 5])
    terms = session.loss(Batch(passes, labels, torch.arange(6)))
    z = torch.cat([passes(pre(method, branch)), passes(cur(method, branch))], 1)
    cosine = F.normalize(z, dim=1) @ F.normalize(method.head.weight, dim=1).T
    assert list(terms) == [branch]
    torch.testing.assert_close(terms[branch], F.cross_entropy(method.head.sigma * cosine, labels - 4))
    assert list(method.scores(passes)) == [branch]


# -- the average (§7, §12.7, §12.8) ------------------------------------------------------------------------------------


def averages(method: NTKCL, sessions: int) -> tuple[dict[str, list[dict[str, Tensor]]], dict[str, dict[str, Tensor]]]:
    """After each of so many sessions of random motion, ``cur`` as it was; and what frozen sets were at first."""
    snapshots: dict[str, list[dict[str, Tensor]]] = {"channel": [], "patch": []}
    first = {name: values(pre(method, name)) for name in snapshots}
    for t in range(sessions):
        shaken(method, t, cur(method, "channel"), cur(method, "patch"))
        for name, kept in snapshots.items():
            kept.append(values(cur(method, name)))
        with torch.no_grad():
            method.phases(new(t, (2 * t, 2 * t + 1), 2 * t))[2].run()
    return snapshots, first


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [[0, 1, 2, 3, 4]]),
        ({"total_tasks": 5}, [[0, 1, 2, 3]]),
        ({"total_tasks": 3}, [[0, 1]]),
        ({"average": "first"}, [[0]]),
        ({"average": "none"}, [[]]),
        ({"frozen": 2, "segment": 2}, [[0, 1], [2, 3, 4]]),
        ({"frozen": 3, "segment": 2}, [[0, 1], [2, 3], [4]]),
        ({"frozen": 3, "segment": 4}, [[0, 1, 2, 3], [4], []]),
        ({"frozen": 2, "segment": 2, "average": "first"}, [[0], [2]]),
        ({"frozen": 2, "segment": 2, "total_tasks": 5}, [[0, 1], [2, 3]]),
    ],
)
def test_frozen_sets_are_means_of_sessions(
    exact: None, vit: TimmViT, options: dict[str, Any], wanted: list[list[int]]
) -> None:
    """Biases included; a set without a session stays what it was."""
    method = make(vit.shape, **options)
    snapshots, first = averages(method, 5)
    for k, sessions in enumerate(wanted):
        assert method.averaged[k] == len(sessions)
        for name, kept in snapshots.items():
            for key, value in pre(method, name, k).state_dict().items():
                mean = sum(kept[t][key] for t in sessions) / len(sessions) if sessions else first[name][key]
                torch.testing.assert_close(value, mean, rtol=0, atol=1e-12)


def test_the_average_touches_nothing_else(exact: None, vit: TimmViT) -> None:
    method = knowing(vit)
    before, backbone = values(method), values(vit)
    _, average, _ = begun(method, new(1, (4, 5), 4))
    with torch.no_grad():
        average.run()
    after = values(method)
    moved = {k for k in before if not torch.equal(before[k], after[k])} - {"head.sigma"}  # the session's, which goes
    assert moved == {k for k in before if ".pre." in k} | {"averaged"}
    assert same(values(vit), backbone)


def test_sessions_are_averaged_as_they_end(tiny: TimmViT, stream: Stream) -> None:
    """Prototypes come after it: they and the next session's features are of the new average."""
    me = learner(tiny)
    snapshots: list[dict[str, Tensor]] = []

    def look(report: Any) -> None:
        if report.name == "session":
            snapshots.append(values(method_of(me).subnetworks))

    for number, task in enumerate(stream):
        me.learn(task, on_phase=look)
        for key, value in method_of(me).subnetworks.state_dict().items():
            if ".pre.0." in key:
                mean = torch.stack([s[key.replace("pre.0", "cur")] for s in snapshots]).mean(0)
                torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)
        rows = me.engine.compute(task.train, method_of(me).branches, method_of(me).features)["hybrid"]
        names = [me.classes.index(task.train.classes[i]) for i in task.train.labels]
        for c in set(names):
            wanted = rows[torch.tensor(names) == c].mean(0)
            torch.testing.assert_close(held(method_of(me), "hybrid").means[c], wanted, rtol=1e-4, atol=1e-5)
        assert len(snapshots) == number + 1
    assert not same(snapshots[0], snapshots[1])


# -- what trains (§12.9, §4.7) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["reference", "released"])
def test_exactly_the_current_set_the_fusion_and_the_head_have_gradients(exact: None, vit: TimmViT, preset: str) -> None:
    method = knowing(vit, preset=preset, plain=True)
    session, _, _ = begun(method, new(1, (4, 5), 4))
    method.train()
    passes, labels = seen(vit), torch.tensor([4, 5, 4, 4, 5, 5])
    torch.stack(list(session.loss(Batch(passes, labels, torch.arange(6))).values())).sum().backward()
    found = {name for name, p in method.named_parameters() if p.grad is not None}
    trains = {n for n, _ in method.named_parameters() if ".cur." in n or n.startswith(("fusion.", "head."))}
    acting = {n for n in trains if n not in ("fusion.query_bias", "fusion.key_bias")}  # released: not even pulled
    assert found == acting
    assert all(p.grad.any() for n, p in method.named_parameters() if n in found and "query" not in n and "key" not in n)
    assert {id(p) for p in session.parameters()} == {id(p) for n, p in method.named_parameters() if n in trains}
    assert all(p.grad is None for p in vit.parameters())


def test_a_session_leaves_the_rest_bitwise(tiny: TimmViT, stream: Stream) -> None:
    me = learner(tiny, weight_decay=0.1)
    me.learn(stream[0])
    found: list[dict[str, Tensor]] = []

    def look(report: Any) -> None:
        if report.name in ("begin", "session"):
            found.append(values(method_of(me)))

    backbone = values(tiny)
    me.learn(stream[1], on_phase=look)
    before, after = found
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if ".cur." in k or k.startswith(("fusion.", "head."))}
    assert same(values(tiny), backbone)


@pytest.mark.parametrize(
    ("preset", "plain", "count"),
    [
        ("reference", False, 2_719_079),
        ("reference", True, 5_676_647),
        ("released", False, 304_320 + 38_566 + 7_082_496 + 15_361),
        ("released", True, 304_320 + 38_566 + 15_932_160 + 23_041),
    ],
)
def test_trained_parameters_of_a_vit_b(preset: str, plain: bool, count: int) -> None:
    """For ten classes. Released, 3 626 more are counted: its last block's prompts and its generators' biases."""
    method = make(VIT_B, preset, plain=plain, prompts=10)
    session, _, _ = begun(method, new(0, tuple(range(10)), 0))
    assert sum(p.numel() for p in session.parameters()) == count
    assert sum(p.numel() for p in cur(method, "channel").parameters()) == 304_320
    assert sum(p.numel() for p in cur(method, "patch").parameters()) == 38_566


# -- the loss (§5, §12.11 to §12.14) -----------------------------------------------------------------------------------

LABELS = torch.tensor([4, 5, 4, 4, 5, 5])
CONSTANTS = {"tau": 0.4, "rank": 3}


def terms_of(method: NTKCL, task: TaskInfo, passes: Any, labels: Tensor = LABELS) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(method.loss(task, Batch(passes, labels, torch.arange(len(labels)))))


@pytest.mark.parametrize("released", [False, True])
def test_the_loss_is_the_weighted_sum_of_its_terms(exact: None, vit: TimmViT, released: bool) -> None:
    method = knowing(vit, preset="released" if released else "reference", w_dis=0.3, w_orth=0.7, w_reg=0.9, **CONSTANTS)
    task, passes = new(1, (4, 5), 4), seen(vit)
    old = held(method, "hybrid").means.double()
    begun(method, task)
    reference = torch.cat([p.flatten() for _, p in method._kept()]).detach()
    shaken(method, 6, cur(method, "channel"), cur(method, "patch"), method.fusion, method.head)  # type: ignore[arg-type]
    terms = terms_of(method, task, passes)
    found = method.features(passes)
    c, p, m = found["channel"], found["patch"], found["hybrid"]
    for name in NAMES:  # one head for the three
        cosine = F.normalize(found[name], dim=1) @ F.normalize(method.head.weight, dim=1).T
        torch.testing.assert_close(terms[name], F.cross_entropy(method.head.sigma * cosine, LABELS - 4))
    # five images a step: all four old prototypes are drawn
    form = dissimilarity_released if released else dissimilarity
    torch.testing.assert_close(terms["dissimilarity"], 0.3 * form(m, LABELS, old, tau=0.4))
    if released:
        rows = torch.cat([old, torch.zeros(2, old.shape[1])])
        orthogonality = overlap_released(released_residual(rows, 3), c, p)
    else:
        orthogonality = overlap(old_directions(old, 3), c, p, m)
    torch.testing.assert_close(terms["orthogonality"], 0.7 * orthogonality)
    motion = torch.cat([q.flatten() for _, q in method._kept()]) - reference
    pulled = torch.cat([torch.full((q.numel(),), not released or n.endswith("weight")) for n, q in method._kept()])
    torch.testing.assert_close(terms["pull"], 0.9 * motion[pulled].square().sum())
    assert set(terms) == {*NAMES, "dissimilarity", "orthogonality", "pull"}


@pytest.mark.parametrize(
    ("weight", "term"), [("w_dis", "dissimilarity"), ("w_orth", "orthogonality"), ("w_reg", "pull")]
)
def test_a_term_of_weight_zero_is_not_computed(exact: None, vit: TimmViT, weight: str, term: str) -> None:
    task, passes = new(1, (4, 5), 4), seen(vit)
    whole, without = ({}, {})
    for options, into in (({}, whole), ({weight: 0.0}, without)):
        method = knowing(vit, **options)
        begun(method, task)
        into.update(terms_of(method, task, passes))
    assert whole.keys() - without.keys() == {term}
    for name, value in without.items():
        torch.testing.assert_close(value, whole[name])


def test_there_is_nothing_to_be_orthogonal_to_in_the_first_session(exact: None, vit: TimmViT) -> None:
    task, passes = new(0, (0, 1), 0), seen(vit)
    for preset, more in (("reference", set()), ("released", {"orthogonality"})):  # T4
        method = shaken(make(vit.shape, preset, **STILL))
        begun(method, task)
        terms = terms_of(method, task, passes, LABELS - 4)
        assert set(terms) == {*NAMES, "dissimilarity", "pull"} | more
        assert all(value.isfinite() for value in terms.values())
    zeros = torch.zeros(2, method.head.weight.shape[1])
    found = method.features(passes)
    wanted = overlap_released(released_residual(zeros, 40), found["channel"], found["patch"])
    torch.testing.assert_close(terms["orthogonality"], 1e-4 * wanted)


def test_so_many_old_prototypes_are_drawn_as_a_batch_has_images(exact: None, vit: TimmViT) -> None:
    """Without replacement, anew in each step."""
    method, task, passes = knowing(vit, classes=4, batch_size=2), new(1, (4, 5), 4), seen(vit)
    old = held(method, "hybrid").means.double()
    begun(method, task)
    m = method.features(passes)["hybrid"]
    pairs = [torch.tensor([a, b]) for a in range(4) for b in range(a)]
    possible = [0.03 * dissimilarity(m, LABELS, old[pair]).item() for pair in pairs]
    drawn = set()
    torch.manual_seed(0)
    for _ in range(40):
        value = method.loss(task, Batch(passes, LABELS, torch.arange(6)))["dissimilarity"].item()
        nearest = int(np.argmin(np.abs(np.array(possible) - value)))
        assert value == pytest.approx(possible[nearest], rel=1e-10)
        drawn.add(nearest)
    assert len(drawn) == len(pairs)


@pytest.mark.parametrize("scope", ["all", "weights"])
def test_the_pull_to_the_session_before(exact: None, vit: TimmViT, scope: str) -> None:
    method, task, passes = knowing(vit, reg_scope=scope, w_reg=0.5), new(1, (4, 5), 4), seen(vit)
    begun(method, task)
    assert terms_of(method, task, passes)["pull"] == 0
    for name, parameter in method._kept():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            parameter.add_(direction)
        pull = terms_of(method, task, passes)["pull"]
        counts = scope == "all" or "weight" in name
        torch.testing.assert_close(pull, torch.as_tensor(0.5 * counts) * direction.square().sum())
        gradient = torch.autograd.grad(pull, parameter, allow_unused=True)[0]
        assert (gradient is None) == (not counts)
        if gradient is not None:
            torch.testing.assert_close(gradient, direction)  # 2 · w_reg · (θ − θ_ref)
        with torch.no_grad():
            parameter.sub_(direction)
    assert not any(p is q for _, p in method._kept() for q in method.head.parameters())


def test_every_session_is_pulled_to_where_the_last_one_ended(tiny: TimmViT, stream: Stream) -> None:
    me = learner(tiny)
    ended: list[Tensor] = []

    def look(report: Any) -> None:
        method = method_of(me)
        here = torch.cat([p.detach().flatten() for _, p in method._kept()])
        if report.name == "begin":
            assert torch.equal(method.session.reference, here)
            assert not ended or torch.equal(here, ended[-1])
        if report.name == "session":
            assert not torch.equal(method.session.reference, here)
            ended.append(here)

    for task in stream:
        me.learn(task, on_phase=look)
        assert not len(method_of(me).session.reference) and method_of(me).head.classes == 0
    assert len(ended) == 3 and not torch.equal(ended[0], ended[1])


def test_the_head_of_every_session_is_new(tiny: TimmViT, stream: Stream) -> None:
    me, heads = learner(tiny, epochs=0, sigma_init=3.0), []
    for task in stream:
        me.learn(task, on_phase=lambda _: heads.append(values(method_of(me).head)))
    first, second = heads[0], heads[4]
    assert first["weight"].shape == second["weight"].shape == (2, 96)
    assert not torch.equal(first["weight"], second["weight"]) and first["sigma"] == second["sigma"] == 3


@pytest.mark.parametrize("present", [(4, 5), (5, 4), (7, 12), (12, 7)])
def test_which_numbers_the_new_classes_carry_does_not_matter(
    exact: None, vit: TimmViT, present: tuple[int, int]
) -> None:
    passes, found = seen(vit), []
    for classes in ((4, 5), present):
        method = knowing(vit)
        task = TaskInfo(index=1, present=tuple(sorted(classes)), new=tuple(sorted(classes)), known=4, size=6)
        begun(method, task)
        if classes[0] > classes[1]:
            method.head.weight.data = method.head.weight.data.flip(0)  # rows go with classes in order
        found.append(terms_of(method, task, passes, torch.tensor(classes)[LABELS - 4]))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_fewer_old_classes_than_directions(exact: None, vit: TimmViT) -> None:
    method = knowing(vit, classes=4)
    begun(method, new(1, (4, 5), 4))
    old = held(method, "hybrid").means.double()
    assert method.config.rank == 40 and method.session.directions.shape == (96, 4)
    span = method.session.directions @ method.session.directions.T
    torch.testing.assert_close(old @ span, old, rtol=0, atol=1e-10)
    method = knowing(vit, classes=4, rank=2)
    begun(method, new(1, (4, 5), 4))
    assert method.session.directions.shape == (96, 2)


# -- classes shown again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["reference", "released"])
def test_classes_shown_again_are_no_old_classes(exact: None, vit: TimmViT, preset: str) -> None:
    """They are told apart by the session's head, and neither repelled nor a direction to leave."""
    method, passes = knowing(vit, preset=preset, classes=4), seen(vit)
    task = TaskInfo(index=1, present=(1, 3, 4), new=(4,), known=4, size=6)
    means = held(method, "hybrid").means.double()
    begun(method, task)
    assert method.head.classes == 3 and method.session.old.tolist() == [0, 2]
    labels = torch.tensor([1, 3, 4, 4, 3, 1])
    terms = terms_of(method, task, passes, labels)
    found = method.features(passes)
    form = dissimilarity if preset == "reference" else dissimilarity_released
    torch.testing.assert_close(terms["dissimilarity"], 0.03 * form(found["hybrid"], labels, means[[0, 2]]))
    logits = method.head(found["hybrid"])
    torch.testing.assert_close(terms["hybrid"], F.cross_entropy(logits, torch.tensor([0, 1, 2, 2, 1, 0])))
    if preset == "reference":
        U = old_directions(means[[0, 2]], 40)
        assert U.shape[1] == 2
        torch.testing.assert_close(terms["orthogonality"], 1e-4 * overlap(U, *(found[n] for n in NAMES)))


@pytest.mark.parametrize("preset", ["reference", "released"])
def test_new_domains_of_all_classes(backbone: TimmViT, domains: Stream, test: Source, preset: str) -> None:
    """No old class at all; prototypes are of all domains, each image in the features of its time."""
    me = learner(backbone, preset=preset)
    counts = []
    for task in domains:
        me.learn(task)
        counts.append(held(method_of(me), "hybrid").counts.tolist())
    assert me.classes == tuple("abcdef") and len(counts) == 3
    sizes = [np.bincount(task.train.labels, minlength=6) for task in domains]
    assert counts == [list(total) for total in np.cumsum(sizes, 0)]
    assert me.scores(test).isfinite().all()


# -- dropout in frozen sets (T9) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_dropout", [False, True])
def test_dropout_in_frozen_sets(exact: None, vit: TimmViT, frozen_dropout: bool) -> None:
    method = shaken(make(vit.shape, frozen_dropout=frozen_dropout, **{"tuning.dropout": 0.5}))
    width = vit.shape.width

    def varies() -> tuple[bool, bool]:
        """The frozen section of c, and its current one."""
        one, two = (method.features(seen(vit))["channel"] for _ in range(2))
        return tuple(not torch.equal(a, b) for a, b in zip(one.split(width, 1), two.split(width, 1), strict=True))  # type: ignore[return-value]

    assert varies() == (False, False)
    method.train()
    assert varies() == (frozen_dropout, True)
    method.eval()
    assert varies() == (False, False)
    assert not any(p.requires_grad for p in pre(method, "channel").parameters())


# -- prototypes and answers (§8, §12.10) -------------------------------------------------------------------------------


def test_prototypes_of_earlier_classes_stay_for_ever(tiny: TimmViT, stream: Stream) -> None:
    me, kept = learner(tiny), []
    for task in stream:
        me.learn(task)
        rows = {n: held(method_of(me), n).sums.clone() for n in NAMES}
        for before in kept:
            for name, sums in before.items():
                assert torch.equal(rows[name][: len(sums)], sums)
        kept.append(rows)
    assert [len(rows["hybrid"]) for rows in kept] == [2, 4, 6]
    assert not torch.equal(kept[2]["hybrid"], kept[2]["channel"])


@pytest.mark.parametrize("eval_batch", [1, 5, 1000])
def test_prototypes_do_not_depend_on_batches(tiny: TimmViT, stream: Stream, eval_batch: int) -> None:
    found = []
    for size in (7, eval_batch):
        me = learner(tiny, eval_batch=size)
        me.learn(stream[0])
        found.append(held(method_of(me), "hybrid").means)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("answer", ["hybrid", "channel", "patch", "together"])
def test_answers(exact: None, vit: TimmViT, answer: str, plain: bool) -> None:
    """Each feature by its own prototypes, section by section; together they are one sum."""
    method, passes = knowing(vit, answer=answer, plain=plain, alpha=0.2, beta=0.9, gamma=0.4), seen(vit)
    scores, found = method.scores(passes), method.features(passes)
    assert next(iter(scores)) == answer and set(scores) == {*NAMES, "together"}
    width, omega = vit.shape.width, [0.9, 0.4, 0.2] if plain else [0.4, 0.2]
    for name in NAMES:
        means, wanted = held(method, name).means.double(), torch.zeros(6, 4)
        for i, weight in enumerate(omega):
            columns = slice(i * width, (i + 1) * width)
            for k in range(4):
                wanted[:, k] += weight * F.cosine_similarity(found[name][:, columns], means[k : k + 1, columns])
        torch.testing.assert_close(scores[name], wanted)
    torch.testing.assert_close(3 * scores["together"], scores["hybrid"] + scores["channel"] + scores["patch"])


def test_fused_prototypes_are_those_of_the_present_fusion(exact: None, vit: TimmViT) -> None:
    """Equal to stored ones until the fusion moves; then they are what c and p of old images would have become."""
    stored, fused = (shaken(make(vit.shape, hybrid_prototypes=kind)) for kind in ("stored", "fused"))
    assert tuple(fused.means) == ("channel", "patch")
    batches = [Batch(seen(vit, seed=seed), LABELS - 4, torch.arange(6)) for seed in (3, 4)]
    for method in (stored, fused):
        _, _, collect = begun(method, new(0, (0, 1), 0))
        with torch.no_grad():
            for batch in batches:
                collect.update(batch)
    close = {"rtol": 1e-5, "atol": 1e-5}  # means are kept in float32
    for name in NAMES:
        torch.testing.assert_close(fused.prototypes(name).double(), stored.prototypes(name).double(), **close)
    assert fused.fusion is not None
    before = fused.prototypes("hybrid")
    shaken(fused, 7, fused.fusion)
    rows = torch.cat([fused.features(batch.passes)["hybrid"] for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    wanted = torch.stack([rows[labels == c].mean(0) for c in (0, 1)])
    torch.testing.assert_close(fused.prototypes("hybrid"), wanted, **close)
    assert not torch.allclose(before, wanted, atol=1e-2)
    scores = fused.scores(batches[0].passes)["hybrid"]
    torch.testing.assert_close(scores, section_scores(rows[:6], wanted, fused.weights), **close)
    assert not [name for name in fused.state_dict() if name.startswith("means.hybrid")]


def test_fused_prototypes_of_old_classes_are_no_way_into_the_fusion(exact: None, vit: TimmViT) -> None:
    """L_dis repels the batch from them, not them from the batch."""
    method, task, passes = knowing(vit, hybrid_prototypes="fused"), new(1, (4, 5), 4), seen(vit)
    begun(method, task)
    old = method.prototypes("hybrid").detach()
    terms = terms_of(method, task, passes)
    assert method.fusion is not None
    got = torch.autograd.grad(terms["dissimilarity"], method.fusion.value_weight)
    expected = 0.03 * dissimilarity(method.features(passes)["hybrid"], LABELS, old)
    torch.testing.assert_close(got, torch.autograd.grad(expected, method.fusion.value_weight))


def test_it_learns_each_task(tiny: TimmViT, stream: Stream, blobs: tuple[Source, Source]) -> None:
    me = learner(tiny, epochs=4)
    for task in stream:
        me.learn(task)
        known = blobs[1].select(blobs[1].rows_of(me.classes))
        for part, (correct, total) in me.evaluate(known).items():
            assert correct / total > 1.5 / len(me.classes), part


def test_recipes_of_the_first_and_of_later_sessions(vit: TimmViT) -> None:
    method = make(vit.shape, epochs=7, rate=0.3, follow_epochs=2, follow_rate=0.1)
    for index, (epochs, rate) in enumerate([(7, 0.3), (2, 0.1), (2, 0.1)]):
        recipe = method.phases(new(index, (0, 1), 0))[1].recipe
        assert (recipe.epochs, recipe.rate, recipe.batch_size) == (epochs, rate, 5)
    recipe = make(vit.shape).phases(new(1, (0, 1), 0))[1].recipe
    assert (recipe.epochs, recipe.rate, recipe.momentum, recipe.weight_decay) == (20, 0.025, 0.9, 5e-4)
    assert (recipe.optimizer, recipe.schedule, recipe.decay) == ("sgd", "cosine", "all")


# -- keeping (§12.19) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"frozen": 2, "segment": 1}, {"average": "first"}, {"preset": "released"}, {"branch": "patch"}]
)
def test_a_kept_learner_goes_on_the_same(tiny: TimmViT, stream: Stream, tmp_path: Any, options: dict[str, Any]) -> None:
    straight, me = learner(tiny, **options), learner(tiny, **options)
    for number, task in enumerate(stream):
        straight.learn(task)
        me.learn(task)
        me.save(tmp_path / str(number))
        me = Learner.load(tmp_path / str(number), tiny, device="cpu", progress=False)
        assert same(values(me.method), values(straight.method))
        frozen = [p.requires_grad for n, p in me.method.named_parameters() if ".pre." in n]
        assert frozen and not any(frozen)


def test_a_backbone_of_another_input_size_is_refused(tiny: TimmViT, stream: Stream, tmp_path: Any) -> None:
    """Its tokens would be others than those whose places the generators know."""
    me = learner(tiny)
    me.learn(stream[0])
    me.save(tmp_path)
    model = copy.deepcopy(tiny.vit)
    other = TimmViT(model, "tiny", input_size=48)
    with pytest.raises(ConfigError, match="input_size: 32 there, 48 here"):
        Learner.load(tmp_path, other, device="cpu", progress=False)
    with pytest.raises(ConfigError, match="made for 17 tokens and meets 37"), torch.no_grad():
        me.method.scores(Passes(other, torch.rand(1, 3, 48, 48)))


def test_what_is_kept_is_counted(tiny: TimmViT, stream: Stream) -> None:
    me = learner(tiny)
    for task in stream[:2]:
        me.learn(task)
    counted = me.history[-1]["bytes"]
    assert counted["prototypes"] == 3 * 4 * 96 * 8
    assert counted["fusion"] == 4 * (96 * 96 + 96)
    adapter, patch = 2 * 48 * 16 + 48 + 16, 3 * 17 + 2 * 48
    assert counted["tunings"] == 4 * 2 * (3 * adapter + 2 * patch)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({name: -0.1}, f"{name}=-0.1 must not be negative") for name in ("w_dis", "w_orth", "w_reg")],
        *[({name: -1}, f"{name}=-1.0 must not be negative") for name in ("alpha", "beta", "gamma")],
        *[({name: 0}, f"{name}=0 must be at least 1") for name in ("prompts", "frozen", "rank")],
        *[({name: 0}, f"{name}=0 must be at least 1, or none") for name in ("segment", "total_tasks", "views")],
        *[({name: 0}, f"{name}=0.0 must be positive") for name in ("tau", "sigma_init")],
        ({"fusion_dropout": 1}, "fusion_dropout=1.0 must be at least 0 and below 1"),
        ({"fusion_dropout": -0.1}, "fusion_dropout=-0.1"),
        ({"frozen": 2}, "frozen=2 sets take turns: say after how many tasks with segment="),
        ({"follow_epochs": -1}, "follow_epochs=-1 must not be negative, or none"),
        ({"follow_rate": 0}, "follow_rate=0.0 must be positive, or none"),
        ({"views": 3, "frozen_dropout": True}, "use one of them"),
        ({"tuning": "token_mixing"}, "token-wise subnetwork already"),
        ({"alpha": 0, "gamma": 0}, "alpha=0 and gamma=0 leave no section to score"),
        ({"alpha": 0, "gamma": 0, "beta": 0, "plain": True}, "alpha=0 and gamma=0 leave no section to score"),
        ({"answer": "mixed"}, "answer='mixed' does not exist"),
        ({"hybrid_prototypes": "none"}, "hybrid_prototypes='none' does not exist"),
        ({"dis": "infonce"}, "dis='infonce' does not exist"),
        ({"tuning.botleneck": 3}, "Did you mean 'bottleneck'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NTKCL.config_type.make("reference", **options)


def test_sections_that_do_not_count_are_allowed_while_one_does() -> None:
    make_config: Callable[..., Any] = functools.partial(NTKCL.config_type.make, "reference")
    assert make_config(alpha=0, gamma=0, plain=True).beta == 1
    assert make_config(alpha=0).gamma == 0.3 and make_config(gamma=0).alpha == 0.1


def test_presets_have_the_published_values() -> None:
    for preset in ("reference", "released", "imagenet-r", "domainnet", "vtab", "pets", "eurosat", "plantvillage"):
        config = NTKCL.config_type.make(preset)
        assert config.tuning_options == {"bottleneck": 16, "scale": 0.1, "dropout": 0.1}, preset
        assert (config.prompts, config.tau, config.rank, config.w_orth, config.w_reg) == (10, 0.1, 40, 1e-4, 1e-3)
        assert (config.alpha, config.beta, config.gamma, config.fusion_dropout) == (0.1, 1.0, 0.3, 0.1)
        small = preset in ("vtab", "pets", "eurosat", "plantvillage")
        assert config.plain == small and config.batch_size == (96 if small or preset == "domainnet" else 16)
        cifar = preset in ("reference", "released")
        assert (config.w_dis, config.weight_decay) == ((0.03, 5e-4) if cifar else (0.2, 5e-3))
    rates = {name: NTKCL.config_type.make(name).rate for name in ("vtab", "pets", "eurosat", "plantvillage", "kvasir")}
    assert rates == {"vtab": 0.03, "pets": 0.02, "eurosat": 1e-4, "plantvillage": 5e-3, "kvasir": 5e-3}


def test_a_last_block_alone_cannot_be_tuned(tiny: TimmViT) -> None:
    with pytest.raises(ConfigError, match="prompts of the last block cannot reach the feature"):
        make(tiny.shape, blocks="2")
    assert make(tiny.shape, blocks="2", branch="channel").subnetworks["channel"].cur.indices == (2,)
