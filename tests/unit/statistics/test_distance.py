"""How far a task is from those before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.errors import ConfigError, TrainingError
from evertune.statistics import TaskCentroids


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def domain(axis: int, seed: int = 0, rows: int = 80, width: int = 6) -> Tensor:
    """Features near one axis, of lengths between 10 and 30."""
    noise = torch.randn(rows, width, generator=generator(seed))
    length = 10 + 20 * torch.rand(rows, 1, generator=generator(seed + 1))
    return length * torch.eye(width)[axis] + noise


def sequence(axes: list[int], threshold: float = 1.0, **options: float) -> tuple[TaskCentroids, list[int]]:
    """The centroids after tasks along ``axes``, and the domain each was given."""
    seen = TaskCentroids(4, **options)  # type: ignore[arg-type]
    given = []
    for seed, axis in enumerate(axes):
        features = domain(axis, seed)
        given.append(seen.assign(seen.nearest(features), threshold))
        seen.add(features, given[-1], generator())
    return seen, given


def test_distances_are_those_between_directions() -> None:
    seen, _ = sequence([0, 1, 0])
    x = domain(2, 9, rows=7)
    match = seen.nearest(x)
    assert match is not None
    unit, own = (v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1)[:, None] for v in (x, seen.centroids))
    wanted = np.empty((7, 3))
    for n in range(7):
        for task in range(3):
            wanted[n, task] = min(np.linalg.norm(unit[n] - q) for q in own[seen.owner.numpy() == task])
    np.testing.assert_allclose(match.distances, wanted, atol=1e-7)
    assert match.task == np.bincount(wanted.argmin(1), minlength=3).argmax()
    assert match.distance == pytest.approx(np.sort(wanted[:, match.task])[4], abs=1e-7)


def test_a_known_distribution_is_reused_and_a_far_one_opens() -> None:
    seen, given = sequence([0, 0, 1, 0, 2, 1])
    assert given == [0, 0, 1, 0, 2, 1]
    assert seen.domain.tolist() == given
    assert seen.tasks == 6
    assert seen.domains == 3


def test_extreme_thresholds_always_or_never_expand() -> None:
    assert sequence([0, 0, 1, 0], threshold=0.0)[1] == [0, 1, 2, 3]
    assert sequence([0, 1, 2, 3], threshold=2.0)[1] == [0, 0, 0, 0]


def test_opposite_directions_are_within_two() -> None:
    seen = TaskCentroids(1)
    q = torch.randn(1, 300, generator=generator())
    seen.add(q, 0, generator())
    match = seen.nearest(-3 * q.repeat(20, 1))
    assert match is not None
    assert match.distance == pytest.approx(2)
    assert seen.assign(match, 2.0) == 0


def test_a_sample_on_a_centroid_is_at_no_distance() -> None:
    """Products of float32 would lose half the digits here."""
    x = torch.randn(40, 300, generator=generator())
    seen = TaskCentroids(40)
    seen.add(x, 0, generator())
    match = seen.nearest(3 * x)
    assert match is not None and match.distances.max() < 1e-6


def test_a_task_is_matched_with_most_of_its_samples() -> None:
    seen, _ = sequence([0, 1])
    mixed = torch.cat([domain(1, 5, rows=30), domain(0, 6, rows=20)])
    match = seen.nearest(mixed)
    assert match is not None and (match.task, match.domain) == (1, 1)


def test_the_earlier_of_equal_tasks_counts() -> None:
    seen = TaskCentroids(4)
    for given in (5, 7):
        seen.add(domain(0), given, generator())
    match = seen.nearest(domain(0, 3))
    assert match is not None and (match.task, match.domain) == (0, 5)


@pytest.mark.parametrize("order", [1, 5, 30])
def test_the_order_statistic(order: int) -> None:
    seen = sequence([0], order=order)[0]
    match = seen.nearest(domain(1, 4, rows=30))
    assert match is not None
    assert match.distance == pytest.approx(float(np.sort(match.distances[:, 0])[order - 1]))


def test_fewer_samples_than_the_order_give_the_largest() -> None:
    seen = sequence([0], order=5)[0]
    match = seen.nearest(domain(1, 4, rows=3))
    assert match is not None
    assert match.distance == pytest.approx(float(match.distances.max()))


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 1.0])
def test_a_quantile_takes_its_place(quantile: float) -> None:
    seen = sequence([0], quantile=quantile)[0]
    match = seen.nearest(domain(1, 4, rows=30))
    assert match is not None
    assert match.distance == pytest.approx(float(np.quantile(match.distances[:, 0], quantile)))


def test_five_near_samples_fool_the_order_statistic_but_not_the_median() -> None:
    mostly_far = torch.cat([domain(1, 4, rows=95), domain(0, 5, rows=5)])
    for options, wanted in (({}, 0), ({"quantile": 0.5}, 1)):
        seen, _ = sequence([0], **options)  # type: ignore[arg-type]
        assert seen.assign(seen.nearest(mostly_far), 1.0) == wanted


def test_fewer_samples_than_centroids_are_centroids_themselves() -> None:
    seen = TaskCentroids(10)
    x = domain(0, rows=3)
    seen.add(torch.cat([x, x]), 0, generator())
    assert sorted(seen.centroids.tolist()) == sorted(x.tolist())
    match = seen.nearest(x)
    assert match is not None and match.distance == pytest.approx(0, abs=1e-6)


def test_the_first_task_has_no_match_and_opens_domain_0() -> None:
    seen = TaskCentroids()
    assert seen.nearest(domain(0)) is None
    assert seen.domains == seen.tasks == seen.assign(None, 1.0) == 0


def test_many_samples_are_matched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = sequence([0, 1])
    whole = seen.nearest(domain(1, 7))
    monkeypatch.setattr("evertune.statistics.distance.CHUNK", 11)
    parts = seen.nearest(domain(1, 7))
    assert whole is not None and parts is not None
    torch.testing.assert_close(whole.distances, parts.distances)


def test_a_state_loads_into_a_fresh_object() -> None:
    seen, _ = sequence([0, 1, 0])
    fresh = TaskCentroids(4)
    fresh.load_state_dict(seen.state_dict())
    one, other = (s.nearest(domain(1, 7)) for s in (seen, fresh))
    assert one is not None and other is not None
    assert one.distance == other.distance
    assert fresh.domains == 2


def test_features_that_are_none_are_refused() -> None:
    seen, _ = sequence([0])
    bad = domain(0)
    bad[3, 1] = torch.nan
    for features, message in ((bad, "of its 80 rows 1 hold NaN"), (bad[:0], "of its 0 rows")):
        with pytest.raises(TrainingError, match=message):
            seen.nearest(features)
        with pytest.raises(TrainingError, match=message):
            seen.add(features, 0, generator())
    assert seen.tasks == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k=0"), ({"order": 0}, "order=0"), ({"quantile": 1.5}, r"quantile=1\.5 must lie between 0 and 1")],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskCentroids(**options)
