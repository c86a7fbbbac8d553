"""HiDe-PET over a real, tiny transformer: what trains when, what stays for ever, how classes and tasks are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, TimmViT
from evertune.errors import ConfigError, StreamError, TrainingError
from evertune.heads import by_group
from evertune.learner import Learner
from evertune.methods import Batch, HiDePET, Optimise, TaskInfo, make_method
from evertune.streams import Source, Stream, Task

QUICK: dict[str, Any] = {
    "blocks": "0-1", "batch_size": 8, "epochs": 2, "shared_epochs": 2, "warmup": 0, "shared_warmup": 0,
    "centroids": 3, "tii_epochs": 5, "tap_epochs": 5, "rate": 5e-3, "shared_rate": 5e-3,
}  # fmt: skip
KINDS = ("lora", "sequential_adapter", "prefix", "prompt")
STRATEGIES = ("fsa", "sl", "fsa_sl", "ema", "fix_then_tune", "sequential", "none")


@pytest.fixture
def stream(blobs: tuple[Source, Source]) -> Stream:
    return Stream.class_incremental(*blobs, first=2, increment=2)


def learner(backbone: TimmViT, **options: Any) -> Learner:
    return Learner("hide_pet", backbone, progress=False, device="cpu", **QUICK | options)


def method_of(me: Learner) -> HiDePET:
    assert isinstance(me.method, HiDePET)
    return me.method


def taught(backbone: TimmViT, tasks: Any, **options: Any) -> Learner:
    me = learner(backbone, **options)
    for task in tasks:
        me.learn(task)
    return me


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# -- what trains, and what stays (§15: 6, 7, 9, 13, 18) ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_finished_slots_stay_for_ever(tiny: TimmViT, stream: Stream, kind: str) -> None:
    """Weight decay is on, and large: a pooled parameter or a kept optimiser would move them."""
    me = learner(tiny, tuning=kind, weight_decay=0.5)
    slots: list[dict[str, Tensor]] = []
    for task in stream:
        me.learn(task)
        for kept, slot in zip(slots, method_of(me).e, strict=False):
            assert equal(kept, values(slot))
        slots = [values(slot) for slot in method_of(me).e]
    assert len(slots) == 3 and not equal(slots[0], slots[1])
    assert all(slot.frozen for slot in method_of(me).e)


@pytest.mark.parametrize("shared", STRATEGIES)
def test_how_the_shared_parameters_move(tiny: TimmViT, stream: Stream, shared: str) -> None:
    me = learner(tiny, shared=shared, fix_epochs=1, slow=0.1)
    method = method_of(me)
    found: list[tuple[str, list[float], int]] = []
    original = method.phases

    def watched(info: TaskInfo) -> Iterator[Any]:
        for phase in original(info):
            if isinstance(phase, Optimise) and phase.name in ("shared parameters", "interim head"):
                g = {id(p) for p in method.g.parameters()}
                moving = sum(id(p) in g for p in phase.parameters() if p.requires_grad)
                found.append((phase.name, [factor for _, factor in phase.slowed()], moving))
            yield phase

    method.phases = watched  # type: ignore[method-assign]
    states = []
    for task in stream:
        me.learn(task)
        states.append(values(method.g))
    if shared == "none":
        assert not states[0] and all(moving == 0 for _, _, moving in found)
        return
    tensors = len(list(method.g.parameters()))
    factors = [f for name, part, _ in found if name == "shared parameters" for f in part]
    assert factors == {"sl": [0.1] * 3, "fsa_sl": [1.0, 0.1, 0.1]}.get(shared, [1.0] * 3)
    moves = [moving for name, _, moving in found if name == "shared parameters"]
    assert moves == ([tensors, 0, 0] if shared == "fsa" else [tensors] * 3)
    assert equal(states[0], states[1]) == (shared == "fsa")
    if shared == "fix_then_tune":
        assert [name for name, _, _ in found][:2] == ["interim head", "shared parameters"]
    if shared == "ema":
        m, g0, g1, g2 = method.average[0].state_dict(), *states
        for name, value in m.items():
            wanted = 0.99 * (0.99 * g0[f"slots.0.{name}"] + 0.01 * g1[f"slots.0.{name}"]) + 0.01 * g2[f"slots.0.{name}"]
            torch.testing.assert_close(value, wanted)


def test_slow_parameters_move_less(tiny: TimmViT, stream: Stream) -> None:
    """The factor reaches the optimiser."""

    def moved(slow: float) -> float:
        me = taught(tiny, [stream[0]], slow=slow)
        before = values(method_of(me).g)
        me.learn(stream[1])
        return sum(float((v - before[k]).abs().sum()) for k, v in values(method_of(me).g).items())

    assert 5 * moved(0.01) < moved(1.0)


@pytest.mark.parametrize("start", ["previous", "shared", "fresh"])
def test_where_a_task_starts(tiny: TimmViT, stream: Stream, start: str) -> None:
    me = taught(tiny, stream[:1], start=start)
    method, opened = method_of(me), {}

    def look(report: Any) -> None:
        if report.name == "begin":
            opened.update(values(method.e[1]) | {"shared": values(method.g[0])})

    me.learn(stream[1], on_phase=look)
    shared = opened.pop("shared")
    wanted = {"previous": values(method.e[0]), "fresh": values(method.e.template), "shared": shared}
    assert equal(opened, wanted.pop(start)) and not any(equal(opened, other) for other in wanted.values())


def test_ensemble_happens_once_after_training(tiny: TimmViT, stream: Stream) -> None:
    m = 0.25
    me = taught(tiny, stream[:2], ensemble=m)
    method, before = method_of(me), {}

    def look(report: Any) -> None:
        if report.name == "task-specific parameters":
            before.update(values(method.e[2]))

    me.learn(stream[2], on_phase=look)
    first, second, after = (values(method.e[i]) for i in range(3))
    for name, trained in before.items():
        torch.testing.assert_close(after[name], (1 - m) * trained + m * (first[name] + second[name]) / 2)


def test_alignment_changes_heads_only(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream[:1])
    method, seen = method_of(me), {}
    me.learn(stream[1], on_phase=lambda report: seen.update({report.name: values(method)}))
    was, now = seen["representations"], seen["alignment"]
    changed = {k.split(".")[0] for k in now if k not in was or not torch.equal(was[k], now[k])}
    assert changed == {"psi", "omega", "uninstructed", "instructed", "task_u", "task_h"}
    assert not any(len(now[name]) for name in ("task_u.labels", "task_h.labels"))  # the task's features are let go


def test_the_first_task_is_not_aligned(tiny: TimmViT, stream: Stream) -> None:
    me, seen = learner(tiny), {}
    me.learn(stream[0], on_phase=lambda report: seen.update({report.name: values(method_of(me).psi)}))
    assert equal(seen["alignment"], seen["task-specific parameters"])


def test_only_the_tasks_own_rows_learn_from_its_images(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream[:2])
    method, seen = method_of(me), {}
    me.learn(stream[2], on_phase=lambda report: seen.update({report.name: values(method.psi)}))
    begun, trained = seen["begin"], seen["task-specific parameters"]
    assert torch.equal(begun["weight"][:4], trained["weight"][:4]) and torch.equal(
        begun["bias"][:4], trained["bias"][:4]
    )
    assert (begun["weight"][4:] != trained["weight"][4:]).any()


def test_the_loss_is_that_of_the_tasks_columns(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream[:2], contrastive=0.0)
    method = method_of(me)
    info = TaskInfo(index=1, present=(2, 3), new=(2, 3), known=2, size=4)
    batch = Batch(Passes(tiny, torch.rand(4, 3, 32, 32)), torch.tensor([2, 3, 3, 2]), torch.arange(4))
    terms = method.own_loss(info, torch.zeros(0), batch)
    assert set(terms) == {"classification"}  # λ = 0 removes the regulariser
    logits = method.psi(batch.passes(method.e[1]))
    filled = logits.masked_fill(torch.tensor([True, True, False, False]), -torch.inf)
    torch.testing.assert_close(terms["classification"], F.cross_entropy(filled, batch.labels))


@pytest.mark.parametrize(("task", "steps"), [(1, 2), (2, 4)])
def test_alignment_takes_a_step_per_class_of_earlier_tasks(
    tiny: TimmViT, stream: Stream, monkeypatch: pytest.MonkeyPatch, task: int, steps: int
) -> None:
    me, called = taught(tiny, stream[:task], align_samples=3), []

    def counted(head: Any, draw: Any, **settings: Any) -> None:
        called.append((settings["steps"], settings["batch"], settings["epochs"]))

    monkeypatch.setattr("evertune.methods.hide_pet.align", counted)
    me.learn(stream[task])
    assert called == [(steps, 3 * 8, 5), (steps, 3 * 8, 5)]  # ω, then ψ


def test_a_task_trains_its_own_slot_and_the_output_layer(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream[:2])
    method, found = method_of(me), {}
    original = method.phases

    def watched(info: TaskInfo) -> Iterator[Any]:
        for phase in original(info):
            if isinstance(phase, Optimise):
                found[phase.name] = {id(p) for p in phase.parameters() if p.requires_grad}
            yield phase

    method.phases = watched  # type: ignore[method-assign]
    heads: dict[str, set[int]] = {}
    me.learn(
        stream[2], on_phase=lambda _: heads.setdefault("psi", set()).update(id(p) for p in method.psi.parameters())
    )
    assert found["task-specific parameters"] & heads["psi"]
    slots = {id(p) for slot in list(method.e)[:2] for p in slot.parameters()}
    mine = {id(p) for p in method.e[2].parameters()}
    own = found["task-specific parameters"]
    assert mine <= own and own - mine <= heads["psi"] and not own & slots
    assert len(own) == len(mine) + 2
    assert not found["shared parameters"] & (mine | slots)


@pytest.mark.parametrize("shared", ["fsa", "ema"])
def test_strategies_go_on_after_loading(tiny: TimmViT, stream: Stream, tmp_path: Any, shared: str) -> None:
    straight = taught(tiny, stream, shared=shared)
    me = taught(tiny, stream[:2], shared=shared)
    me.save(tmp_path)
    again = Learner.load(tmp_path, tiny, device="cpu", progress=False)
    again.learn(stream[2])
    assert equal(values(again.method), values(straight.method))


def test_fewer_epochs_follow_where_nothing_is_shared(tiny: TimmViT, stream: Stream) -> None:
    images: list[int] = []
    me = learner(tiny, shared="none", shared_epochs=3, shared_follow_epochs=1)
    for task in stream[:2]:
        me.learn(task, on_phase=lambda r: images.append(r.images) if r.name == "shared parameters" else None)
    assert images == [3 * len(stream[0].train), len(stream[1].train)]


# -- statistics (§8) ---------------------------------------------------------------------------------------------------


def test_blocks_outside_the_tuned_ones_are_untouched(tiny: TimmViT) -> None:
    for kind in KINDS:
        method = make_method("hide_pet", tiny, preset="reference", tuning=kind, blocks="1")
        assert isinstance(method, HiDePET)
        slot = method.e.open()
        assert [slot.block(i) is None for i in range(3)] == [True, False, True]
        tokens = tiny.run(tiny.embed(torch.rand(2, 3, 32, 32)), slot, 0, 2)
        assert tokens.shape[1] == tiny.shape.tokens + slot.prepended
        assert (slot.prepended == 20) == (kind == "prompt")  # a prefix leaves the length as it is


@pytest.mark.parametrize("mode", ["centroids", "covariance", "variance", "lowrank"])
def test_statistics_are_those_of_the_final_parameters(tiny: TimmViT, stream: Stream, mode: str) -> None:
    me = taught(tiny, stream, statistics=mode, centroids=1, statistics_rank=2, shared="fsa")
    method = method_of(me)
    for t, task in enumerate(stream):
        both = me.engine.compute(
            task.train, (), lambda p, t=t: {"u": p(method.g[0]), "h": p(method.e[t])}
        )  # g is that of the first task for good
        names = [task.train.classes[i] for i in task.train.labels]
        for c in task.classes:
            mine = [n == c for n in names]
            for bank, features in ((method.uninstructed, both["u"]), (method.instructed, both["h"])):
                kept = bank.means[me.classes.index(c)]
                torch.testing.assert_close(kept, features[mine].mean(0), rtol=1e-4, atol=1e-4)
    assert method.instructed.nbytes == method.uninstructed.nbytes > 0


def test_released_prefixes_keep_statistics_of_what_is_no_more(tiny: TimmViT, stream: Stream) -> None:
    order: list[str] = []
    me = learner(tiny, tuning="prefix", preset="released")
    me.learn(stream[0], on_phase=lambda report: order.append(report.name))
    assert order.index("representations") < order.index("finish")
    assert method_of(me).config.contrastive == 0.0
    assert make_method("hide_pet", tiny, preset="released", blocks="0").config.statistics_first is False


def test_identical_samples_and_single_images_are_learned(tiny: TimmViT, stream: Stream) -> None:
    """Zero variance, fewer samples than centroids, and a task of one class."""
    train = stream[1].train
    twice = train.select(np.array([0, 0, 0, *train.rows_of(stream[1].classes[1:])]))
    one = stream[2].train.select(stream[2].train.rows_of(stream[2].classes[:1])[:1])
    me = taught(tiny, [stream[0], Task(1, "same", twice), Task(2, "one", one)])
    assert me.scores(stream[0].test).isfinite().all()  # type: ignore[arg-type]
    assert len(method_of(me).e) == 3


def test_a_state_of_another_mode_is_refused(tiny: TimmViT, stream: Stream) -> None:
    kept = taught(tiny, stream[:1], statistics="variance").method.state_dict()
    with pytest.raises(ConfigError, match=r"variance.*centroids"):
        learner(tiny).method.load_state_dict(kept)


# -- task identity and answers (§9, §10; §15: 15, 16, 17) --------------------------------------------------------------


def test_reading_groups() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 4.5], [0.0, -1.0, 100.0, 99.0]])
    owner = torch.tensor([0, 1, 0, 1])
    assert by_group(logits, owner, 2).tolist() == [[2.0, 5.0], [100.0, 99.0]]
    together = by_group(logits, owner, 2, together=True)
    torch.testing.assert_close(together[:, 0], logits[:, [0, 2]].logsumexp(1))
    torch.testing.assert_close(together[:, 1], logits[:, [1, 3]].logsumexp(1))
    assert by_group(torch.tensor([[3e38, -3e38]]), torch.tensor([0, 1]), 2, together=True).isfinite().any()


@pytest.mark.parametrize("identity", ["class_max", "class_logsumexp", "task_head"])
@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_every_way_to_read_the_task(tiny: TimmViT, stream: Stream, identity: str, router: str) -> None:
    me = taught(tiny, stream, identity=identity, router_head=router)
    found = me.evaluate(stream[0].test, task=0)  # type: ignore[arg-type]
    assert set(found) == {"routed", "uninstructed", "oracle", "within task", "router"}
    assert 0 <= found["router"][0] <= found["router"][1] == len(stream[0].test)  # type: ignore[arg-type]
    passes = Passes(tiny, torch.rand(5, 3, 32, 32))
    with torch.no_grad():
        tasks = me.method.identify(passes)
    assert tasks.shape == (5,) and set(tasks.tolist()) <= {0, 1, 2}


def test_the_router_is_read_through_its_best_class(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream)
    method, passes = method_of(me), Passes(tiny, torch.rand(9, 3, 32, 32))
    with torch.no_grad():
        best = method.omega(passes(method.g[0])).argmax(1)
        assert torch.equal(method.identify(passes), method.uninstructed.entry_task[best])


def test_told_and_found_tasks_agree_where_the_router_is_right(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream)
    method, passes = method_of(me), Passes(tiny, torch.rand(9, 3, 32, 32))
    with torch.no_grad():
        found = method.identify(passes)
        torch.testing.assert_close(method.told(passes, found), method.scores(passes)["routed"])


def test_task_incremental_answers_ignore_the_router(tiny: TimmViT, stream: Stream) -> None:
    me, test = taught(tiny, stream), stream[1].test
    assert test is not None
    scores = me.scores(test, task=1)
    assert set(me.predict(test, task="task 2")) <= set(stream[1].classes)
    method_of(me).omega.bias.data.uniform_(-100, 100)
    assert torch.equal(me.scores(test, task=1), scores)
    each = ["task 1", 2, *["task 2"] * (len(test) - 2)]
    mixed = me.scores(test, task=each)
    assert torch.equal(mixed[2:].isfinite(), scores[2:].isfinite())
    assert mixed[0].isfinite().tolist() == [True, True, False, False, False, False]
    torch.testing.assert_close(mixed[2:][:, 2:4], scores[2:][:, 2:4])


@pytest.mark.parametrize("task", [3, -1, True, "9", "task 9", "nonsense"])
def test_tasks_that_were_not_learned(tiny: TimmViT, stream: Stream, task: int | str) -> None:
    me = taught(tiny, stream[:2])
    with pytest.raises(StreamError, match=r"2 were learned, task 1, task 2.*0 to 1"):
        me.predict(stream[0].test, task=task)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="No task is called"):
        me.evaluate(stream[0].test, task=9)  # type: ignore[arg-type]
    assert me.predict(stream[0].test, task="1") == me.predict(stream[0].test, task=1)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="one for each"):
        me.predict(stream[0].test, task=[0, 1])  # type: ignore[arg-type]


def test_without_alignment_tasks_are_never_compared(tiny: TimmViT, blobs: tuple[Source, Source]) -> None:
    """§15, 23: oracle ≥ routed, and TAP is what makes ψ's rows of different tasks comparable."""
    stream = Stream.class_incremental(*blobs, first=2, increment=2)
    long: dict[str, Any] = {"epochs": 10, "shared_epochs": 10, "rate": 1e-3, "shared_rate": 1e-3, "align_rate": 0.05}
    long |= {"tii_epochs": 30, "tap_epochs": 30}

    def final(**options: Any) -> dict[str, int]:
        me = taught(tiny, stream, **long | options)
        counts: dict[str, int] = {}
        for t, task in enumerate(stream):
            for part, (correct, _) in me.evaluate(task.test, task=t).items():  # type: ignore[arg-type]
                counts[part] = counts.get(part, 0) + correct
        return counts

    whole, without = final(), final(tap_epochs=0)
    assert whole["within task"] >= whole["oracle"] >= whole["routed"] - 1
    assert whole["routed"] > without["routed"]


