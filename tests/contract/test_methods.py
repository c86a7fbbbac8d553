"""What every method promises, checked through the learner on a real, tiny transformer, of images and of texts.

One function per behaviour, each taking a method by name: ``check_method("mine")`` runs them all for a method that is
registered elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from evertune.backbones import Backbone, HFEncoder, Passes, TimmViT, digest
from evertune.errors import ConfigError, DataError, StreamError, TrainingError
from evertune.learner import Learner
from evertune.methods import METHODS, Method, Optimise, TaskInfo, get_method
from evertune.streams import Source, Stream, Task, open_data
from evertune.streams.arrays import ArraySource
from evertune.streams.source import Example
from evertune.streams.texts import TextSource

CLASSES = tuple("abcdef")
QUICK = {
    "epochs": 2, "follow_epochs": 1, "batch_size": 8, "features": 48, "blocks": "0-2", "shared_epochs": 2,
    "shared_follow_epochs": 1, "fix_epochs": 1, "warmup": 0, "shared_warmup": 0, "tii_epochs": 30, "tap_epochs": 30,
    "centroids": 2,
}  # fmt: skip
"""Of these, the options that a method has."""

Check = Callable[[str, str | None], None]
CHECKS: list[Check] = []


def behaviour(check: Check) -> Check:
    CHECKS.append(check)
    return check


def check_method(name: str, preset: str | None = None) -> None:
    """Every behaviour in turn; the first one that ``name`` lacks raises."""
    for check in CHECKS:
        check(name, preset)


# -- material ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Material:
    """What the behaviours are checked on. Row i of the examples is of class i mod 6."""

    backbone: Callable[[], Backbone]
    examples: Callable[[int, int], np.ndarray]
    data: Callable[[int, int], Source]
    inputs: Tensor
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@functools.cache
def vision() -> TimmViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
        for p in vit.parameters():  # timm's own draw is so small that every image looks alike
            if p.ndim >= 2:
                torch.nn.init.normal_(p, std=0.2)
        return TimmViT(vit, "tiny")


def pictures(rows: int, seed: int) -> np.ndarray:
    """Noisy images [rows, 8, 8, 3]."""
    patterns = np.random.default_rng(99).uniform(0, 255, (len(CLASSES), 8, 8, 3))
    noise = np.random.default_rng(seed).normal(0, 40, (rows, 8, 8, 3))
    return np.clip(patterns[np.arange(rows) % len(CLASSES)] + noise, 0, 255).astype(np.uint8)


@functools.cache
def picture_data(rows: int, seed: int) -> Source:
    return ArraySource(pictures(rows, seed), np.arange(rows) % len(CLASSES), classes=CLASSES, name="array")


def sentences(rows: int, seed: int) -> np.ndarray:
    """Texts [rows] of 3 to 20 words, nearly all of them out of three of their class."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        own, words = row % len(CLASSES), rng.integers(3, 21)
        drawn = np.where(rng.random(words) < 0.95, rng.integers(10, 13, words) + 10 * own, rng.integers(10, 80, words))
        made.append(" ".join(f"w{word}" for word in drawn))
    return np.array(made)


@functools.cache
def sentence_data(rows: int, seed: int) -> Source:
    return TextSource(sentences(rows, seed).tolist(), np.arange(rows) % len(CLASSES), CLASSES, name="texts")


IMAGES = Material(vision, pictures, picture_data, torch.zeros(2, 3, 32, 32))
material: ContextVar[Material] = ContextVar("material", default=IMAGES)


def backbone() -> Backbone:
    return material.get().backbone()


def examples(rows: int, seed: int) -> np.ndarray:
    return material.get().examples(rows, seed)


def data(rows: int = 48, seed: int = 0) -> Source:
    return material.get().data(rows, seed)


def task(
    index: int, names: Sequence[str], *, rows: int = 48, seed: int = 0, kind: str = "class", limit: int | None = None
) -> Task:
    source = data(rows, seed)
    return Task(index, f"task {index + 1}", source.select(source.rows_of(names)[:limit]), kind=kind)  # type: ignore[arg-type]


def tasks() -> list[Task]:
    """Three classes, then two, then one of a single image."""
    return [task(0, "abc"), task(1, "de"), task(2, "f", limit=1)]


