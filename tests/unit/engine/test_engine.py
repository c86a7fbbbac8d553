"""The engine runs phases: schedules, optimisers, seeds, finite losses, the cache."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune import Learner, Stream, run
from evertune.backbones import TimmViT
from evertune.engine import Engine, Runtime, Seeds, descent
from evertune.engine.cache import FeatureCache
from evertune.engine.optimizer import make_optimizer
from evertune.errors import ConfigError, TrainingError
from evertune.methods import Batch, Generators, Method, Optimise, Recipe, TaskInfo
from evertune.methods.config import Config
from evertune.streams import ArraySource, TestView, TrainView
from evertune.tuning import Tuning, make_tuning

Data = tuple[ArraySource, ArraySource]
FAST: dict[str, Any] = {"epochs": 1, "features": 64, "progress": False}


@pytest.mark.parametrize("horizon", [None, 20])
def test_cosine_schedule_is_torchs(horizon: int | None) -> None:
    recipe = Recipe(epochs=15, batch_size=4, rate=0.01, horizon=horizon)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon or 15)
    for epoch in range(15):
        assert math.isclose(recipe.rate_at(epoch), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        reference.step()


def test_the_released_schedule_ends_at_a_fifth() -> None:
    """15 epochs under T_max = 20: the last epoch's rate is 0.00206 (spec §6.3)."""
    assert Recipe(epochs=15, batch_size=4, rate=0.01, horizon=20).rate_at(14) == pytest.approx(0.00206, abs=5e-6)


def test_decay_of_matrices_only() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    recipe = Recipe(epochs=1, batch_size=1, rate=1.0, momentum=0.0, weight_decay=0.1, decay="matrices")
    optimizer = make_optimizer([matrix, vector], recipe)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.9)) and torch.equal(vector, torch.ones(2))
    with pytest.raises(ConfigError, match="sgd"):
        make_optimizer([matrix], Recipe(epochs=1, batch_size=1, rate=1.0, optimizer="lion"))


def test_unknown_precision_and_device() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        Runtime("cpu", "bf61")
    with pytest.raises(ConfigError, match="cannot be used here"):
        Runtime("nonsense")


def test_bf16_learns_nearly_the_same(tiny: TimmViT, blobs: Data) -> None:
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    scores = []
    for precision in ("fp32", "bf16"):
        learner = Learner("ranpac", tiny, precision=precision, strength=10.0, **FAST)
        for task in stream:
            learner.learn(task)
        scores.append(learner.scores(blobs[1]))
    assert scores[0].shape == (30, 6) and scores[1].dtype == torch.float32
    assert (scores[0] - scores[1]).abs().max() < 0.15
    assert not torch.equal(scores[0], scores[1])


def test_a_diverging_loss_stops_with_the_place(tiny: TimmViT, blobs: Data) -> None:
    learner = Learner("ranpac", tiny, preset="paper", rate=1e30, epochs=3, features=16, progress=False)
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    with pytest.raises(TrainingError, match=r"'first session', epoch \d.*rate="):
        learner.learn(stream[0])
    assert learner.classes == () and learner.history == []