# -- accumulation (§11) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "sets"), [(0.0, [0, 1, 2]), (2.0, [0, 0, 0])])
def test_sets_are_opened_or_reused(tiny: TimmViT, stream: Stream, threshold: float, sets: list[int]) -> None:
    me = taught(tiny, stream, accumulate=True, accumulate_threshold=threshold, start="shared")
    assert [entry["shared set"] for entry in me.history] == sets
    assert len(method_of(me).g) == len(set(sets))
    assert [entry["opened"] for entry in me.history] == [s not in sets[:i] for i, s in enumerate(sets)]


def test_what_was_opened_goes_on_after_loading(tiny: TimmViT, stream: Stream, tmp_path: Any) -> None:
    straight = taught(tiny, stream, accumulate=True, accumulate_threshold=0.0)
    me = taught(tiny, stream[:2], accumulate=True, accumulate_threshold=0.0)
    me.save(tmp_path)
    again = Learner.load(tmp_path, tiny, device="cpu", progress=False)
    again.learn(stream[2])
    assert equal(values(again.method), values(straight.method))


# -- options that contradict each other --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": True, "shared": "none"}, "accumulate.*shared=none"),
        ({"start": "shared", "shared": "none"}, "start=shared"),
        ({"ensemble_space": "delta", "tuning": "prefix"}, "defined for lora"),
        ({"ensemble": 1.5}, "ensemble=1.5"),
        ({"accumulate_quantile": -0.1}, "quantile=-0.1"),
        ({"shared_follow_epochs": -1}, "shared_follow_epochs=-1"),
        ({"epochs": 5}, "warmup=5.*epochs=5"),
        ({"centroids": 0}, "centroids=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"shared": "fsl"}, "fsa"),
        ({"clip": 0}, "clip=0"),
        ({"slow": -1}, "slow=-1"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HiDePET.config_type.make("reference", **options)


def test_a_covariance_that_cannot_be_drawn_from_is_named(tiny: TimmViT, stream: Stream) -> None:
    me = taught(tiny, stream[:1], statistics="covariance")
    bank = method_of(me).instructed
    bank.covariances[0] = -torch.eye(bank.covariances.shape[1])
    before = values(me.method)
    with pytest.raises(TrainingError, match="class 0 is not positive definite"):
        me.learn(stream[1])
    assert equal(values(me.method), before) and len(me.history) == 1