def learner(method: str, preset: str | None, **options: Any) -> Learner:
    known = {f.name for f in dataclasses.fields(get_method(method).config_type)}
    quick = {k: v for k, v in (QUICK | material.get().options).items() if k in known}
    return Learner(method, backbone(), preset=preset, seeds=3, device="cpu", progress=False, **quick | options)


def taught(method: str, preset: str | None, given: Sequence[Task] | None = None, **options: Any) -> Learner:
    me = learner(method, preset, **options)
    for each in tasks() if given is None else given:
        me.learn(each)
    return me


def state(me: Learner) -> dict[str, Tensor]:
    """All a learner is made of, its generators included."""
    generators = me.method.generators
    return {k: v.clone() for k, v in me.method.state_dict().items()} | {
        "random init": generators.init.get_state(),
        "random sampling": generators.sampling.get_state(),
    }


def require_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [k for k in one if not torch.equal(one[k], two[k])]
    assert not different, different


def require_right(me: Learner, names: Sequence[str]) -> None:
    """More than half of new images of these classes are recognised, among all classes seen."""
    held = data(30, seed=1)
    correct, total = next(iter(me.evaluate(held.select(held.rows_of(names))).values()))
    assert correct > total / 2


def spied(method: Method, on_start: Callable[[Optimise, list[torch.nn.Parameter]], None]) -> None:
    """Calls ``on_start`` with the parameters of every training phase as it begins."""
    original = method.phases

    def phases(info: TaskInfo) -> Iterator[Any]:
        def asked(phase: Optimise) -> list[torch.nn.Parameter]:
            parameters = list(phase.parameters())
            on_start(phase, parameters)
            return parameters

        for p in original(info):
            yield dataclasses.replace(p, parameters=functools.partial(asked, p)) if isinstance(p, Optimise) else p

    method.phases = phases  # type: ignore[method-assign]


class Failing(Source):
    """A source that cannot be read any more after ``good`` examples."""

    def __init__(self, source: Source, good: int) -> None:
        self.source, self.good = source, good
        self.modality = source.modality
        self.name, self.classes, self.labels = source.name, source.classes, source.labels

    def load(self, index: int) -> Example:
        self.good -= 1
        if self.good < 0:
            raise DataError(f"{self.describe(index)} cannot be read.")
        return self.source.load(index)

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def _digest(self) -> str:
        return self.source.digest


# -- behaviours --------------------------------------------------------------------------------------------------------


@behaviour
def only_what_is_declared_trains(method: str, preset: str | None) -> None:
    me = learner(method, preset)
    before = digest(me.backbone.state_dict())
    declared: list[set[int]] = []
    snapshots: list[dict[str, Tensor]] = []

    def began(_: Optimise, parameters: list[torch.nn.Parameter]) -> None:
        declared.append({id(p) for p in parameters if p.requires_grad})
        snapshots.append(state(me))

    def ended(report: Any) -> None:
        if report.kind == "optimise":
            own = {n: id(p) for n, p in me.method.named_parameters()}
            for name, value in state(me).items():
                if own.get(name) not in declared[-1]:
                    assert torch.equal(value, snapshots[-1][name]), f"{name} moved in {report.name}"

    spied(me.method, began)
    for each in tasks():
        me.learn(each, on_phase=ended)
    assert digest(me.backbone.state_dict()) == before
    assert not any(p.requires_grad or p.grad is not None for p in me.backbone.parameters())
    held = {p.data_ptr() for p in me.backbone.parameters()}
    assert not [n for n, v in me.method.state_dict().items() if v.numel() and v.data_ptr() in held]


@behaviour
def it_learns(method: str, preset: str | None) -> None:
    me = taught(method, preset, [task(0, "abc"), task(1, "de"), task(2, "f")])
    assert me.classes == CLASSES
    require_right(me, CLASSES if me.method.remembers else "f")


@behaviour
def scores_are_finite_over_all_classes_seen(method: str, preset: str | None) -> None:
    me = learner(method, preset)
    for each in tasks():
        me.learn(each)
        parts = me.engine.scores(me.method, data(12, seed=1))
        for part in parts.values():
            assert part.shape == (12, len(me.classes)) and part.dtype == torch.float32
            assert part.isfinite().all()
        assert torch.equal(me.scores(examples(12, 1)), next(iter(parts.values())))
        assert not me.method.training
    assert set(me.predict(examples(12, 1))) <= set(CLASSES)


