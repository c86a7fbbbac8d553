"""HiDe-PET's contrastive term, statistics, alignment, expansion and metrics against the published modules' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.evaluation import AccuracyMatrix
from evertune.evaluation.metrics import accuracy_curve, average_accuracy, backward_transfer, final_accuracy, forgetting
from evertune.heads import LinearHead, align
from evertune.heads.align import cosine_rate
from evertune.methods.losses import centre_constants, contrastive
from evertune.statistics import ClassGaussians, TaskCentroids
from evertune.statistics.clusters import clusters, moments

pytestmark = pytest.mark.golden

Arrays = Mapping[str, np.ndarray]
CLASSES = pytest.mark.parametrize("c", [0, 1])


@pytest.fixture(scope="module")
def read(shared: Path) -> Callable[[str], Arrays]:
    return lambda name: dict(np.load(shared / f"golden/{name}.npz", allow_pickle=False))


def as_tensor(array: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(array).to(dtype)


# -- contrastive regulariser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["no_bank", "single_mean_bank", "multi_centroid_bank"])
def test_contrastive_term_and_its_gradient(bank: str, dtype: torch.dtype, read: Callable[[str], Arrays]) -> None:
    arrays = read("hide_contrastive")
    tau, exact = float(arrays["tau"]), dtype == torch.float64
    features = as_tensor(arrays["features"], dtype).requires_grad_()
    banks = {
        "no_bank": torch.zeros(0, 24),
        "single_mean_bank": as_tensor(arrays["single_means"], dtype),
        "multi_centroid_bank": as_tensor(arrays["multi_centroids"], dtype).flatten(0, 1),
    }
    loss = contrastive(features, banks[bank], centre_constants(banks[bank], tau), tau=tau)
    loss.backward()
    wanted, gradient = (arrays[f"{bank}.{part}" + "_f64" * exact] for part in ("loss", "grad"))
    rtol, atol = (1e-10, 0) if exact else (1e-5, 1e-6)
    np.testing.assert_allclose(loss.item(), wanted, rtol=rtol, atol=atol)
    assert features.grad is not None
    limit = (1e-9 if exact else 1e-4) * np.abs(gradient).max()
    np.testing.assert_allclose(features.grad.numpy(), gradient, rtol=0, atol=limit)


# -- statistics --------------------------------------------------------------------------------------------------------


@CLASSES
@pytest.mark.parametrize("mode", ["covariance", "variance"])
def test_moments_of_one_gaussian(mode: str, c: int, dtype: torch.dtype, read: Callable[[str], Arrays]) -> None:
    arrays = read("hide_statistics")
    statistics = ClassGaussians(mode).to(dtype)
    features = as_tensor(arrays[f"class{c}.features"])
    statistics.fit(features, torch.full((len(features),), c), 0, torch.Generator())
    value = statistics.covariances if mode == "covariance" else statistics.diagonals
    exact = dtype == torch.float64
    for name, got in (("mean", statistics.means[0]), ("value", value[0])):
        wanted = arrays[f"class{c}.{mode}.{name}" + "_f64" * exact]
        # The release's 1e-4 is a float32 constant, which is 3e-12 off.
        limit = 1e-11 if exact else 1e-5
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=limit * np.abs(wanted).max())


@CLASSES
@pytest.mark.parametrize("suffix", ["", "_f64"])
def test_moments_of_the_recorded_clusters(c: int, suffix: str, read: Callable[[str], Arrays]) -> None:
    arrays = read("hide_statistics")
    features = as_tensor(arrays[f"class{c}.features"], torch.float64)
    means, variances, counts = moments(features, torch.from_numpy(arrays[f"class{c}.multi_centroid.labels"]))
    # Plain: float64 arrays that the release made of float32 sums.
    rtol, atol = (1e-10, 1e-12) if suffix else (1e-5, 1e-6)
    np.testing.assert_allclose(means, arrays[f"class{c}.multi_centroid.means{suffix}"], rtol=rtol, atol=atol)
    np.testing.assert_allclose(variances, arrays[f"class{c}.multi_centroid.variances{suffix}"], rtol=rtol, atol=atol)
    assert counts.tolist() == arrays[f"class{c}.multi_centroid.counts"].tolist()


@CLASSES
def test_clusters_that_are_drawn_from(c: int, read: Callable[[str], Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = read("hide_statistics")
    labels = torch.from_numpy(arrays[f"class{c}.multi_centroid.labels"])
    monkeypatch.setattr("evertune.statistics.gaussian.clusters", lambda *_: labels)
    statistics = ClassGaussians("centroids", centroids=5)
    statistics.fit(as_tensor(arrays[f"class{c}.features"]), torch.zeros_like(labels), 0, torch.Generator())
    assert statistics.live.tolist() == arrays[f"class{c}.multi_centroid.live"].astype(bool).tolist()
    assert statistics.counts.tolist() == arrays[f"class{c}.multi_centroid.counts"].tolist()


@CLASSES
def test_own_clusters_are_as_tight_as_the_recorded(c: int, read: Callable[[str], Arrays]) -> None:
    arrays = read("hide_statistics")
    features = as_tensor(arrays[f"class{c}.features"], torch.float64)

    def scatter(assignment: Tensor) -> float:
        _, variances, counts = moments(features, assignment)
        return float((variances.sum(1) * counts).sum())

    recorded = scatter(torch.from_numpy(arrays[f"class{c}.multi_centroid.labels"]))
    assert scatter(clusters(features, 5, torch.Generator().manual_seed(0))) == pytest.approx(recorded, rel=0.02)


# -- alignment ---------------------------------------------------------------------------------------------------------


def test_alignment_on_the_recorded_batches(read: Callable[[str], Arrays]) -> None:
    arrays = read("hide_tap_alignment")
    batches, labels = torch.from_numpy(arrays["minibatches"]), torch.from_numpy(arrays["minibatch_labels"])
    epochs, steps, batch, width = batches.shape
    seen = len(arrays["seen_classes"])
    assert batch == int(arrays["n_samples_per_class"])
    assert seen == len(arrays["class_means"]) == len(arrays["class_covariances"])
    drawn = zip(batches.flatten(1, 2), labels.flatten(1), strict=True)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x, y = next(drawn)
        assert n == len(x)
        return x, y

    head = LinearHead(width)
    head.grow(seen, torch.Generator())
    with torch.no_grad():
        head.weight.copy_(as_tensor(arrays["head_before.weight"][:seen]))
        head.bias.copy_(as_tensor(arrays["head_before.bias"][:seen]))
        losses = align(head, draw, epochs=epochs, steps=steps, batch=batch, rate=0.005)
    np.testing.assert_allclose(losses, arrays["losses"].mean(1), rtol=1e-4)
    for name, p in head.named_parameters():
        np.testing.assert_allclose(p.detach(), arrays[f"head_after.{name}"][:seen], rtol=0, atol=1e-5)
        # The rows of classes not yet seen did not move: a head without them is the same.
        assert np.array_equal(arrays[f"head_after.{name}"][seen:], arrays[f"head_before.{name}"][seen:])
    rates = [cosine_rate(0.005, epoch, epochs) for epoch in range(epochs)]
    np.testing.assert_allclose(rates, arrays["lr_per_epoch"], rtol=1e-12)


def test_recorded_statistics_give_the_recorded_kind_of_batches(read: Callable[[str], Arrays]) -> None:
    """The recorded batches are draws from these very Gaussians: their whitened squared lengths have mean L."""
    arrays = read("hide_tap_alignment")
    batches = arrays["minibatches"].reshape(-1, 16).astype(float)
    labels = arrays["minibatch_labels"].reshape(-1)
    statistics = ClassGaussians("covariance")
    statistics.entry_class = statistics.entry_task = statistics.owner = torch.arange(6)
    statistics.means, statistics.live = as_tensor(arrays["class_means"]), torch.ones(6, dtype=torch.bool)
    statistics.covariances = as_tensor(arrays["class_covariances"])
    drawn, entry = statistics.sample(4000, torch.Generator().manual_seed(0))
    inverse = np.linalg.inv(arrays["class_covariances"].astype(float))
    for x, y in ((batches, labels), (drawn.double().numpy(), statistics.entry_class[entry].numpy())):
        away = x - arrays["class_means"][y]
        squared = np.einsum("ni,nij,nj->n", away, inverse[y], away)
        assert squared.mean() == pytest.approx(16, abs=3 * np.sqrt(2 * 16 / len(x)))


# -- distances ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(read: Callable[[str], Arrays]) -> tuple[TaskCentroids, Arrays]:
    arrays = read("hide_ensemble_ema_router")
    known = TaskCentroids()
    known.centroids = torch.from_numpy(arrays["expansion.task_centroids"]).flatten(0, 1)
    known.owner = torch.arange(3).repeat_interleave(10)
    known.domain = torch.from_numpy(arrays["expansion.task_to_domain_before"])
    return known, arrays


@pytest.mark.parametrize("case", ["near", "far"])
def test_reuse_or_expand(case: str, known: tuple[TaskCentroids, Arrays]) -> None:
    centroids, arrays = known
    match = centroids.nearest(torch.from_numpy(arrays[f"expansion.{case}.features"]))
    assert match is not None
    wanted = arrays[f"expansion.{case}.min_distances_per_task"]
    np.testing.assert_allclose(match.distances, wanted, rtol=0, atol=1e-5)
    assert match.task == int(arrays[f"expansion.{case}.matched_task"])
    assert match.domain == int(arrays["expansion.task_to_domain_before"][match.task])
    assert match.distance == pytest.approx(float(arrays[f"expansion.{case}.fifth_smallest_distance"]), abs=1e-5)
    threshold = float(arrays["expansion.threshold"])
    assert centroids.assign(match, threshold) == int(arrays[f"expansion.{case}.domain_assigned"])


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics(read: Callable[[str], Arrays]) -> None:
    """The recorded accuracies are hundredths of a percent, so counts out of 10000 hold them exactly."""
    arrays = read("hide_metrics")
    recorded = arrays["accuracy[evaluated_task,stage]"]
    stages = len(recorded)
    matrix = AccuracyMatrix()
    for stage in range(stages):
        for group in range(stage + 1):
            matrix.record(stage, group, round(100 * recorded[group, stage]), 10_000)
    correct, totals = matrix.counts()
    np.testing.assert_allclose(correct.T / 100, recorded, atol=1e-9)
    curve = accuracy_curve(correct, totals, weight="task")
    np.testing.assert_allclose(curve, arrays["average_accuracy_per_stage"], atol=1e-9)
    for stage in range(stages):
        until = correct[: stage + 1, : stage + 1], totals[: stage + 1]
        assert forgetting(*until, include_last=True) == pytest.approx(arrays["forgetting_per_stage"][stage], abs=1e-9)
        assert backward_transfer(*until) == pytest.approx(arrays["backward_per_stage"][stage], abs=1e-9)
    assert final_accuracy(correct, totals, weight="task") == pytest.approx(float(arrays["FAA"]), abs=1e-9)
    assert average_accuracy(correct, totals, weight="task") == pytest.approx(
        float(arrays["CAA_mean_over_stages"]), abs=1e-9
    )
    assert forgetting(correct, totals, include_last=True) == pytest.approx(float(arrays["FFM_released"]), abs=1e-9)
    assert forgetting(correct, totals, include_last=False) == pytest.approx(
        float(arrays["FFM_excluding_last_stage"]), abs=1e-9
    )
