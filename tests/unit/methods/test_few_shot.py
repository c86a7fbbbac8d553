"""Few-shot learning from what a learner accumulated, and episodes of it."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import TimmViT
from evertune.errors import ConfigError, DataError, StreamError, TrainingError
from evertune.few_shot import episodes, few_shot, mean_interval
from evertune.heads import LinearHead
from evertune.learner import Learner
from evertune.methods import HiDePET
from evertune.streams import ArraySource, Source, Stream, TestView
from evertune.tuning import Tuning

Data = tuple[ArraySource, ArraySource]
QUICK: dict[str, Any] = {
    "blocks": "0-1", "batch_size": 8, "epochs": 1, "shared_epochs": 3, "shared_rate": 2e-2, "warmup": 0,
    "centroids": 3, "tii_epochs": 1, "tap_epochs": 1,
}  # fmt: skip


def make_learner(tiny: TimmViT, blobs: Data, **options: Any) -> Learner:
    """Taught spots 0 to 3 in two tasks; with a threshold of 0 each opened a shared set of its own."""
    learner = Learner("hide_pet", tiny, progress=False, device="cpu", **QUICK | options)
    for task in Stream.class_incremental(*blobs, first=2, increment=2, order_seed=None)[:2]:
        learner.learn(task)
    return learner


@pytest.fixture(scope="module")
def learner(tiny: TimmViT, blobs: Data) -> Learner:
    return make_learner(tiny, blobs, accumulate=True, accumulate_threshold=0.0)


@pytest.fixture
def support(blobs: Data) -> Source:
    """Three images of each of two spots that were never taught."""
    return of(blobs[0], ["spot 4", "spot 5"], 3)


def of(pool: Source, names: list[str], each: int) -> Source:
    return pool.select(np.concatenate([pool.rows_of([name])[:each] for name in names]))


def banks(learner: Learner) -> HiDePET:
    assert isinstance(learner.method, HiDePET)
    return learner.method


def by_hand(tiny: TimmViT, source: Source, tuning: Tuning | None) -> Tensor:
    """Features by the backbone itself."""
    view = TestView(32)
    images = torch.stack([view(source.load(i)) for i in range(len(source))]) / 255
    with torch.no_grad():
        return tiny(images, tuning)


def adam(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """The weight and bias, [K, L + 1], of a softmax regression after Adam's steps, in double."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(float)
    w = np.concatenate([weight, bias[:, None]], 1).astype(float)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, steps + 1):
        p = np.exp(x @ w.T - (x @ w.T).max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        gradient = p.T @ x / len(x)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= rate * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


@pytest.mark.parametrize("shared", [None, 0, 1])
def test_the_head_is_adams_on_the_features_of_the_set(
    tiny: TimmViT, learner: Learner, support: Source, shared: int | None
) -> None:
    found = few_shot(learner, support, epochs=20, rate=0.02, seed=3, shared=shared)
    x = by_hand(tiny, support, None if shared is None else banks(learner).g[shared])
    start = LinearHead(48)
    start.grow(2, torch.Generator().manual_seed(3))
    y = np.array([0, 0, 0, 1, 1, 1])
    wanted = adam(x.numpy(), y, start.weight.detach().numpy(), start.bias.detach().numpy(), 0.02, 20)
    assert found.shared == shared
    assert found.classes == ("spot 4", "spot 5")
    np.testing.assert_allclose(found.head.weight.detach().numpy(), wanted[:, :-1], atol=1e-4)
    np.testing.assert_allclose(found.head.bias.detach().numpy(), wanted[:, -1], atol=1e-4)


def test_the_nearest_tasks_set_is_chosen(tiny: TimmViT, learner: Learner, blobs: Data, support: Source) -> None:
    assert len(banks(learner).g) == 2
    for task, names in enumerate((["spot 0", "spot 1"], ["spot 2", "spot 3"])):
        near = of(blobs[0], names, 12)  # the images the task was taught with
        assert few_shot(learner, near).shared == task
    chosen = few_shot(learner, support).shared
    assert chosen == banks(learner).nearest_shared(by_hand(tiny, support, None))


def test_it_predicts_and_counts(learner: Learner, blobs: Data) -> None:
    support, query = of(blobs[0], ["spot 0", "spot 5"], 6), of(blobs[1], ["spot 5", "spot 0"], 5)
    found = few_shot(learner, support)
    predicted = found.predict(query)
    truth = [query.classes[label] for label in query.labels]
    right = sum(one == two for one, two in zip(predicted, truth, strict=True))
    assert found.evaluate(query) == (right, 10)
    assert right >= 8
    assert found.predict([query.load(i) for i in range(10)]) == predicted
    assert torch.equal(few_shot(learner, support).scores(query), found.scores(query))
    assert not torch.equal(few_shot(learner, support, seed=1).scores(query), found.scores(query))


def test_the_learner_is_not_changed_in_any_bit(learner: Learner, blobs: Data, support: Source) -> None:
    def everything() -> dict[str, Tensor]:
        generators = learner.method.generators
        random = {"init": generators.init.get_state(), "sampling": generators.sampling.get_state()}
        grad = {f"{name} needs": torch.tensor(p.requires_grad) for name, p in learner.method.named_parameters()}
        return {**copy.deepcopy(learner.method.state_dict()), **random, **grad, "global": torch.get_rng_state()}

    before, history, classes = everything(), copy.deepcopy(learner.history), learner.classes
    found = few_shot(learner, support)
    found.evaluate(of(blobs[1], ["spot 4", "spot 5"], 5))
    after = everything()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (learner.history, learner.classes) == (history, classes)
    assert all(p.grad is None for p in learner.method.parameters())


def test_what_was_learned_stays_while_the_learner_goes_on(tiny: TimmViT, blobs: Data) -> None:
    learner = make_learner(tiny, blobs, shared="sequential")  # one set, which every task moves
    query = of(blobs[1], ["spot 0", "spot 2"], 5)
    support = of(blobs[0], ["spot 0", "spot 2"], 3)
    found = few_shot(learner, support)
    before = found.scores(query)
    learner.learn(Stream.class_incremental(*blobs, first=2, increment=2, order_seed=None)[2])
    assert torch.equal(found.scores(query), before)
    assert not torch.equal(few_shot(learner, support).scores(query), before)


def test_without_accumulation_the_one_set_serves(tiny: TimmViT, blobs: Data, support: Source) -> None:
    assert few_shot(make_learner(tiny, blobs), support).shared == 0
    assert few_shot(make_learner(tiny, blobs, shared="none"), support).shared is None


def test_a_method_without_shared_parameters(tiny: TimmViT, support: Source) -> None:
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    with pytest.raises(ConfigError, match=r"simple_cil shares no parameters among tasks; these methods do: hide_pet\."):
        few_shot(learner, support)
    with pytest.raises(ConfigError, match="simple_cil shares no parameters"):
        few_shot(learner, support, shared=0)
    assert few_shot(learner, support, shared=None).shared is None


def test_support_sets_and_options_that_do_not_do(learner: Learner, blobs: Data, support: Source) -> None:
    with pytest.raises(StreamError, match="train has one class, 'spot 4', so there is nothing to tell apart"):
        few_shot(learner, of(blobs[0], ["spot 4"], 3))
    with pytest.raises(StreamError, match="train has no images"):
        few_shot(learner, blobs[0].select([]))
    with pytest.raises(ConfigError, match="epochs of at least 1 and a positive rate, not 0 and"):
        few_shot(learner, support, epochs=0)
    with pytest.raises(ConfigError, match="not 50 and nan"):
        few_shot(learner, support, rate=float("nan"))
    with pytest.raises(ConfigError, match="no slot 2; it has slots 0 to 1"):
        few_shot(learner, support, shared=2)
    with pytest.raises(TrainingError, match="head of few shots became infinite"):
        few_shot(learner, support, rate=1e37)
    found = few_shot(learner, support)
    with pytest.raises(StreamError, match="test holds classes that the support set lacked: spot 0"):
        found.evaluate(of(blobs[1], ["spot 0", "spot 4"], 2))
    with pytest.raises(DataError, match="no examples"):
        found.predict([])


# -- episodes ----------------------------------------------------------------------------------------------------------


def pools() -> Data:
    """Classes a to f; f has too few support images, e no query image."""
    x = np.zeros((40, 2, 2), np.uint8)
    names = list("abcdef")
    return (
        ArraySource(x[:27], [*([0, 1, 2, 3, 4] * 5), 5, 5], names, name="support"),
        ArraySource(x[:17], [*([0, 1, 2, 3] * 4), 5], [*names], name="query"),
    )


def rows(source: Source) -> tuple[int, ...]:
    return tuple(cast(Any, source).rows.tolist())


def test_what_an_episode_holds() -> None:
    seen: Counter[str] = Counter()
    for support, query in episodes(*pools(), ways=3, shots=4, queries=2, count=60, seed=1):
        assert len(support.present()) == 3
        assert support.present() == query.present()
        assert sorted(support.counts())[3:] == [4] * 3 and sorted(query.counts())[3:] == [2] * 3
        assert len(set(rows(support))) == 12 and len(set(rows(query))) == 6
        seen.update(support.present())
    assert set(seen) == set("abcd")  # neither e nor f can take part
    assert min(seen.values()) > 30  # 45 expected of each


def test_all_queries_there_are() -> None:
    _, query = next(episodes(*pools(), ways=2, shots=3, queries=100, count=1))
    assert sorted(query.counts()) == [0, 0, 0, 0, 4, 4]


def test_the_seed_decides_the_episodes() -> None:
    def drawn(count: int, seed: int) -> list[tuple[int, ...]]:
        found = episodes(*pools(), ways=2, shots=3, queries=2, count=count, seed=seed)
        return [rows(support) + rows(query) for support, query in found]

    assert drawn(5, 0) == drawn(9, 0)[:5]
    assert len(set(drawn(9, 0))) == 9
    assert not set(drawn(9, 0)) & set(drawn(9, 1))


@pytest.mark.parametrize(
    "wrong", [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"count": 0}, {"seed": -1}], ids=lambda wrong: str(wrong)
)
def test_wrong_sizes(wrong: dict[str, int]) -> None:
    sizes = {"ways": 2, "shots": 1, "queries": 1, "count": 1, "seed": 0} | wrong
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"Episodes need at least 2 ways.*{name}={value}"):
        episodes(*pools(), **sizes)


def test_pools_that_do_not_do() -> None:
    support, query = pools()
    with pytest.raises(StreamError, match="5 ways, but 4 classes have 4 images in support and any in query"):
        episodes(support, query, ways=5, shots=4, queries=1, count=1)
    with pytest.raises(StreamError, match="the same images of support: divide it"):
        episodes(support, support, ways=2, shots=1, queries=1, count=1)


def test_the_interval_holds_the_mean_95_times_of_100() -> None:
    """The released 1.96 s would hold it always."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        mean, half = mean_interval(rng.binomial(25, 0.6, 100) / 25)
        held += abs(mean - 0.6) <= half
    assert 930 <= held <= 970


def test_an_interval_needs_a_spread() -> None:
    values = [0.2, 0.5, 0.9]
    mean, half = mean_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert half == pytest.approx(1.96 * np.std(values, ddof=1) / 3**0.5)
    with pytest.raises(DataError, match="at least two episodes, not 1"):
        mean_interval([0.5])