@behaviour
def predictions_do_not_depend_on_companions(method: str, preset: str | None) -> None:
    me = taught(method, preset)
    x = examples(70, 1)
    together = me.scores(x)
    order = np.random.default_rng(0).permutation(70)
    shuffled = torch.empty_like(together)
    shuffled[order] = me.scores(x[order])
    others = [shuffled]
    for size in (1, 7, 64):
        me.engine.feed.eval_batch = size
        others.append(me.scores(x[:]))
    for other in others:
        torch.testing.assert_close(other, together, rtol=1e-3, atol=1e-4)
        assert torch.equal(other.argmax(1), together.argmax(1))


@behaviour
def a_kept_learner_predicts_and_goes_on_the_same(method: str, preset: str | None) -> None:
    straight = taught(method, preset)
    me = learner(method, preset)
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(tasks()):
            me.learn(each)
            before = me.scores(examples(12, 1))
            me.save(Path(folder) / str(number))
            me = Learner.load(Path(folder) / str(number), backbone(), device="cpu", progress=False)
            assert torch.equal(me.scores(examples(12, 1)), before)
    require_same(state(me), state(straight))
    assert torch.equal(me.scores(examples(12, 1)), straight.scores(examples(12, 1)))
    assert me.classes == straight.classes
    assert [h["task"] for h in me.history] == ["task 1", "task 2", "task 3"]


@behaviour
def what_is_kept_is_json_and_safetensors(method: str, preset: str | None) -> None:
    me = taught(method, preset)
    with tempfile.TemporaryDirectory() as folder:
        me.save(folder)
        files = sorted(p.name for p in Path(folder).iterdir())
        assert {Path(f).suffix for f in files} == {".json", ".safetensors"}
        content = json.loads((Path(folder) / "learner.json").read_text())
        assert content["method"] == method
        with safe_open(Path(folder) / content["state"]["file"], "pt") as tensors:
            names = set(tensors.keys())
            # A fresh norm's ones are anyone's.
            weights = {digest({"": p}) for p in me.backbone.state_dict().values() if p.unique().numel() > 1}
            assert not [n for n in names if digest({"": tensors.get_tensor(n)}) in weights]
        assert names == {*me.method.state_dict(), "random.init", "random.sampling"}


@behaviour
def what_is_kept_does_not_grow_with_examples(method: str, preset: str | None) -> None:
    """Statistics are kept instead of data."""
    sizes = [
        {k: v.shape for k, v in state(taught(method, preset, [task(0, "abc", rows=n), task(1, "def", rows=n)])).items()}
        for n in (36, 72)
    ]
    assert sizes[0] == sizes[1]


@behaviour
def the_same_seed_gives_the_same_learner(method: str, preset: str | None) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = taught(method, preset)
    torch.manual_seed(2)
    np.random.seed(2)
    require_same(state(first), state(taught(method, preset)))