def test_seeds_are_separate(tiny: TimmViT, blobs: Data) -> None:
    def learned(**seeds: int) -> Learner:
        learner = Learner("ranpac", tiny, preset="paper", seeds=Seeds(**seeds), **FAST)
        learner.learn(Stream.class_incremental(*blobs, first=3, increment=3)[0])
        return learner

    base, again = learned(), learned()
    for a, b in zip(base.method.state_dict().values(), again.method.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other_init, other_views = learned(init=1), learned(augmentation=1)
    assert not torch.equal(base.method.R, other_init.method.R)
    assert torch.equal(base.method.R, other_views.method.R)
    key = "tuning.blocks.0.a.q" if "tuning.blocks.0.a.q" in base.method.state_dict() else "tuning.blocks.0.up_weight"
    assert not torch.equal(base.method.state_dict()[key], other_views.method.state_dict()[key])


def test_learning_leaves_the_global_random_state_alone(tiny: TimmViT, blobs: Data) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    learner = Learner("safe", tiny, preset="paper", **FAST)
    learner.learn(Stream.class_incremental(*blobs, first=3, increment=3)[0])
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


def test_evaluation_passes_each_image_once_through_a_frozen_branch(
    tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner("simple_cil", tiny, progress=False)
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    learner.learn(stream[0])
    calls = []
    read = tiny.read
    monkeypatch.setattr(tiny, "read", lambda *a: calls.append(1) or read(*a))
    first = learner.engine.scores(learner.method, stream[0].test, remember=True)["prototypes"]
    assert len(calls) == 1
    learner.learn(stream[1])
    calls.clear()
    again = learner.engine.scores(learner.method, stream[0].test, remember=True)["prototypes"]
    assert calls == []
    torch.testing.assert_close(first, again[:, :3], atol=1e-6, rtol=0)


def test_the_cache_keeps_to_its_limit() -> None:
    cache = FeatureCache(limit=100)
    view = cache.view("data", torch.arange(2), 2)
    view.put("branch", torch.zeros(2, 10), torch.arange(2))
    view.put("large", torch.zeros(2, 100), torch.arange(2))
    assert cache.holds("branch", "data") and not cache.holds("large", "data") and cache.bytes == 80
    assert view.get("large") is None


def test_the_cache_knows_which_rows_it_holds() -> None:
    cache = FeatureCache()
    first, second = cache.view("data", torch.arange(2), 5), cache.view("data", torch.arange(2, 5), 5)
    second.put("branch", torch.ones(2, 10), torch.tensor([0, 2]))
    assert not cache.holds("branch", "data") and first.get("branch") is None
    features, known = second.get("branch") or pytest.fail("nothing is known")
    assert known.tolist() == [True, False, True] and torch.equal(features[known], torch.ones(2, 10))
    second.put("branch", torch.ones(1, 10), torch.tensor([1]))
    first.put("branch", torch.ones(2, 10), torch.arange(2))
    assert cache.holds("branch", "data") and cache.bytes == 5 * 40


def test_views_must_fit_the_backbone(tiny: TimmViT) -> None:
    with pytest.raises(ConfigError, match="64 px"):
        Learner("simple_cil", tiny, test_view=TestView(64))


def test_phase_reports(tiny: TimmViT, blobs: Data) -> None:
    engine = Engine(
        tiny, Runtime("cpu"), train_view=TrainView(32), test_view=TestView(32), seeds=Seeds(), progress=False
    )
    assert engine.features(blobs[1]).shape == (30, 48)
    learner = Learner("safe", tiny, preset="paper", follow_epochs=1, **FAST)
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    kinds = [[(r.kind, r.name) for r in learner.learn(task)] for task in stream]
    assert ("optimise", "slow learner") in kinds[0] and ("optimise", "fast learner") in kinds[1]
    losses = next(r for r in learner.learn(_domain(blobs[0])) if r.kind == "optimise").losses
    assert set(losses) == {"classification", "alignment", "slow to fast", "fast to slow"}


def _domain(source: ArraySource) -> Any:
    from evertune import Task

    return Task(2, "again", source, kind="domain")


def test_only_evaluation_is_remembered(tiny: TimmViT, blobs: Data) -> None:
    learner = Learner("simple_cil", tiny, progress=False)
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    result = run(stream, learner)
    held = {data for _, data in learner.engine.cache._stored}
    assert result.references and held == {task.test.digest for task in stream}
    learner.predict(blobs[1].x)
    assert {data for _, data in learner.engine.cache._stored} == held


def test_training_leaves_no_gradients(tiny: TimmViT, blobs: Data) -> None:
    learner = Learner("safe", tiny, preset="paper", **FAST)
    learner.learn(Stream.class_incremental(*blobs, first=3, increment=3)[0])
    assert all(p.grad is None for p in learner.method.parameters())


def test_seeds_and_devices_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="augmentation=-1"):
        Seeds(augmentation=-1)
    with pytest.raises(ConfigError, match="float64"):
        Runtime("meta")


# -- views shown in turn -----------------------------------------------------------------------------------------------

EPOCHS, ROWS = 3, 10


class Watcher(Method):
    """One frozen tuning, one that learns, and the plain model; notes which images it is shown."""

    name = "watcher"

    def __init__(self, backbone: TimmViT, views: int | None) -> None:
        super().__init__(Config(), backbone.shape, backbone.shape.width, Generators())
        options = {"bottleneck": 4, "dropout": 0.0}
        self.still, self.learning = (
            make_tuning("adapter", backbone.shape, self.generators.init, blocks="all", **options) for _ in range(2)
        )
        with torch.no_grad():  # as if it had learned before
            for p in self.still.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=self.generators.init))
        self.still.freeze()
        self.views = views
        self.shown: list[tuple[Tensor, Tensor]] = []

    def phases(self, task: TaskInfo) -> Sequence[Optimise]:
        recipe = Recipe(epochs=EPOCHS, batch_size=4, rate=0.1, views=self.views)
        return [Optimise("watch", self.loss, self.learning.parameters, recipe)]

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        self.shown.append((batch.rows, batch.passes.inputs))
        features = batch.passes(self.learning)
        return {"distance": (features - batch.passes(self.still) - batch.passes()).square().mean()}

    def epoch(self, number: int) -> tuple[list[int], dict[int, Tensor]]:
        """The order of an epoch, and its images by row."""
        steps = len(self.shown) // EPOCHS
        own = self.shown[number * steps : (number + 1) * steps]
        order = torch.cat([rows for rows, _ in own]).tolist()
        return order, dict(zip(order, torch.cat([images for _, images in own]), strict=True))

    def scores(self, passes: Any) -> dict[str, Tensor]:
        return {"distance": passes(self.learning)}

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None, self.still, self.learning)


