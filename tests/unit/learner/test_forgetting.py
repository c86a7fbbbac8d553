"""Forgetting classes and tasks, and what a learner says that it keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import TimmViT
from evertune.engine import DiskCache
from evertune.errors import ConfigError, StreamError
from evertune.learner import Learner
from evertune.methods import METHODS, Method
from evertune.methods.stored import UNSAID, stored
from evertune.streams import ArraySource, Source, Task, TextSource

TRAINING = {"epochs": 1, "batch_size": 8, "blocks": "0-1"}
HIDE = TRAINING | {"shared_epochs": 1, "warmup": 0, "centroids": 3, "tii_epochs": 3, "tap_epochs": 3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "simple_cil": ("simple_cil", {}),
    "aper": ("aper", TRAINING),
    "ranpac": ("ranpac", TRAINING | {"features": 40}),
    "safe": ("safe", TRAINING | {"features": 40, "follow_epochs": 1}),
    "safe shared": ("safe", TRAINING | {"features": 40, "follow_epochs": 1, "statistics": "shared"}),
    "finetune": ("finetune", TRAINING),
    "linear_probe": ("linear_probe", {"epochs": 5, "batch_size": 8}),
    "ridge_probe": ("ridge_probe", {}),
    "l2p": ("l2p", {"epochs": 1, "batch_size": 8}),
    "dualprompt": ("dualprompt", {"epochs": 1, "batch_size": 8, "blocks": "0-2", "general": 1}),
    "coda_prompt": ("coda_prompt", TRAINING | {"components": 3}),
    "s_prompt": ("s_prompt", {"epochs": 1, "batch_size": 8, "centroids": 3}),
    "ease": ("ease", TRAINING),
    "lae": ("lae", TRAINING | {"freeze_epochs": 0}),
    "slca": ("slca", TRAINING | {"align_epochs": 1, "draws": 16}),
    "tuna": ("tuna", TRAINING | {"align_epochs": 3}),
    "fecam": ("fecam", TRAINING),
    "fecam common": ("fecam", TRAINING | {"covariance": "common"}),
    "inflora": ("inflora", TRAINING),
    "sd_lora": ("sd_lora", TRAINING),
    "ntk_cl": ("ntk_cl", TRAINING | {"follow_epochs": 1}),
    "hide_pet": ("hide_pet", HIDE | {"statistics": "covariance"}),
    "hide_pet accumulate": ("hide_pet", HIDE | {"accumulate": True, "accumulate_threshold": 0.0}),
    "hide_pet task_head": ("hide_pet", HIDE | {"identity": "task_head", "router_head": "mlp"}),
}
EXACT = (
    "simple_cil", "aper", "ranpac", "fecam", "finetune", "linear_probe", "ridge_probe", "slca", "inflora", "sd_lora",
    "ntk_cl",
)  # fmt: skip
"""Methods that score each class by itself."""


@pytest.fixture(scope="module")
def tasks(blobs: tuple[ArraySource, ArraySource]) -> list[Task]:
    """Of three, two and one class."""
    train, test = blobs
    parts = [[f"spot {c}" for c in part] for part in ((0, 1, 2), (3, 4), (5,))]
    return [
        Task(t, f"part {t}", train.select(train.rows_of(names)), test.select(test.rows_of(names)))
        for t, names in enumerate(parts)
    ]


@pytest.fixture(scope="module")
def known(tiny: TimmViT, tasks: list[Task]) -> dict[str, Learner]:
    """A learner of each variant that has learned all tasks; to be copied."""
    return {name: taught(tiny, name, tasks) for name in VARIANTS}


def taught(backbone: Any, variant: str, tasks: Sequence[Task]) -> Learner:
    method, options = VARIANTS[variant]
    me = Learner(method, backbone, progress=False, device="cpu", **options)
    for task in tasks:
        me.learn(task)
    return me


def copied(me: Learner) -> Learner:
    """Another learner of the same state, over the same backbone."""
    backbone, engine = me.backbone, me.engine
    return copy.deepcopy(me, {id(backbone): backbone, id(engine): engine})


def state(me: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in me.method.state_dict().items()}


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_class_goes_and_the_others_stay(
    known: dict[str, Learner], blobs: tuple[Source, Source], variant: str
) -> None:
    me, test = copied(known[variant]), blobs[1]
    before = me.engine.scores(me.method, test)
    found = me.forget("spot 1")
    after = me.engine.scores(me.method, test)
    stay = [0, 2, 3, 4, 5]
    assert found.classes == ("spot 1",) and found.tasks == () and found.bytes > 0
    assert me.classes == ("spot 0", "spot 2", "spot 3", "spot 4", "spot 5")
    assert [entry["classes"] for entry in me.history] == [["spot 0", "spot 2"], ["spot 3", "spot 4"], ["spot 5"]]
    assert me.history[0]["new_classes"] == ["spot 0", "spot 2"]
    assert all(scores.shape == (len(test), 5) for scores in after.values())
    single = after.keys() - {"mixture", "routed", "ensemble"}  # which look at all classes
    for part in single:
        torch.testing.assert_close(after[part], before[part][:, stay], rtol=1e-4, atol=1e-5)
    assert found.probes == 16
    if me.method.name in EXACT:
        assert found.largest_difference < 1e-5 and found.same_answers == 16
    else:
        torch.testing.assert_close(told(me, test, 0), told(known[variant], test, 0)[:, stay], rtol=1e-4, atol=1e-5)


def told(me: Learner, test: Source, task: int) -> Tensor:
    """Scores of a slot of HiDe-PET; of SAFE and LAE those of one expert, which do not look at all classes."""
    expert = {"safe": "slow", "lae": "offline"}.get(me.method.name)
    if expert is not None:
        return me.engine.scores(me.method, test)[expert]
    numbers = torch.full((len(test),), task)
    return me.engine.compute(
        test, me.method.branches, lambda passes: {"told": me.method.told(passes, numbers[passes.rows])}
    )["told"]


def test_prototypes_are_those_of_a_learner_that_never_saw_the_class(
    tiny: TimmViT, known: dict[str, Learner], tasks: list[Task]
) -> None:
    me = copied(known["simple_cil"])
    assert me.forget("spot 1", "spot 4").remains == ()
    without = [
        Task(t.index, t.name, t.train.select(t.train.rows_of([c for c in t.classes if c not in ("spot 1", "spot 4")])))
        for t in tasks
    ]
    other = taught(tiny, "simple_cil", without)
    assert me.classes == other.classes
    for name, value in state(me).items():  # other batches, other rounding
        torch.testing.assert_close(value, state(other)[name], rtol=1e-5, atol=1e-5)


def test_class_statistics_go_and_the_second_moments_stay(known: dict[str, Learner]) -> None:
    before, me = state(known["ranpac"]), copied(known["ranpac"])
    found = me.forget("spot 0", "spot 5")
    after = state(me)
    assert torch.equal(after["gram.Q"], before["gram.Q"][:, 1:5])
    assert torch.equal(after["gram.counts"], before["gram.counts"][1:5])
    assert torch.equal(after["ridge.A"], before["ridge.A"][:, 1:5])
    assert torch.equal(after["gram.G"], before["gram.G"])
    assert found.bytes == 2 * 40 * (8 + 4) + 2 * 8
    assert any("second moments" in sentence for sentence in found.remains)
    assert any("tuning (lora)" in sentence for sentence in found.remains)


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_task_goes_and_the_next_is_learned(
    known: dict[str, Learner], tasks: list[Task], blobs: tuple[Source, Source], variant: str
) -> None:
    me, test = copied(known[variant]), blobs[1]
    found = me.forget(task="part 1")
    assert found.classes == ("spot 3", "spot 4") and found.tasks == ("part 1",)
    assert [entry["task"] for entry in me.history] == ["part 0", "part 2"]
    # Task 1 is now what was task 2.
    wanted = told(known[variant], test, 2)[:, [0, 1, 2, 5]]
    torch.testing.assert_close(told(me, test, 1), wanted, rtol=1e-4, atol=1e-5)
    assert set(me.predict(test, task="part 2")) == {"spot 5"}
    me.learn(Task(1, "again", tasks[1].train))
    assert me.classes == ("spot 0", "spot 1", "spot 2", "spot 5", "spot 3", "spot 4")
    assert me.scores(test).shape == (len(test), 6) and me.scores(test).isfinite().all()
    assert set(me.predict(test, task="again")) <= {"spot 3", "spot 4"}


def test_tunings_go_with_the_task_that_only_they_served(known: dict[str, Learner]) -> None:
    before = known["hide_pet accumulate"].method
    assert before.distribution.domain.tolist() == [0, 1, 2]  # so near is the threshold
    me = copied(known["hide_pet accumulate"])
    me.forget("spot 3")
    assert len(me.method.e) == len(me.method.g) == 3  # task 1 still has a class
    me.forget("spot 4")
    method = me.method
    assert [slot.fingerprint() for slot in method.e] == [before.e[0].fingerprint(), before.e[2].fingerprint()]
    assert [slot.fingerprint() for slot in method.g] == [before.g[0].fingerprint(), before.g[2].fingerprint()]
    assert method.distribution.domain.tolist() == [0, 1]
    assert method.uninstructed.entry_task.tolist() == [0, 0, 0, 1]
    assert method.uninstructed.entry_class.tolist() == [0, 1, 2, 3]
    assert method.omega.classes == method.psi.classes == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_class_may_be_left(
    known: dict[str, Learner], tasks: list[Task], blobs: tuple[Source, Source], variant: str
) -> None:
    me = copied(known[variant])
    me.forget(*(f"spot {c}" for c in (0, 1, 2, 3, 5)))
    assert set(me.predict(blobs[1])) == {"spot 4"} and [entry["task"] for entry in me.history] == ["part 1"]
    me.learn(Task(1, "first again", tasks[0].train))
    assert me.scores(blobs[1]).isfinite().all() and len(me.classes) == 4


def test_a_task_without_a_name_gets_one_that_is_free(tiny: TimmViT) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    me = Learner("simple_cil", tiny, progress=False)
    for labels in ("aabbab", "cdccdd", "effeef"):
        me.partial_fit(images, [*labels])
    me.forget(task="task 1")
    me.partial_fit(images, [*"ghghgh"])
    assert [entry["task"] for entry in me.history] == ["task 2", "task 3", "task 4"]


def test_a_saved_learner_that_forgot_is_the_same(
    tiny: TimmViT, known: dict[str, Learner], blobs: tuple[Source, Source], tmp_path: Path
) -> None:
    me = copied(known["hide_pet"])
    me.forget("spot 0", task=2)
    me.save(tmp_path)
    again = Learner.load(tmp_path, tiny, progress=False)
    assert torch.equal(again.scores(blobs[1]), me.scores(blobs[1])) and again.history == me.history
    assert not any("spot 0" in path.read_text() for path in tmp_path.glob("*.json"))


def test_domains_are_forgotten_by_class(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> None:
    train, test = blobs
    me = taught(tiny, "hide_pet", [Task(0, "day", train), Task(1, "night", test, kind="domain")])
    with pytest.raises(StreamError, match=r"'night' has classes in common with other tasks \(spot 0, spot 1"):
        me.forget(task="night")
    assert me.forget("spot 2").tasks == ()
    assert me.method.uninstructed.entry_task.tolist() == [0] * 5 + [1] * 5
    assert me.method.uninstructed.entry_class.tolist() == [*range(5), *range(5)]


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_examples_are_compared_too_and_mixtures_differ(known: dict[str, Learner], blobs: tuple[Source, Source]) -> None:
    me, test = copied(known["safe"]), blobs[1]
    before = me.scores(test)
    found = me.forget("spot 2", examples=test)
    after = me.scores(test)
    moved = (after - before[:, [0, 1, 3, 4, 5]]).abs().max()
    assert found.probes == 16 + len(test)
    assert found.largest_difference >= float(moved) > 1e-6
    assert any("entropy over all classes" in sentence for sentence in found.remains)


def test_the_cache_that_knows_more_is_named(known: dict[str, Learner], tmp_path: Path) -> None:
    me = copied(known["simple_cil"])
    me.engine = copy.copy(me.engine)
    me.engine.disk = DiskCache(tmp_path)
    assert [str(tmp_path) in sentence for sentence in me.forget("spot 0").remains] == [True]


def test_texts_are_probed_with_texts(encoder: Any) -> None:
    texts = TextSource(["w10 w11", "w20 w21", "w30 w31"], [0, 1, 2], ["a", "b", "c"], name="texts")
    me = taught(encoder("bert"), "simple_cil", [Task(0, "all", texts)])
    found = me.forget("b")
    assert found.probes == found.same_answers == 16 and me.classes == ("a", "c")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_forgotten_is_refused(known: dict[str, Learner]) -> None:
    me = known["simple_cil"]
    before = state(me)
    for names, task, message in (
        (("spot 11",), None, "No class is called 'spot 11': did you mean 'spot 1'"),
        ((), None, "nothing to forget"),
        ((), "part 7", "No task is called 'part 7'"),
        (me.classes, None, "These are all 6 classes"),
    ):
        with pytest.raises(StreamError, match=message):
            me.forget(*names, task=task)
    assert all(torch.equal(value, before[name]) for name, value in state(me).items())


def test_a_learner_of_nothing_has_nothing_to_forget(tiny: TimmViT) -> None:
    with pytest.raises(StreamError, match="nothing is learned yet"):
        Learner("simple_cil", tiny, progress=False).forget("cat")


def test_a_method_that_cannot_forget_says_so(known: dict[str, Learner], monkeypatch: pytest.MonkeyPatch) -> None:
    me = copied(known["simple_cil"])
    monkeypatch.setattr(type(me.method), "forget", Method.forget)
    with pytest.raises(ConfigError, match="simple_cil cannot forget"):
        me.forget("spot 0")
    assert len(me.classes) == 6


@pytest.mark.parametrize("variant", ["safe", "hide_pet accumulate"])
def test_after_a_failure_it_is_what_it_was(
    known: dict[str, Learner], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    me, before = copied(known[variant]), state(known[variant])
    original = type(me.method).forget

    def fails(method: Method, classes: Sequence[int]) -> list[str]:
        original(method, classes)
        raise RuntimeError("a cosmic ray")

    monkeypatch.setattr(type(me.method), "forget", fails)
    with pytest.raises(RuntimeError, match="cosmic"):
        me.forget(task=1)
    assert me.classes == known[variant].classes and me.history == known[variant].history
    assert before.keys() == state(me).keys()
    assert all(torch.equal(value, before[name]) for name, value in state(me).items())
    trains = {name: p.requires_grad for name, p in known[variant].method.named_parameters()}
    assert {name: p.requires_grad for name, p in me.method.named_parameters()} == trains


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_every_method_is_here() -> None:
    assert {method for method, _ in VARIANTS.values()} == METHODS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_byte_is_counted_and_spoken_of(known: dict[str, Learner], variant: str) -> None:
    kept = known[variant].stored()
    random = known[variant].method.generators.init.get_state().nbytes
    assert sum(s.bytes for s in kept) == sum(t.nbytes for t in state(known[variant]).values()) + 2 * random
    assert len({s.name for s in kept}) == len(kept)
    assert not [s.name for s in kept if s.of_data in ("", UNSAID)]


def test_what_nobody_speaks_of_is_unknown() -> None:
    silent = nn.Sequential(nn.Linear(3, 2))
    assert [(s.name, s.bytes, s.of_data) for s in stored(silent)] == [("0.weight", 24, UNSAID), ("0.bias", 8, UNSAID)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_kept_of_single_examples(
    tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], variant: str
) -> None:
    """Sizes that nothing else has: 23 examples, then 19."""
    train = blobs[0]
    parts = [train.rows_of(["spot 0", "spot 1"])[:23], train.rows_of(["spot 3", "spot 4"])[:19]]
    me = taught(tiny, variant, [Task(t, f"part {t}", train.select(rows)) for t, rows in enumerate(parts)])
    sizes = {23, 19, 23 + 19}
    assert not {name: tuple(t.shape) for name, t in state(me).items() if sizes & set(t.shape)}
    held = {s.name: s.bytes for s in me.stored() if "every example" in s.of_data}
    assert not any(held.values())
