"""Texts of a batch passed by their length: the same features and gradients, without the padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import HFEncoder, Passes, passes
from evertune.engine.cache import FeatureCache
from evertune.engine.feed import Feed
from evertune.engine.meter import Meter
from evertune.engine.runtime import Runtime
from evertune.methods import Recipe
from evertune.streams import TextSource, TextView
from evertune.testing import check_method
from evertune.tuning import Bank, PromptPool, Tuning, make_tuning

pytest.importorskip("transformers")

LENGTHS = (3, 30, 6, 9, 14, 1, 28, 2, 17, 5)
ALIKE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def model(encoder: Callable[..., HFEncoder], monkeypatch: pytest.MonkeyPatch) -> HFEncoder:
    monkeypatch.setattr(passes, "WORTH", 1)
    return encoder()


def batch(model: HFEncoder) -> Tensor:
    view = TextView(model.tokenizer, model.identity.max_length)
    texts = [" ".join(f"w{(7 * i + 3 * j) % 60 + 1}" for j in range(n)) for i, n in enumerate(LENGTHS)]
    return view.collate([view(text) for text in texts])


def moved(tuning: Tuning) -> Tuning:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in tuning.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return tuning


def lora(model: HFEncoder, blocks: str = "all") -> Tuning:
    return moved(make_tuning("lora", model.shape, torch.Generator().manual_seed(1), blocks=blocks))


def test_every_text_stands_with_those_of_its_length(model: HFEncoder) -> None:
    inputs = batch(model)
    rounded = [-(-int(n) // 8) * 8 for n in model.mask(inputs).sum(1)]
    parts = Passes(model, inputs, by_length=True).parts
    assert len(set(rounded)) > 3
    assert [tuple(part.shape) for part in parts] == [(rounded.count(n), n) for n in sorted(set(rounded))]
    assert [tuple(part.shape) for part in Passes(model, inputs).parts] == [(10, max(rounded))]


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix", "prompt", "vpt", "ssf", "full"])
def test_features_and_gradients_are_those_of_the_padded_batch(model: HFEncoder, kind: str) -> None:
    inputs, weight = batch(model), torch.randn(10, model.shape.width, generator=torch.Generator().manual_seed(3))
    options = {"dropout": 0.0} if kind == "adapter" else {}
    tuning = moved(make_tuning(kind, model.shape, torch.Generator().manual_seed(1), **options))
    found = []
    for by_length in (False, True):
        tuning.zero_grad()
        several = Passes(model, inputs, by_length=by_length)
        feature = several(tuning)
        (feature * weight).sum().backward()
        found.append([feature.detach(), several(), *(p.grad for p in tuning.parameters())])
        assert several.forwards == 2
    for whole, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, whole, **ALIKE)


def test_branches_share_their_beginning_within_each_part(model: HFEncoder) -> None:
    inputs = batch(model)
    several = Passes(model, inputs, by_length=True)
    late, later = lora(model, "1-2").freeze(), lora(model, "2").freeze()
    for tuning in (late, later, None):
        torch.testing.assert_close(several(tuning), Passes(model, inputs)(tuning), **ALIKE)


def test_each_text_keeps_its_own_tuning(model: HFEncoder) -> None:
    inputs, ids = batch(model), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0, 1])
    bank = Bank(lora(model))
    for slot in range(2):
        moved(bank.open())
        bank.freeze(slot)
    pool = PromptPool(model.shape, torch.Generator().manual_seed(4), size=4, length=2, top=2)
    chosen = torch.stack([ids, 3 - ids], dim=1)
    whole, apart = Passes(model, inputs), Passes(model, inputs, by_length=True)
    torch.testing.assert_close(apart.routed(bank, ids), whole.routed(bank, ids), **ALIKE)
    torch.testing.assert_close(apart.steered(pool, chosen), whole.steered(pool, chosen), **ALIKE)


def test_texts_that_are_remembered_are_not_passed_again(model: HFEncoder) -> None:
    inputs, tuning = batch(model), lora(model).freeze()
    wanted = Passes(model, inputs)(tuning)
    cache = FeatureCache()
    some = torch.tensor([8, 1, 4])
    Passes(model, inputs[some], memory=cache.view("texts", some, 10))(tuning)
    again = Passes(model, inputs, memory=cache.view("texts", torch.arange(10), 10), by_length=True)
    torch.testing.assert_close(again(tuning), wanted, **ALIKE)


def test_half_precision(model: HFEncoder) -> None:
    inputs, tuning = batch(model), lora(model)
    feature = Passes(model, inputs, precision=Runtime("cpu", "bf16").autocast, by_length=True)(tuning)
    assert torch.nn.functional.cosine_similarity(feature, Passes(model, inputs)(tuning)).min() > 0.99


def test_a_cpu_trains_by_length_and_an_accelerator_does_not(model: HFEncoder) -> None:
    source = TextSource(["w1 w2", "w3 " * 12] * 4, [0, 1] * 4, ["a", "b"])
    view = TextView(model.tokenizer, model.identity.max_length)
    feed = Feed(model, Runtime("cpu"), train_view=view, test_view=view, eval_batch=4, workers=0, pixels="exact")
    recipe = Recipe(epochs=1, batch_size=8, rate=0.1)
    (trained,) = feed.training(source, np.array([0, 1]), recipe, (0,), 0, decoded=None, bank=None)
    assert len(trained.passes.parts) == 2
    assert [len(p.parts) for _, p in feed.asking(source, np.arange(8), lambda _: None)] == [1, 1]
    feed.runtime.device = torch.device("cuda")
    assert not feed.by_length


def test_a_task_that_was_stopped_goes_on_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "WORTH", 1)
    check_method("finetune", texts=True, only=["a_stopped_task_goes_on_the_same"])


def test_a_count_is_over_what_was_passed(model: HFEncoder) -> None:
    several = Passes(model, batch(model), by_length=True)
    told: list[float] = []
    with Meter(model, Runtime("cpu").autocast).counting(several, told.append):
        several()
    assert told == [pytest.approx(1)]


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ([12] * 48, 16, [(-1, 16)]),
        ([3, 40], 40, [(-1, 40)]),  # 32 tokens are saved, which is not worth a part
        ([3, 4, 40], 40, [(-1, 8), (8, 40)]),
        ([3, 12, 20, 28, 36], 40, [(-1, 40)]),
        ([3] * 8 + [12, 20, 28, 36], 40, [(-1, 8), (8, 40)]),
        ([3] * 8 + [37], 37, [(-1, 8), (8, 37)]),  # the model reads no more than 37
    ],
)
def test_what_is_worth_a_part(lengths: list[int], longest: int, expected: list[tuple[int, int]]) -> None:
    assert passes.ranges(torch.tensor(lengths), longest) == expected