def watched(backbone: TimmViT, blobs: Data, views: int | None) -> tuple[Watcher, Engine]:
    """Ten images learned from in three epochs of three batches."""
    views_of = {"train_view": TrainView(32), "test_view": TestView(32)}
    engine = Engine(backbone, Runtime("cpu"), seeds=Seeds(), progress=False, **views_of)  # type: ignore[arg-type]
    method = Watcher(backbone, views)
    source = blobs[0].select(np.arange(0, 70, 7))
    list(engine.learn(method, TaskInfo(0, tuple(range(6)), tuple(range(6)), 0, ROWS), source, np.arange(6)))
    return method, engine


def test_views_are_shown_in_turn_each_time_in_another_order(tiny: TimmViT, blobs: Data) -> None:
    method, _ = watched(tiny, blobs, views=2)
    (first, shown), (_, between), (third, again) = (method.epoch(number) for number in range(EPOCHS))
    assert first != third and sorted(first) == sorted(third) == list(range(ROWS))
    assert all(torch.equal(shown[row], again[row]) for row in range(ROWS))
    assert not any(torch.equal(shown[row], between[row]) for row in range(ROWS))
    free, _ = watched(tiny, blobs, views=None)
    assert not any(torch.equal(free.epoch(0)[1][row], free.epoch(2)[1][row]) for row in range(ROWS))


@pytest.mark.parametrize(("views", "frozen"), [(None, EPOCHS), (1, 1), (2, 2), (5, EPOCHS)])
def test_frozen_branches_pass_each_view_once_and_trained_ones_every_time(
    tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch, views: int | None, frozen: int
) -> None:
    passed: list[tuple[Tuning | None, int]] = []
    read = tiny.read

    def counted(tokens: Tensor, tuning: Tuning | None, mask: Tensor | None = None) -> Tensor:
        passed.append((tuning, len(tokens)))
        return read(tokens, tuning, mask)

    monkeypatch.setattr(tiny, "read", counted)
    method, _ = watched(tiny, blobs, views)
    images = {branch: sum(size for tuning, size in passed if tuning is branch) for branch in method.branches}
    assert images == {None: frozen * ROWS, method.still: frozen * ROWS, method.learning: EPOCHS * ROWS}


def test_a_bank_of_views_changes_no_result_and_does_not_outlive_its_phase(
    tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    banks: list[weakref.ref[FeatureCache]] = []
    most = []

    class Noted(FeatureCache):
        def view(self, data: str, rows: Tensor, size: int) -> Any:
            most.append(self.bytes)
            return super().view(data, rows, size)

    def noted(limit: int) -> FeatureCache:
        bank = Noted(limit)
        banks.append(weakref.ref(bank))
        return bank

    learned = []
    for limit in (1 << 30, 0, 900):  # everything, nothing, and too little for a whole batch beside another
        monkeypatch.setattr(descent, "FeatureCache", lambda limit=limit: noted(limit))
        most.clear()
        method, engine = watched(tiny, blobs, views=2)
        assert max(most) == {1 << 30: 2 * 2 * ROWS * 48 * 4, 0: 0, 900: 768}[limit]
        assert engine.cache.bytes == 0
        learned.append(torch.cat([p.detach().flatten() for p in method.learning.parameters()]))
    gc.collect()
    assert [bank() for bank in banks] == [None] * 3
    untrained = torch.cat([p.detach().flatten() for p in Watcher(tiny, 2).learning.parameters()])
    assert (learned[0] - untrained).abs().max() > 1e-3
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=0, atol=1e-6)


def test_ntk_cl_learns_the_same_with_its_bank(tiny: TimmViT, blobs: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream.class_incremental(*blobs, first=3, increment=3)
    scores = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(descent, "FeatureCache", lambda limit=limit: FeatureCache(limit))
        learner = Learner("ntk_cl", tiny, epochs=3, views=2, device="cpu", progress=False)
        for task in stream:
            learner.learn(task)
        scores.append(learner.scores(blobs[1]))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)
