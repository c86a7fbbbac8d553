"""How far tasks are apart in feature space (NTK-CL spec §3.4, D10 and D12)."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from evertune.diagnostics import basis, class_means, feature_overlap, principal_angles
from evertune.errors import DataError


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_class_means_are_those_of_numpy() -> None:
    features, labels = drawn(9, 4), torch.tensor([3, 1, 3, 7, 1, 3, 7, 7, 7])
    expected = [features.numpy()[labels.numpy() == c].mean(0) for c in (1, 3, 7)]
    np.testing.assert_allclose(class_means(features, labels), expected)


def test_principal_angles_are_those_of_scipy() -> None:
    a, b = drawn(10, 3, 1), drawn(10, 2, 2)
    expected = np.rad2deg(np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy())))
    np.testing.assert_allclose(principal_angles(basis(a.T), basis(b.T)), expected, atol=1e-10)
    turned = a @ drawn(3, 3, 3)  # another basis of the same span
    np.testing.assert_allclose(principal_angles(basis(a.T), basis(turned.T)), 0, atol=1e-10)
    tilted = torch.eye(4, dtype=torch.float64)[:, :1] + 1e-9 * torch.eye(4, dtype=torch.float64)[:, 1:2]
    small = principal_angles(basis(torch.eye(4, dtype=torch.float64)[:1]), basis(tilted.T))
    assert float(small[0]) == pytest.approx(np.rad2deg(1e-9), rel=1e-6)


def test_a_basis_has_at_most_as_many_directions_as_its_samples_span() -> None:
    vectors = torch.cat([drawn(2, 6), drawn(2, 6).sum(0, keepdim=True)])  # three rows that span two directions
    u = basis(vectors)
    torch.testing.assert_close(u.T @ u, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(u @ u.T @ vectors.T, vectors.T)
    with pytest.raises(DataError, match="basis of 3 directions was asked for, and 3 samples span 2"):
        basis(vectors, 3)
    with pytest.raises(DataError, match="basis of 0 directions"):
        basis(vectors, 0)
    with pytest.raises(DataError, match="2 samples span 0"):
        basis(torch.zeros(2, 6))


def test_tasks_in_orthogonal_subspaces_do_not_overlap() -> None:
    z = torch.zeros(12, 8, dtype=torch.float64)
    z[:6, :4], z[6:, 4:] = drawn(6, 4), drawn(6, 4, 1)
    labels, tasks = torch.arange(12) // 3, torch.arange(12) // 6
    found = feature_overlap(z, labels, tasks)
    for table in (found.inside, found.mean_cosine, found.max_cosine, found.kernel):
        assert table[0, 1] < 1e-15 and table[1, 0] < 1e-15 and (table.diagonal() > 0.3).all()
    torch.testing.assert_close(found.smallest_angle[0, 1], torch.tensor(90.0, dtype=torch.float64))
    torch.testing.assert_close(found.mean_angle.diagonal(), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_numbers_are_those_of_their_definitions() -> None:
    z, labels, tasks = drawn(20, 7).numpy(), np.arange(20) % 4, np.arange(20) % 4 // 2
    found = feature_overlap(torch.tensor(z), torch.tensor(labels), torch.tensor(tasks))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    means = np.stack([unit[labels == c].mean(0) for c in (0, 1)])
    other = unit[tasks == 1]
    u = scipy.linalg.orth(means.T)
    cosines = np.abs(other @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T)
    assert float(found.inside[0, 1]) == pytest.approx(np.mean(np.sum((other @ u) ** 2, axis=1)))
    assert float(found.mean_cosine[0, 1]) == pytest.approx(cosines.mean())
    assert float(found.max_cosine[0, 1]) == pytest.approx(cosines.max())
    grams = [[np.linalg.norm(unit[tasks == t] @ unit[tasks == s].T) for s in (0, 1)] for t in (0, 1)]
    assert float(found.kernel[0, 1]) == pytest.approx(grams[0][1] / np.sqrt(grams[0][0] * grams[1][1]))
    assert ((found.inside > 0) & (found.inside < 1)).all()


def test_too_few_samples_for_a_basis_are_an_error() -> None:
    labels = torch.arange(8) // 2
    with pytest.raises(DataError, match="basis of 3 directions was asked for, and 2 samples span 2"):
        feature_overlap(drawn(8, 5), labels, labels // 2, rank=3)
