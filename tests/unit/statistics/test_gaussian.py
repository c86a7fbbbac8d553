"""Gaussians of classes: moments, edge cases, draws, states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evertune.errors import ConfigError, TrainingError
from evertune.statistics import ClassGaussians
from evertune.statistics.clusters import clusters, moments

MODES = ("centroids", "covariance", "variance", "lowrank")
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(rows: int, width: int = 5, seed: int = 0) -> Tensor:
    """Correlated features around (3, …, 3)."""
    noise = torch.randn(rows, width, dtype=torch.float64, generator=generator(seed))
    mix = torch.randn(width, width, dtype=torch.float64, generator=generator(seed + 1000))
    return (noise @ mix + 3).float()


def fitted(mode: str, features: Tensor, labels: Tensor | None = None, **options: int) -> ClassGaussians:
    statistics = ClassGaussians(mode, **options)
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    statistics.fit(features, labels, 0, generator())
    return statistics


def covariance(statistics: ClassGaussians, entry: int = 0) -> np.ndarray:
    """What the draws of an entry of one Gaussian should have."""
    match statistics.mode:
        case "covariance":
            return statistics.covariances[entry].double().numpy()
        case "variance":
            return np.diag(statistics.diagonals[entry].double().numpy())
        case _:
            factors = statistics.factors[entry].double().numpy()
            return factors @ factors.T + np.diag(statistics.diagonals[entry].double().numpy())


# -- moments -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 100))
def test_one_gaussian_has_the_moments_of_numpy(rows: int, width: int, seed: int) -> None:
    x = draw(rows, width, seed)
    wanted = np.atleast_2d(np.cov(x.double().numpy(), rowvar=False)) + 1e-4 * np.eye(width)
    close = {"rtol": 1e-5, "atol": 1e-6 * np.abs(wanted).max()}
    for mode in ("covariance", "variance", "lowrank"):
        statistics = fitted(mode, x, rank=2)
        np.testing.assert_allclose(statistics.means[0], x.double().mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.diag(covariance(statistics)), np.diag(wanted), **close)
        if mode == "covariance":
            got = covariance(statistics)
            np.testing.assert_allclose(got, wanted, **close)
            np.testing.assert_allclose(got, got.T, **close)


def test_the_smallest_eigenvalue_is_what_is_added() -> None:
    statistics = ClassGaussians("covariance").double()
    statistics.fit(draw(6, 20), torch.zeros(6, dtype=torch.long), 0, generator())
    smallest = np.linalg.eigvalsh(statistics.covariances[0].numpy())
    np.testing.assert_allclose(smallest[:15], 1e-4, rtol=1e-6)  # 6 samples span 5 directions
    assert smallest[15] > 1e-3


def test_low_rank_keeps_the_leading_directions() -> None:
    x = draw(200, 12)
    full = np.cov(x.double().numpy(), rowvar=False)
    values, vectors = np.linalg.eigh(full)
    factors = fitted("lowrank", x, rank=3).factors[0].double().numpy()
    best = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    np.testing.assert_allclose(factors @ factors.T, best, atol=1e-5 * values[-1])


def test_low_rank_holds_a_wide_space_and_a_small_class() -> None:
    """More columns than dimensions, or than a few samples have directions: all of the covariance, and 1e-4."""
    for x in (draw(30, 4), draw(4, 20)):
        statistics = fitted("lowrank", x, rank=10)
        wanted = np.cov(x.double().numpy(), rowvar=False) + 1e-4 * np.eye(x.shape[1])
        assert statistics.factors.shape == (1, x.shape[1], min(10, x.shape[1]))
        np.testing.assert_allclose(covariance(statistics), wanted, atol=1e-5 * np.abs(wanted).max())
        np.testing.assert_allclose(statistics.diagonals, 1e-4, atol=1e-5 * np.abs(wanted).max())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 100))
def test_clusters_hold_every_sample_once(labels: list[int], k: int, seed: int) -> None:
    y = torch.tensor(labels)
    x = draw(len(y), 3, seed)
    statistics = fitted("centroids", x, y, centroids=k)
    for entry, c in enumerate(statistics.entry_class.tolist()):
        own = statistics.owner == entry
        sizes, means = statistics.counts[own], statistics.means[own].double()
        assert int(sizes.sum()) == labels.count(c)
        assert len(sizes) == min(k, labels.count(c))
        weighted = (sizes[:, None] * means).sum(0) / sizes.sum()
        torch.testing.assert_close(weighted, x[y == c].double().mean(0), rtol=1e-5, atol=1e-5)


def test_cluster_moments_are_population_moments() -> None:
    x, assignment = draw(30).double(), torch.arange(30) % 4 * 2  # numbers need not be consecutive
    means, variances, sizes = moments(x, assignment)
    assert sizes.tolist() == [8, 8, 7, 7]
    for i, cluster in enumerate((0, 2, 4, 6)):
        rows = x[assignment == cluster].numpy()
        np.testing.assert_allclose(means[i], rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(variances[i], rows.var(0), rtol=1e-12)


def test_separate_blobs_are_found() -> None:
    blobs = torch.arange(40) % 4
    centres = 20 * torch.eye(4, dtype=torch.float64)
    x = centres[blobs] + torch.randn(40, 4, dtype=torch.float64, generator=generator())
    found = clusters(x, 4, generator())
    pairs = {(int(a), int(b)) for a, b in zip(blobs, found, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 4


def test_entries_are_per_class_and_task_in_order() -> None:
    statistics = ClassGaussians("centroids", centroids=2)
    statistics.fit(draw(12), torch.tensor([7, 3] * 6), 0, generator())
    statistics.fit(draw(9, seed=1), torch.tensor([3, 9, 5] * 3), 4, generator())
    assert statistics.entries == 5
    assert statistics.entry_class.tolist() == [3, 7, 3, 5, 9]
    assert statistics.entry_task.tolist() == [0, 0, 4, 4, 4]
    assert statistics.owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    entry = torch.tensor([4, 0, 2])
    assert statistics.entry_class[entry].tolist() == [9, 3, 3]
    assert statistics.entry_task[entry].tolist() == [4, 0, 4]
    assert statistics.centres.shape == (10, 5)


@EVERY_MODE
def test_what_was_kept_stays_bit_for_bit(mode: str) -> None:
    statistics = fitted(mode, draw(20), torch.arange(20) % 2)
    before = {name: buffer.clone() for name, buffer in statistics.state_dict().items()}
    statistics.fit(draw(20, seed=1), torch.full((20,), 5), 1, generator())
    for name, buffer in statistics.state_dict().items():
        assert torch.equal(buffer[: len(before[name])], before[name])
        assert len(buffer) > len(before[name])


@EVERY_MODE
def test_no_class_is_no_entry(mode: str) -> None:
    statistics = ClassGaussians(mode)
    statistics.fit(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 0, generator())
    assert statistics.entries == 0
    assert statistics.nbytes == statistics.nbytes_per_class == 0


# -- small and degenerate classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7], ids=["one sample", "identical samples"])
@EVERY_MODE
def test_a_class_without_spread_is_drawn_around_its_sample(mode: str, rows: int) -> None:
    sample = draw(1).double().repeat(rows, 1) / 3  # the sum of seven thirds is rounded, and not to nothing
    statistics = fitted(mode, sample)
    assert torch.equal(statistics.means, sample[:1].float())
    assert rows == 1 or (sample - sample.mean(0)).any()
    assert statistics.counts.tolist() == [rows]
    assert statistics.live.tolist() == [True]
    if mode == "centroids":
        assert not statistics.variances.any()
    else:
        np.testing.assert_allclose(covariance(statistics), 1e-4 * np.eye(5), rtol=1e-6)
    x, _ = statistics.sample(4000, generator())
    np.testing.assert_allclose((x - sample[0]).std(0), 1e-2, rtol=0.05)


def test_fewer_samples_than_centroids_are_a_cluster_each() -> None:
    x = draw(4)
    statistics = fitted("centroids", x, centroids=10)
    assert sorted(statistics.means.tolist()) == sorted(x.tolist())
    assert statistics.live.all()  # none has a variance, so all are drawn from
    assert set(statistics.sample(100, generator())[1].tolist()) == {0}


def test_copies_of_few_samples_are_a_cluster_each() -> None:
    """k-means for more clusters than distinct rows would invent empty ones."""
    x = draw(3).repeat_interleave(torch.tensor([5, 2, 8]), dim=0)
    statistics = fitted("centroids", x, centroids=4)
    assert sorted(statistics.counts.tolist()) == [2, 5, 8]
    assert not statistics.variances.any()


def test_a_lone_outlier_is_a_centre_but_not_drawn_from() -> None:
    x = torch.cat([draw(30), torch.full((1, 5), 1e4)])
    statistics = fitted("centroids", x, centroids=3)
    outlier = int(statistics.means.sum(1).argmax())
    assert statistics.live.tolist() == [i != outlier for i in range(3)]
    assert statistics.centres[outlier].tolist() == [1e4] * 5
    drawn, _ = statistics.sample(500, generator())
    assert drawn.max() < 100


@EVERY_MODE
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_their_class(mode: str, value: float) -> None:
    statistics = fitted(mode, draw(10), torch.arange(10) % 2)
    before = statistics.state_dict()
    bad = draw(10, seed=1)
    bad[4, 2] = value
    with pytest.raises(TrainingError, match="features of class 14 hold NaN or infinity"):
        statistics.fit(bad, 10 + torch.arange(10), 1, generator())
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics.state_dict().items())


# -- draws -------------------------------------------------------------------------------------------------------------


@EVERY_MODE
def test_draws_have_the_moments_of_their_entry(mode: str) -> None:
    """1e5 draws of each: 9 of 10 means and covariances within 3 standard errors, and none of the 60 far beyond."""
    labels = torch.arange(60) % 2
    statistics = fitted(mode, draw(60) + 4 * labels[:, None], labels, centroids=3, rank=2)
    x, entry = statistics.sample(200_000, generator())
    assert x.dtype == torch.float32
    for e in range(2):
        drawn = x[entry == e].double().numpy()
        n = len(drawn)
        if mode == "centroids":
            own = (statistics.owner == e) & statistics.live
            means, variances = (b[own].double().numpy() for b in (statistics.means, statistics.variances))
            mean = means.mean(0)
            wanted = np.diag(variances.mean(0) + 1e-4) + np.cov(means, rowvar=False, bias=True)
        else:
            mean, wanted = statistics.means[e].double().numpy(), covariance(statistics, e)
        away = drawn - mean
        for value, error in (
            (away.mean(0), np.sqrt(np.diag(wanted) / n)),
            (away.T @ away / n - wanted, (away[:, :, None] * away[:, None]).std(0) / np.sqrt(n)),
        ):
            standard = np.abs(value) / error
            assert standard.max() < 4.5
            assert (standard < 3).mean() > 0.9
            assert np.sqrt((standard**2).mean()) > 0.3  # the errors are real ones


@EVERY_MODE
def test_draws_of_an_entry_do_not_take_after_another(mode: str) -> None:
    """Unequal groups are filled up and taken apart again: nothing may slip between entries."""
    labels = torch.cat([torch.full((10,), c) for c in range(4)])
    x = draw(40) * 0.01 + 100 * labels[:, None]
    drawn, entry = fitted(mode, x, labels, centroids=2).sample(999, generator())
    assert torch.equal((drawn.mean(1) / 100).round().long(), entry)
    assert len(drawn) == 999


def test_classes_count_by_their_live_clusters() -> None:
    x = torch.cat([draw(60), 50 + draw(3)])
    labels = torch.cat([torch.zeros(60), torch.ones(3)]).long()
    statistics = fitted("centroids", torch.cat([x, x[:1]]), torch.cat([labels, torch.tensor([2])]), centroids=8)
    live = torch.bincount(statistics.owner[statistics.live], minlength=3).double()
    assert live[2] == 1
    n = 50_000
    share = torch.bincount(statistics.sample(n, generator())[1], minlength=3) / n
    wanted = live / live.sum()
    assert ((share - wanted).abs() < 3 * (wanted * (1 - wanted) / n).sqrt()).all()


@EVERY_MODE
def test_draws_follow_the_generator_alone(mode: str) -> None:
    statistics = fitted(mode, draw(40), torch.arange(40) % 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (statistics.sample(50, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)
    again = fitted(mode, draw(40), torch.arange(40) % 4)
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), statistics.buffers(), strict=True))


def test_there_is_nothing_to_draw_from_before_the_first_class() -> None:
    with pytest.raises(TrainingError, match="no class statistics"):
        ClassGaussians().sample(3, generator())


# -- covariances that rounding broke -----------------------------------------------------------------------------------


def test_large_variances_that_float32_makes_indefinite_are_drawn_from() -> None:
    x = 1e4 * draw(12, 40)
    statistics = fitted("covariance", x)
    stored = statistics.covariances.clone()
    assert np.linalg.eigvalsh(stored[0].double().numpy())[0] < 0
    drawn, _ = statistics.sample(20_000, generator())
    deviation = drawn.double().std(0) / x.double().std(0)
    assert ((deviation - 1).abs() < 0.03).all()
    assert torch.equal(statistics.covariances, stored)
    wide = ClassGaussians("covariance").double()
    wide.load_state_dict(statistics.state_dict())
    wide.sample(10, generator())
    assert torch.equal(wide.covariances, stored.double())


@pytest.mark.parametrize("damage", [-5.0, float("nan")])
def test_a_covariance_that_is_none_names_its_class(damage: float) -> None:
    statistics = fitted("covariance", draw(40), 30 + torch.arange(40) % 2)
    statistics.covariances[1, 2, 2] = damage
    with pytest.raises(TrainingError, match="covariance kept of class 31 is not positive definite"):
        statistics.sample(10, generator())


def test_each_covariance_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    factored: list[int] = []
    root = ClassGaussians._root
    monkeypatch.setattr(ClassGaussians, "_root", lambda self, e: (factored.append(e), root(self, e))[1])
    statistics = fitted("covariance", draw(40), torch.arange(40) % 2)
    for _ in range(3):
        statistics.sample(10, generator())
    assert factored == [0, 1]
    statistics.fit(draw(9), torch.full((9,), 5), 1, generator())
    statistics.sample(10, generator())
    statistics.sample(10, generator())
    assert factored == [0, 1, 2]


# -- state -------------------------------------------------------------------------------------------------------------


@EVERY_MODE
def test_a_state_loads_into_a_fresh_object_and_draws_the_same(mode: str) -> None:
    statistics = fitted(mode, draw(40), torch.arange(40) % 4)
    statistics.sample(5, generator())
    fresh = ClassGaussians(mode)
    fresh.load_state_dict(statistics.state_dict())
    for one, other in zip(statistics.sample(50, generator(9)), fresh.sample(50, generator(9)), strict=True):
        assert torch.equal(one, other)
    fresh.fit(draw(10), torch.full((10,), 8), 1, generator())
    assert fresh.entries == 5


def test_another_state_brings_other_factors() -> None:
    statistics = fitted("covariance", draw(40))
    statistics.sample(5, generator())
    other = fitted("covariance", 100 * draw(40, seed=5))
    statistics.load_state_dict(other.state_dict())
    assert torch.equal(statistics.sample(50, generator())[0], other.sample(50, generator())[0])


@pytest.mark.parametrize(("mode", "stored"), list(itertools.permutations(MODES, 2)))
def test_a_state_of_another_mode_is_refused(mode: str, stored: str) -> None:
    outer = nn.ModuleDict({"instructed": ClassGaussians(mode)})
    state = nn.ModuleDict({"instructed": fitted(stored, draw(20))}).state_dict()
    with pytest.raises(ConfigError, match=f"of mode '{stored}', these of mode '{mode}'.*load with the mode '{stored}'"):
        outer.load_state_dict(state)


def test_a_state_that_lacks_its_spread_is_refused() -> None:
    state = fitted("covariance", draw(20)).state_dict()
    del state["covariances"]
    with pytest.raises(RuntimeError, match="covariances"):
        ClassGaussians("covariance").load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "covariances"}, r"No statistics mode is called 'covariances'\. Did you mean 'covariance'\?"),
        ({"centroids": 0}, "centroids=0"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassGaussians(**options)


@pytest.mark.parametrize(
    ("mode", "floats"),
    [
        ("covariance", 64 + 64 * 64),
        ("variance", 2 * 64),
        ("centroids", 10 * 2 * 64),
        ("lowrank", (7 + 2) * 64),
    ],
)
def test_bytes_are_those_of_the_numbers_kept(mode: str, floats: int) -> None:
    statistics = fitted(mode, draw(200, 64), torch.arange(200) % 2, rank=7)
    assert statistics.nbytes == sum(b.numel() * b.element_size() for b in statistics.state_dict().values())
    bookkeeping = statistics.nbytes_per_class - 4 * floats
    assert 0 < bookkeeping <= 17 * 10 + 16  # size, owner and liveness of a component; class and task of an entry
    statistics.fit(draw(100, 64), torch.zeros(100, dtype=torch.long), 1, generator())  # another domain of class 0
    assert statistics.nbytes_per_class == pytest.approx(1.5 * (4 * floats + bookkeeping))


def test_kmeans_is_seeded_by_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.cluster

    seeds: list[tuple[int, int, int]] = []
    original = sklearn.cluster.KMeans

    def spy(k: int, *, n_init: int, random_state: int) -> sklearn.cluster.KMeans:
        seeds.append((k, n_init, random_state))
        return original(k, n_init=n_init, random_state=random_state)

    monkeypatch.setattr(sklearn.cluster, "KMeans", spy)
    own = generator()
    for _ in range(2):
        clusters(draw(20).double(), 3, own)
    clusters(draw(20).double(), 3, generator())
    assert [seed[:2] for seed in seeds] == [(3, 10)] * 3
    assert seeds[0] == seeds[2] != seeds[1]


def test_equally_many_draws_in_random_order() -> None:
    statistics = fitted("variance", draw(12, 3), torch.arange(12) % 4)
    entries = statistics.sample(402, generator(), equally=True)[1]
    assert entries.bincount().tolist() == [101, 101, 100, 100]
    assert not entries.equal(torch.arange(402) % 4)
    again, other = (statistics.sample(402, generator(seed), equally=True)[1] for seed in (0, 1))
    assert again.equal(entries) and not other.equal(entries)


def test_the_last_task_of_a_class_that_comes_again() -> None:
    statistics = fitted("variance", draw(12, 3), torch.arange(12) % 3)
    statistics.fit(draw(8, 3), torch.tensor([1, 3] * 4), 1, generator())
    assert statistics.last_task.tolist() == [0, 1, 0, 1]
