"""The empirical tangent kernel (NTK-CL spec §12, items 20 to 23): exact, sketched, its blocks, spectrum and files."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune import Learner
from evertune.backbones import Passes
from evertune.diagnostics import Kernel, Spectrum, Tangent, centred_alignment, drift, exact, sketched
from evertune.errors import ConfigError, DataError, StorageError
from evertune.methods import HiDePET, RanPAC


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert float((found - expected).norm() / expected.norm()) < relative


def kernel(matrix: Tensor, tasks: list[int]) -> Kernel:
    return Kernel(matrix, torch.tensor(tasks), tuple(f"task {t}" for t in range(max(tasks) + 1)))


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_a_linear_model_has_the_kernel_of_its_inputs(
    linear: Any, flat: Any, pixels: Tensor, dtype: torch.dtype, relative: float
) -> None:
    x = pixels.flatten(1).double()
    close(exact(Tangent(linear, flat, dtype=dtype), pixels), torch.kron(x @ x.T, torch.eye(3)), relative)
    close(exact(Tangent(linear, flat, outputs=2, dtype=dtype), pixels), torch.kron(x @ x.T, torch.eye(2)), relative)


def test_images_may_be_bytes(linear: Any, flat: Any, pixels: Tensor) -> None:
    raw = (pixels * 255).round().to(torch.uint8)
    assert torch.equal(exact(Tangent(linear, flat), raw), exact(Tangent(linear, flat), raw.float() / 255))


def test_it_equals_an_explicit_jacobian_in_double(learners: dict[str, Learner], pictures: Tensor) -> None:
    method, backbone = cast(RanPAC, learners["ranpac"].method), learners["ranpac"].backbone
    tangent = Tangent(method, backbone, dtype=torch.float64)
    wide, tuning = copy.deepcopy(backbone).double(), copy.deepcopy(method.tuning).double()
    names, values = zip(*tuning.named_parameters(), strict=True)
    owners = [tuning.get_submodule(name.rpartition(".")[0]) for name in names]
    for owner, name in zip(owners, names, strict=True):
        del owner._parameters[name.rpartition(".")[2]]

    def scores(*replaced: Tensor) -> Tensor:
        for owner, name, value in zip(owners, names, replaced, strict=True):
            setattr(owner, name.rpartition(".")[2], value)
        return torch.relu(wide(pictures.double(), tuning) @ method.R.double()) @ method.ridge.A.double()

    blocks = torch.autograd.functional.jacobian(scores, tuple(v.detach() for v in values))
    J = torch.cat([block.flatten(2) for block in blocks], dim=2).flatten(0, 1)
    found = exact(tangent, pictures)
    close(found, J @ J.T, 1e-10)
    assert float((found - found.T).abs().max()) == 0  # item 20
    eigenvalues = torch.linalg.eigvalsh(found)
    assert eigenvalues[0] >= -1e-8 * eigenvalues[-1]


def test_it_equals_gradients_through_the_passes_that_learners_use(learner: Learner, pictures: Tensor) -> None:
    method, backbone = copy.deepcopy(learner.method), learner.backbone
    for p in method.parameters():
        p.requires_grad_(True)
    parameters = list(method.tangent_parameters.values())
    rows = []
    for image in pictures:
        passes = Passes(backbone, image[None])
        if isinstance(method, HiDePET):  # its passes are routed without a graph
            slot = int(method.identify(passes))
            answer = method.psi(passes(method.e[slot]))
        else:
            answer = next(iter(method.scores(passes).values()))
        for score in answer[0]:
            parts = torch.autograd.grad(score, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(nn.utils.parameters_to_vector(parts).double())
    J = torch.stack(rows)
    close(exact(Tangent(learner.method, backbone), pictures), J @ J.T, 1e-5)


def test_disjoint_groups_of_parameters_add_up(learner: Learner, pictures: Tensor) -> None:
    names = list(learner.method.tangent_parameters)
    groups = names[::2], names[1::2]
    whole, *parts = (
        exact(Tangent(learner.method, learner.backbone, names=chosen, dtype=torch.float64), pictures)
        for chosen in (None, *groups)
    )
    assert all(float(part.trace()) > 0 for part in parts)
    close(parts[0] + parts[1], whole, 1e-10)


def test_a_parameter_that_reaches_nothing_changes_nothing(linear: Any, flat: Any, pixels: Tensor) -> None:
    before = exact(Tangent(linear, flat), pixels)
    linear.chosen.append("dead")
    tangent = Tangent(linear, flat)
    assert tangent.live(None) == ("method.W",) and "method.dead" in tangent.parameters
    assert torch.equal(exact(tangent, pixels), before)


def test_order_repetition_and_union_of_images(learner: Learner, pictures: Tensor) -> None:
    tangent = Tangent(learner.method, learner.backbone, outputs=2, dtype=torch.float64)
    whole = exact(tangent, pictures).view(9, 2, 9, 2)
    chosen = torch.tensor([4, 0, 8, 4, 2])
    found = exact(tangent, pictures[chosen]).view(5, 2, 5, 2)
    close(found, whole[chosen][:, :, chosen], 1e-10)
    both = kernel(exact(tangent, pictures), [0, 0, 1, 0, 1, 1, 1, 0, 0])
    assert torch.equal(both.block(0, 1), both.block(1, 0).T)
    close(both.block(1), exact(tangent, pictures[both.tasks == 1]), 1e-10)


def test_what_would_not_fit_is_refused_before_anything_is_computed(
    linear: Any, flat: Any, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tangent = Tangent(linear, flat)
    monkeypatch.setattr(tangent, "jacobians", lambda *_: pytest.fail("it was computed"))
    many = pixels.repeat(100, 1, 1, 1)
    # 3000 rows of 144 numbers in float32 and twice in float64, and three matrices of 3000 × 3000: 214.2 MiB.
    with pytest.raises(
        ConfigError, match=r"1000 images × 3 outputs under 144 .* 214.2 MiB, .* of 200.0 MiB: take fewer"
    ):
        exact(tangent, many, memory=200 << 20)
    with pytest.raises(
        ConfigError, match=r"in 8192 dimensions needs 393.5 MiB, .* 300.0 MiB: a sketch of 4096 .* 299.7"
    ):
        sketched(tangent, many, 8192, memory=300 << 20)
    monkeypatch.setattr(tangent, "width", lambda slot: 10**9)
    with pytest.raises(ConfigError, match=r"needs 111.8 GiB, more than the limit of 4.0 GiB: a sketch of 8192"):
        exact(tangent, pixels)


# -- sketched ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [16, 64, 256])
def test_a_sketch_is_unbiased_and_knows_its_error(linear: Any, flat: Any, pixels: Tensor, dimensions: int) -> None:
    tangent = Tangent(linear, flat)
    whole = exact(tangent, pixels)
    draws = [sketched(tangent, pixels, dimensions, seed=seed) for seed in range(40)]
    errors = [float((found - whole).norm() / whole.norm()) for found, _ in draws]
    true = math.sqrt(np.mean(np.square(errors)))
    assert np.sqrt(np.mean(np.square([told for _, told in draws]))) == pytest.approx(true, rel=0.35)
    mean = torch.stack([found for found, _ in draws]).mean(0)
    assert float((mean - whole).norm() / whole.norm()) < 2.5 * true / math.sqrt(40)


def test_more_dimensions_are_nearer_for_a_learner(
    learner: Learner, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tangent = Tangent(learner.method, learner.backbone)
    whole = exact(tangent, pictures)
    made = list(tangent.jacobians(pictures))
    monkeypatch.setattr(tangent, "jacobians", lambda images: iter(made))  # the same for every draw
    for dimensions in (64, 1024):
        draws = [sketched(tangent, pictures, dimensions, seed=seed) for seed in range(24)]
        true = np.sqrt(np.mean([float((found - whole).norm() / whole.norm()) ** 2 for found, _ in draws]))
        told = np.sqrt(np.mean([told**2 for _, told in draws]))
        assert told == pytest.approx(true, rel=0.35)
        variance = (1 + float(whole.trace() / whole.norm()) ** 2) / dimensions  # at most, over sketches
        assert true < 1.3 * math.sqrt(variance)
    first = draws[0][0]
    assert torch.equal(first, first.T) and torch.equal(first, sketched(tangent, pictures, 1024, seed=0)[0])


@pytest.mark.parametrize("dimensions", [-1, 0, 3])
def test_a_sketch_has_a_dimension_for_each_part(linear: Any, flat: Any, pixels: Tensor, dimensions: int) -> None:
    with pytest.raises(ConfigError, match=f"sketch of {dimensions} dimensions is too small: it takes at least 4"):
        sketched(Tangent(linear, flat), pixels, dimensions)


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_overlap_lies_between_0_and_1(learner: Learner, pictures: Tensor) -> None:
    found = exact(Tangent(learner.method, learner.backbone), pictures)
    rho = kernel(found, [0, 0, 0, 1, 1, 1, 2, 2, 2]).overlap()
    assert torch.equal(rho, rho.T) and (rho >= 0).all() and (rho <= 1 + 1e-12).all()
    torch.testing.assert_close(rho.diagonal(), torch.ones(3, dtype=torch.float64))


def test_tasks_whose_tangents_share_nothing_do_not_overlap(linear: Any, flat: Any, pixels: Tensor) -> None:
    x = pixels.clone()
    x[:5, 0], x[5:, 1:] = 0, 0
    k = kernel(exact(Tangent(linear, flat), x), [0] * 5 + [1] * 5)
    assert torch.equal(k.overlap(), torch.eye(2, dtype=torch.float64))
    assert kernel(torch.zeros(4, 4), [0, 0, 1, 1]).overlap().sum() == 0


def test_blocks_follow_the_owners_of_images(linear: Any) -> None:
    matrix = torch.arange(64, dtype=torch.float64).view(8, 8)
    k = kernel(matrix, [1, 0, 1, 0])
    assert k.outputs == 2 and k.images == (2, 2)
    rows, columns = [2, 3, 6, 7], [0, 1, 4, 5]
    assert torch.equal(k.block(0, 1), matrix[rows][:, columns])
    assert float(k.norms()[0, 1]) == pytest.approx(np.linalg.norm(matrix[rows][:, columns]))


@pytest.mark.parametrize(("rows", "tasks", "names"), [(3, [0, 1], 2), (4, [0, 2], 3), (4, [0, 1], 1), (0, [], 1)])
def test_a_kernel_fits_its_images_and_tasks(rows: int, tasks: list[int], names: int) -> None:
    with pytest.raises(DataError):
        Kernel(torch.zeros(rows, rows), torch.tensor(tasks, dtype=torch.long), ("a", "b", "c")[:names])


def test_a_spectrum_is_clipped_and_counted() -> None:
    u = torch.linalg.qr(drawn(6, 6))[0]
    values = torch.tensor([8.0, 4, 2, 1, 1e-9, -1e-7], dtype=torch.float64)
    found = Spectrum.of(u @ torch.diag(values) @ u.T)
    np.testing.assert_allclose(found.eigenvalues, [8, 4, 2, 1, 1e-9, 0], atol=1e-12)
    assert found.rank == 4 and found.condition == pytest.approx(8) and found.trace == pytest.approx(15)
    share = np.array([8, 4, 2, 1]) / 15
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert Spectrum.of(torch.eye(5, dtype=torch.float64)).effective_rank == pytest.approx(5)
    nothing = Spectrum.of(torch.zeros(3, 3, dtype=torch.float64))
    assert (nothing.trace, nothing.effective_rank, nothing.rank, nothing.condition) == (0, 0, 0, 0)


def test_drift_and_centred_alignment() -> None:
    one, other = (drawn(7, 4, seed) for seed in (0, 1))
    one, other = one @ one.T, other @ other.T
    assert drift(one, one) == 0 and drift(one, 3 * one) == pytest.approx(2)
    assert centred_alignment(one, 5 * one + 2) == pytest.approx(1)  # neither scale nor a constant counts
    h = np.eye(7) - 1 / 7
    a, b = h @ one.numpy() @ h, h @ other.numpy() @ h
    assert centred_alignment(one, other) == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_kernel_is_kept_and_read_again(tmp_path: Path) -> None:
    a = drawn(6, 3)
    k = Kernel(a @ a.T, torch.tensor([0, 1, 1]), ("cats", "dogs"), 0.25)
    k.save(tmp_path)
    again = Kernel.load(tmp_path)
    assert torch.equal(again.matrix, k.matrix) and torch.equal(again.tasks, k.tasks)
    assert (again.names, again.error) == (k.names, 0.25)
    data = (tmp_path / "kernel.safetensors").read_bytes()
    (tmp_path / "kernel.safetensors").write_bytes(data[:-1] + b"\x01")
    with pytest.raises(StorageError, match="sha256 differs"):
        Kernel.load(tmp_path)
    (tmp_path / "kernel.json").write_text('{"format": 9}')
    with pytest.raises(StorageError, match="format 9"):
        Kernel.load(tmp_path)