@behaviour
def no_global_random_number_is_drawn(method: str, preset: str | None) -> None:
    backbone()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    taught(method, preset).predict(examples(4, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@behaviour
def tasks_may_be_of_any_size(method: str, preset: str | None) -> None:
    """A first task of two images, then one class, then three, then a single image."""
    given = [task(0, "ab", limit=2), task(1, "c"), task(2, "def"), task(3, ["a"], limit=1, kind="domain")]
    me = taught(method, preset, given)
    assert me.classes == CLASSES
    assert me.scores(examples(6, 1)).isfinite().all()


@behaviour
def a_new_domain_brings_no_class(method: str, preset: str | None) -> None:
    me = taught(method, preset, [task(0, CLASSES, seed=s, kind="domain") for s in (0, 5)])
    assert me.classes == CLASSES
    before = state(me)
    me.learn(task(2, "bd", seed=6, kind="domain"))  # only some of the classes
    assert me.classes == CLASSES
    assert any(
        not torch.equal(v, before[k]) for k, v in state(me).items() if k not in ("tasks_seen", "random sampling")
    )
    require_right(me, CLASSES if me.method.remembers else "bd")


@behaviour
def a_new_domain_may_bring_some(method: str, preset: str | None) -> None:
    me = taught(method, preset, [task(0, "abc", kind="domain"), task(1, "bcd", seed=5, kind="domain")])
    assert me.classes == tuple("abcd")
    assert me.scores(examples(6, 1)).shape == (6, 4)
    require_right(me, "abcd" if me.method.remembers else "bcd")


@behaviour
def held_out_data_is_not_touched_while_learning(method: str, preset: str | None) -> None:
    given = [dataclasses.replace(each, test=Failing(each.train, 0)) for each in tasks()]
    require_same(state(taught(method, preset, given)), state(taught(method, preset)))


@behaviour
def no_task_is_identified(method: str, preset: str | None) -> None:
    """Names of tasks do not matter to learning, and prediction is told nothing but images."""
    renamed = [dataclasses.replace(each, name=f"other {each.index}", index=7) for each in tasks()]
    me = taught(method, preset, renamed)
    require_same(state(me), state(taught(method, preset)))
    assert list(inspect.signature(type(me.method).scores).parameters) == ["self", "passes"]
    test = data(30, seed=1)
    whole = me.evaluate(test)
    parts = [me.evaluate(test.select(test.rows_of(names))) for names in ("abc", "de", "f")]
    for name, (correct, total) in whole.items():
        assert (correct, total) == (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts))


@behaviour
def scores_ask_for_the_declared_branches(method: str, preset: str | None) -> None:
    """Evaluation trusts ``branches`` to know which features it can reuse. A method that routes each image to a branch
    of its own declares all that it may choose from."""

    class Asked(Passes):
        def __call__(self, tuning: Any = None) -> Tensor:
            asked.append(tuning)
            return super().__call__(tuning)

        def routed(self, slots: Any, ids: Tensor) -> Tensor:
            routed.extend(slots[i] for i in ids.unique().tolist())
            return super().routed(slots, ids)

    me = learner(method, preset)
    for each in tasks():
        me.learn(each)
        asked: list[Any] = []
        routed: list[Any] = []
        passes = Asked(me.backbone, material.get().inputs)
        with torch.no_grad():
            me.method.scores(passes)
        declared = {id(t) for t in me.method.branches}
        assert {id(t) for t in asked + routed} <= declared
        assert passes.forwards == len({id(t) for t in asked}) + bool(routed)
        if not routed:
            assert {id(t) for t in asked} == declared


@behaviour
def cached_features_change_no_score(method: str, preset: str | None) -> None:
    me, test = learner(method, preset), data(12, seed=1)
    for each in tasks():
        me.learn(each)
        first = me.engine.scores(me.method, test)
        again = me.engine.scores(me.method, test)
        fresh = Learner.scores(me, examples(12, 1)[:])
        assert all(torch.equal(first[name], again[name]) for name in first)
        torch.testing.assert_close(next(iter(first.values())), fresh)


@behaviour
def phases_are_only_announced(method: str, preset: str | None) -> None:
    me = taught(method, preset)
    before = state(me)
    next(iter(me.method.phases(TaskInfo(index=3, present=(6,), new=(6,), known=6, size=5))))
    require_same(state(me), before)


def failures(each: Task) -> Iterator[Callable[[Learner], None]]:
    """Ways to fail while learning ``each``: at the first image, midway, in a later pass, between phases."""
    n = len(each.train)

    def unreadable(good: int, me: Learner) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            me.learn(dataclasses.replace(each, train=Failing(each.train, good)))

    for good in (0, n // 2, n - 1):
        yield functools.partial(unreadable, good)

    def interrupted(phase: int, me: Learner) -> None:
        seen: list[Any] = []

        def stop(report: Any) -> None:
            seen.append(report)
            if len(seen) > phase:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            me.learn(each, on_phase=stop)

    for phase in range(6):
        yield functools.partial(interrupted, phase)


@behaviour
def a_failure_leaves_everything_as_it_was(method: str, preset: str | None) -> None:
    me, straight = learner(method, preset), learner(method, preset)
    for each in tasks():
        before, classes, history = state(me), me.classes, list(me.history)
        learns = [p.requires_grad for p in me.method.parameters()]
        count: list[Any] = []
        straight.learn(each, on_phase=count.append)
        for number, fail in enumerate(failures(each)):
            if number >= 3 + len(count):
                break
            fail(me)
            require_same(state(me), before)
            assert (me.classes, me.history) == (classes, history)
            assert [p.requires_grad for p in me.method.parameters()] == learns
            assert not me.method.training
        me.learn(each)  # as if nothing had happened
        require_same(state(me), state(straight))


@behaviour
def a_divergence_is_an_error_that_leaves_everything_as_it_was(method: str, preset: str | None) -> None:
    known = {f.name for f in dataclasses.fields(get_method(method).config_type)}
    if "rate" not in known:
        return
    me = learner(method, preset, rate=1e30)
    before = state(me)
    with pytest.raises(TrainingError, match="learning rate"):
        me.learn(tasks()[0])
    require_same(state(me), before)
    assert me.classes == () and me.history == []
    if "follow_rate" in known:
        me = learner(method, preset, follow_rate=1e30)
        me.learn(tasks()[0])
        before, scores = state(me), me.scores(examples(4, 1))
        with pytest.raises(TrainingError, match="learning rate"):
            me.learn(tasks()[1])
        require_same(state(me), before)
        assert torch.equal(me.scores(examples(4, 1)), scores)


@behaviour
def a_damaged_file_is_named(method: str, preset: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            for i, image in enumerate(examples(12, 0)):
                file = Path(folder) / part / CLASSES[i % 6] / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
        train, test = open_data(folder)
        first, second = Stream.class_incremental(train, test, first=3, increment=3, order_seed=None)
        me = learner(method, preset)
        me.learn(first)
        before = state(me)
        victim = Path(folder) / "train" / "e" / "4.png"
        victim.write_bytes(victim.read_bytes()[:60])
        with pytest.raises(DataError, match=r"4\.png"):
            me.learn(second)
        require_same(state(me), before)


@behaviour
def impossible_tasks_are_refused(method: str, preset: str | None) -> None:
    me = learner(method, preset)
    with pytest.raises(StreamError, match="one class"):
        me.learn(task(0, "a"))
    with pytest.raises(StreamError, match="learned nothing"):
        me.predict(examples(1, 0))
    me.learn(task(0, "abc"))
    with pytest.raises(StreamError, match="no new class"):
        me.learn(task(1, "ab"))
    with pytest.raises(StreamError, match="never learned"):
        me.evaluate(data())


@behaviour
def unknown_names_are_told_with_the_nearest(method: str, preset: str | None) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {method!r}"):
        Learner(method + "x", backbone())
    for f in dataclasses.fields(get_method(method).config_type):
        with pytest.raises(ConfigError, match="Did you mean"):
            Learner(method, backbone(), **{f.name + "x": 1})
    known = next(iter(get_method(method).config_type.presets))
    with pytest.raises(ConfigError, match=f"Did you mean {known!r}"):
        Learner(method, backbone(), preset=known + "x")
    with pytest.raises(ConfigError, match="select_best_on_test"):
        Learner(method, backbone(), select_best_on_test=True)


# -- every method × every behaviour ------------------------------------------------------------------------------------


OTHERS = (("safe", "released"), ("hide_pet", "evertune"), ("ntk_cl", "released"))


METHODS_AND_PRESETS = [pytest.param(name, None, id=name) for name in METHODS] + [
    pytest.param(name, preset, id=f"{name}-{preset}") for name, preset in OTHERS
]
OF_FILES = (a_damaged_file_is_named,)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("method", "preset"), METHODS_AND_PRESETS)
def test_contract(method: str, preset: str | None, check: Check) -> None:
    check(method, preset)


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in OF_FILES], ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_contract_on_texts(method: str, check: Check, encoder: Callable[..., HFEncoder]) -> None:
    model = encoder()
    inputs = model.tokenizer(["w10 w11 w12", "w20"], padding=True, return_tensors="pt")["input_ids"]
    # NTK-CL serves texts with its channel-wise subnetwork alone.
    texts = Material(encoder, sentences, sentence_data, inputs, {"branch": "channel"})
    token = material.set(texts)
    try:
        check(method, None)
    finally:
        material.reset(token)
