"""Gap terms against ridge regression in parameter space, Monte Carlo, and a small network that is really trained."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import brentq
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.func import functional_call, jacrev

from evertune.backbones import TimmViT
from evertune.diagnostics.gaps import (
    LinearSequence,
    agreement,
    coefficients,
    effective_ridge,
    gap_terms,
    increment_norm,
    interplay_gap,
    interplay_proxy,
    interplay_term,
    intrinsic_term,
    learn_in_sequence,
    learning_curve,
    norm_bound,
    sample_gain,
    target_alignment,
)
from evertune.errors import ConfigError, DataError
from evertune.tuning import Adapter

STRENGTH = 0.7
TASKS, IMAGES, OUTPUTS, WIDTH = 3, 6, 2, 9  # per task; width of the inputs


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """X [n, d], y [n, o] and the task of each image [n], shuffled."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TASKS * IMAGES, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randn(TASKS * IMAGES, OUTPUTS, generator=generator, dtype=torch.float64)
    return x, y, torch.arange(TASKS).repeat(IMAGES)


def linear_gram(x: Tensor) -> Tensor:
    """K = XXᵀ ⊗ I of F = Wx."""
    return torch.kron(x @ x.T, torch.eye(OUTPUTS, dtype=torch.float64))


def rows_of(tasks: Tensor) -> list[Tensor]:
    every = torch.arange(len(tasks) * OUTPUTS).view(-1, OUTPUTS)
    return [every[tasks == task].flatten() for task in range(TASKS)]


def linear_run(start: Tensor) -> tuple[LinearSequence, Tensor]:
    """The tasks in sequence in the linear model from F = x · start, [d, o]; and its Gram matrix."""
    x, y, tasks = inputs()
    gram, rows = linear_gram(x), rows_of(tasks)
    kernels = [gram[:, own] for own in rows]
    return learn_in_sequence(kernels, rows, y.flatten(), (x @ start).flatten(), STRENGTH), gram


def weights_after_each(start: Tensor) -> list[np.ndarray]:
    """The same in parameter space, by scikit-learn: ‖X(W + Δ) − y‖² + λ‖Δ‖² is ridge regression of y − XW."""
    x, y, tasks = inputs()
    weights = [start.numpy()]
    for task in range(TASKS):
        own = (tasks == task).numpy()
        left = y.numpy()[own] - x.numpy()[own] @ weights[-1]
        ridge = Ridge(alpha=STRENGTH, fit_intercept=False, solver="svd").fit(x.numpy()[own], left)
        weights.append(weights[-1] + ridge.coef_.T)
    return weights


@pytest.fixture
def start() -> Tensor:
    return torch.randn(WIDTH, OUTPUTS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_a_linear_model_is_sequential_ridge_regression(start: Tensor) -> None:
    run, gram = linear_run(start)
    x, _, tasks = inputs()
    weights = weights_after_each(start)
    for task in range(-1, TASKS):
        expected = (x.numpy() @ weights[task + 1]).ravel()
        np.testing.assert_allclose(run.after(task), expected, atol=1e-10)
    for task, own in enumerate(rows_of(tasks)):
        step = weights[task + 1] - weights[task]
        assert increment_norm(gram[own][:, own], run.alphas[task]) == pytest.approx(np.linalg.norm(step), rel=1e-10)
        drift = (x.numpy() @ (weights[-1] - weights[task + 1])).ravel()[own]
        np.testing.assert_allclose(run.shift(task), drift, atol=1e-10)
    assert not run.shift(TASKS - 1).any()


def test_what_training_leaves_is_the_ridge_times_alpha_and_bounded(start: Tensor) -> None:
    run, gram = linear_run(start)
    _, y, tasks = inputs()
    for task, own in enumerate(rows_of(tasks)):
        alpha, residual = run.alphas[task], run.residuals[task]
        left = y.flatten()[own] - run.after(task)[own]
        np.testing.assert_allclose(left, STRENGTH * alpha, atol=1e-12)
        assert left.norm() ** 2 <= STRENGTH * residual @ alpha
        assert increment_norm(gram[own][:, own], alpha) <= norm_bound(residual, alpha)
        assert norm_bound(residual, alpha) == pytest.approx(math.sqrt(residual @ alpha))


def test_the_kernel_may_change_from_task_to_task() -> None:
    """A function that is linear in the parameters within a task, with other tangent features in each."""
    generator = torch.Generator().manual_seed(3)
    jacobians = [torch.randn(12, 20, generator=generator, dtype=torch.float64) for _ in range(3)]
    y, start = (torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = [torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 11)]  # the last row is only watched
    run = learn_in_sequence([j @ j[own].T for j, own in zip(jacobians, rows, strict=True)], rows, y, start, STRENGTH)
    current = start.numpy()
    for k, (jacobian, own) in enumerate(zip(jacobians, rows, strict=True)):
        ridge = Ridge(alpha=STRENGTH, fit_intercept=False, solver="svd")
        ridge.fit(jacobian.numpy()[own], y.numpy()[own] - current[own])
        current = current + jacobian.numpy() @ ridge.coef_
        np.testing.assert_allclose(run.after(k), current, atol=1e-10)


def test_orthogonal_tasks_do_not_move_each_other() -> None:
    x, y, tasks = inputs()
    for task in range(TASKS):  # three inputs of their own for each
        x[tasks == task] *= torch.arange(WIDTH) // 3 == task
    terms = gap_terms(linear_gram(x), tasks, y, torch.zeros_like(y), STRENGTH)["tasks"]
    for task, term in enumerate(terms):
        assert term["drift"] == pytest.approx(0, abs=1e-14)
        assert [moved > 1e-3 for moved in term["moved_by"]] == [other == task for other in range(TASKS)]


def test_the_penalty_of_a_mean_loss_as_a_ridge() -> None:
    x, y, _ = inputs()
    weight, n = 0.01, len(x)
    # The gradient of the mean of ½‖·‖² plus weight · ‖W‖², set to zero.
    expected = np.linalg.solve(x.numpy().T @ x.numpy() / n + 2 * weight * np.eye(WIDTH), x.numpy().T @ y.numpy() / n)
    alpha = coefficients(linear_gram(x), y.flatten(), 2 * n * weight)
    np.testing.assert_allclose(x.numpy().T @ alpha.view(n, OUTPUTS).numpy(), expected, atol=1e-12)


def test_agreement_of_predicted_and_measured_drift() -> None:
    measured = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert agreement(measured, measured).correlation == pytest.approx(1)
    assert agreement(measured, measured).relative_error == 0
    noisy = measured + torch.tensor([[0.3, 0.1], [-0.4, 0.2]])
    seen = agreement(noisy, measured)
    assert seen.correlation == pytest.approx(np.corrcoef(noisy.flatten(), measured.flatten())[0, 1])
    assert seen.relative_error == pytest.approx(np.linalg.norm(noisy - measured) / np.linalg.norm(measured))
    still = agreement(measured, torch.zeros(2, 2))
    assert still.correlation is None and still.relative_error is None
    with pytest.raises(DataError, match=r"\(2, 2\) and measured \(4,\) drift"):
        agreement(measured, measured.flatten())


def test_the_interplay_gap_and_its_parts() -> None:
    norms, trace, n = [1.5, 0.5], 16.0, 8
    assert interplay_term(norms, trace, n) == pytest.approx(2.0 * 4.0 / 8)
    complexity, deviation = interplay_gap(norms, trace, n, 1, lipschitz=0.5, ceiling=2.0, failure=0.1)
    assert complexity == pytest.approx(1.0)
    assert deviation == pytest.approx(3 * 2 * math.sqrt(math.log(20) / 16))
    assert interplay_gap(norms, trace, n, 10, lipschitz=0.5)[0] == pytest.approx(math.sqrt(2) * complexity)
    for images, failure in ((0, 0.1), (5, 0.0), (5, 1.0)):
        with pytest.raises(ConfigError, match=r"interplay gap: images="):
            interplay_gap(norms, trace, images, 1, failure=failure)


def test_the_complexity_bounds_what_norm_balls_fit_of_noise() -> None:
    """E sup over ‖g‖ ≤ B of (1/n) Σ ε g = (B/n) E √(εᵀKε), with random signs: below the term, and close to it."""
    x, _, _ = inputs()
    gram = x @ x.T
    signs = torch.randint(0, 2, (4000, len(x)), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    fitted = 2.5 / len(x) * float(((signs @ gram) * signs).sum(1).sqrt().mean())
    bound = interplay_term([2.5], float(gram.trace()), len(x))
    assert 0.9 * bound < fitted < bound


def test_the_proxy_bounds_the_interplay_of_a_task_with_itself(start: Tensor) -> None:
    """Where the kernel is 1 on the diagonal, tr K = n and the proxy is the D7 of one increment with its norm bound."""
    x, y, _ = inputs()
    gram = (x @ x.T) / (x.norm(dim=1)[:, None] * x.norm(dim=1))
    alpha = coefficients(gram, y[:, 0], STRENGTH)
    proxy = interplay_proxy(y[:, 0], alpha, len(x))
    assert proxy == pytest.approx(interplay_term([norm_bound(y[:, 0], alpha)], float(gram.trace()), len(x)))
    assert proxy > interplay_term([increment_norm(gram, alpha)], float(gram.trace()), len(x))


POWER_LAW = 1 / torch.arange(1, 51, dtype=torch.float64) ** 1.5
TARGET = 1 / torch.arange(1, 51, dtype=torch.float64)


def test_a_learning_curve_starts_at_the_power_of_the_target_and_falls() -> None:
    total = float(TARGET.square().sum())
    curve = [learning_curve(POWER_LAW, TARGET.square(), n, 0.1) for n in (0, 5, 10, 100, 10_000)]
    assert curve[0].error == pytest.approx(total, rel=1e-14) and curve[0].gamma == 0
    assert curve[0].kappa == pytest.approx(0.1 + float(POWER_LAW.sum()))
    assert all(later.error < earlier.error for earlier, later in pairwise(curve))
    assert curve[-1].error < 1e-3 * total
    assert learning_curve(POWER_LAW, TARGET.square(), 20, 1e9).error == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("samples", [10, 20, 40])
@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_a_learning_curve_is_the_mean_error_of_ridge_regression(samples: int, strength: float) -> None:
    rng = np.random.default_rng(samples)
    scale, target, errors = POWER_LAW.sqrt().numpy(), TARGET.numpy(), []
    for _ in range(1000):
        psi = rng.normal(size=(samples, len(scale)))
        features = psi * scale
        dual = np.linalg.solve(features @ features.T + strength * np.eye(samples), psi @ target)
        errors.append(np.square(target - scale * (features.T @ dual)).sum())
    expected = learning_curve(POWER_LAW, TARGET.square(), samples, strength).error
    assert expected == pytest.approx(np.mean(errors), rel=0.1)


@pytest.mark.parametrize("strength", [1e-9, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("samples", [0, 1, 49.5, 50, 5000])
def test_the_effective_ridge_is_the_root(samples: float, strength: float) -> None:
    eta = POWER_LAW.numpy()

    def excess(log_kappa: float) -> float:
        kappa = math.exp(log_kappa)
        return 1 - strength / kappa - (eta / (samples * eta + kappa)).sum()

    low, high = math.log(strength) - 1, math.log(strength + eta.sum()) + 1
    expected = math.exp(brentq(excess, low, high, xtol=1e-13))
    assert effective_ridge(POWER_LAW, samples, strength) == pytest.approx(expected, rel=1e-6)


def test_gamma_is_the_sum_over_modes() -> None:
    point = learning_curve(POWER_LAW, TARGET.square(), 30, 0.05)
    eta, a2 = POWER_LAW.numpy(), TARGET.square().numpy()
    gamma = (30 * eta**2 / (30 * eta + point.kappa) ** 2).sum()
    assert point.gamma == pytest.approx(gamma)
    error = (a2 * point.kappa**2 / (30 * eta + point.kappa) ** 2).sum() / (1 - gamma)
    assert point.error == pytest.approx(error, rel=1e-9)


def test_the_intrinsic_term_of_a_large_sample_is_that_of_the_task() -> None:
    rng = np.random.default_rng(0)
    samples = 600
    psi = torch.from_numpy(rng.normal(size=(samples, 50)))
    gram = (psi * POWER_LAW) @ psi.T
    term = intrinsic_term(gram, psi @ TARGET, 30.0)
    exact = learning_curve(POWER_LAW, TARGET.square(), samples, 30.0)
    assert term.error == pytest.approx(exact.error, rel=0.15)
    assert term.kappa == pytest.approx(exact.kappa, rel=0.1)
    assert term.power == pytest.approx(float((psi @ TARGET).square().mean()))
    assert not term.biased and term.resolved == samples and term.unresolved_power == 0


def test_outputs_that_share_nothing_have_the_error_of_one() -> None:
    x, y, _ = inputs()
    one, two = x @ x.T, y[:, :1].expand(-1, OUTPUTS).flatten()
    single, double = intrinsic_term(one, y[:, 0], STRENGTH), intrinsic_term(linear_gram(x), two, STRENGTH)
    assert double.error == pytest.approx(single.error) and double.kappa == pytest.approx(single.kappa)


def test_modes_a_sample_does_not_resolve_are_flagged() -> None:
    flat = intrinsic_term(torch.eye(8), torch.arange(8.0), 0.1)
    assert flat.biased and flat.resolved == 0 and flat.unresolved_power == pytest.approx(1)
    # One mode above a flat rest: only the first is there to stay, and it holds the whole target.
    leading = torch.eye(8) + 1000 * torch.ones(8, 8)
    spiked = intrinsic_term(leading, torch.ones(8), 0.1)
    assert spiked.biased and spiked.resolved == 1 and spiked.unresolved_power == pytest.approx(0, abs=1e-12)
    assert intrinsic_term(torch.ones(8, 8), torch.zeros(8), 0.1).unresolved_power == 0


def test_alignment_with_the_target() -> None:
    y = torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert target_alignment(torch.outer(y, y), y) == pytest.approx(1)
    assert target_alignment(torch.eye(4), y) == pytest.approx(0.5)
    assert target_alignment(torch.outer(y, y), torch.tensor([1.0, 1.0, 0.0, 0.0])) == 0
    assert target_alignment(torch.zeros(4, 4), y) == 0


def test_parts_that_repeat_gain_nothing_and_independent_ones_all() -> None:
    m = torch.randn(5, 1, 2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for further, gain in ((torch.zeros(3, dtype=torch.long), 1), (torch.arange(3), 3)):  # in which columns
        rows = (m[..., None] * torch.eye(3, dtype=torch.float64)[further][:, None, None]).flatten(3).flatten(0, 2)
        assert sample_gain(rows @ rows.T, 5, 3) == pytest.approx(gain)
    with pytest.raises(DataError, match="no effective rank"):
        sample_gain(torch.zeros(6, 6), 3, 2)
    with pytest.raises(DataError, match=r"shape \(6, 6\) does not fit 2 images × 2 parts"):
        sample_gain(torch.eye(6), 2, 2)


def test_gap_terms_are_those_of_the_single_functions(start: Tensor) -> None:
    x, y, tasks = inputs()
    terms = gap_terms(linear_gram(x), 10 + 5 * tasks, y, x @ start, STRENGTH, failure=0.2)
    assert json.loads(json.dumps(terms, allow_nan=False)) == terms
    assert (terms["strength"], terms["outputs"], terms["failure"]) == (STRENGTH, OUTPUTS, 0.2)
    weights = weights_after_each(start)
    norms = [np.linalg.norm(b - a) for a, b in pairwise(weights)]
    for k, term in enumerate(terms["tasks"]):
        own, target = x.numpy()[tasks == k], y.numpy()[tasks == k]
        trace = OUTPUTS * np.square(own).sum()
        assert (term["task"], term["images"]) == (10 + 5 * k, IMAGES)
        assert term["trace"] == pytest.approx(trace)
        assert term["norm"] == pytest.approx(norms[k]) and term["norm"] <= term["norm_bound"]
        left = target - own @ weights[k + 1]
        assert term["residual"] == pytest.approx(np.sqrt(np.square(left).mean()))
        assert term["residual"] <= term["residual_bound"]
        assert term["residual_bound"] == pytest.approx(math.sqrt(STRENGTH / target.size) * term["norm_bound"])
        moved = [own @ (b - a) for a, b in pairwise(weights)]
        assert term["moved_by"] == pytest.approx([np.sqrt(np.square(m).mean()) for m in moved])
        drift = own @ (weights[-1] - weights[k + 1])
        assert term["drift"] == pytest.approx(np.sqrt(np.square(drift).mean()), abs=1e-12)
        assert term["interplay"] == pytest.approx(sum(norms) * np.sqrt(trace) / IMAGES)
        assert term["interplay_proxy"] == pytest.approx(term["norm_bound"] / math.sqrt(IMAGES))
        distances = np.linalg.norm(own @ weights[-1] - target, axis=1)
        assert term["risk"] == pytest.approx(np.minimum(distances, 1).mean())
        assert term["complexity"] == pytest.approx(2 * math.sqrt(2) * term["interplay"])
        assert term["deviation"] == pytest.approx(3 * math.sqrt(math.log(10) / (2 * IMAGES)))
        gram = np.kron(own @ own.T, np.eye(OUTPUTS))
        aligned = target.ravel() @ gram @ target.ravel() / np.linalg.norm(gram) / np.square(target).sum()
        assert term["alignment"] == pytest.approx(aligned)
        before = torch.from_numpy((target - own @ weights[k]).ravel())
        assert term["intrinsic"]["error"] == pytest.approx(intrinsic_term(torch.tensor(gram), before, STRENGTH).error)


def test_gap_terms_do_not_depend_on_the_order_of_images() -> None:
    x, y, tasks = inputs()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(y)
    terms = gap_terms(linear_gram(x), tasks, y, zeros, STRENGTH)["tasks"]
    shuffled = gap_terms(linear_gram(x[order]), tasks[order], y[order], zeros, STRENGTH)["tasks"]
    for a, b in zip(terms, shuffled, strict=True):
        intrinsic, other = a.pop("intrinsic"), b.pop("intrinsic")
        assert b.pop("moved_by") == pytest.approx(a.pop("moved_by"))
        assert b == pytest.approx(a) and other == pytest.approx(intrinsic)


def test_bad_input_is_refused() -> None:
    x, y, tasks = inputs()
    gram, zeros = linear_gram(x), torch.zeros_like(y)
    for strength in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="give a positive number"):
            gap_terms(gram, tasks, y, zeros, strength)
        with pytest.raises(ConfigError, match="needs a positive number"):
            learning_curve(POWER_LAW, TARGET, 1, strength)
    with pytest.raises(DataError, match=r"Gram matrix of shape \(35, 36\) does not fit 18 images with 2 outputs"):
        gap_terms(gram[1:], tasks, y, zeros, STRENGTH)
    with pytest.raises(DataError, match=r"targets \(18, 2\) and scores \(18, 1\) must both be images by outputs"):
        gap_terms(gram, tasks, y, zeros[:, :1], STRENGTH)
    with pytest.raises(DataError, match=r"task numbers of shape \(17,\) given for 18 images"):
        gap_terms(gram, tasks[1:], y, zeros, STRENGTH)
    with pytest.raises(DataError, match="NaN or infinity"):
        gap_terms(gram, tasks, y, zeros / 0, STRENGTH)
    with pytest.raises(DataError, match=r"a ridge of 0.5 is not positive definite"):
        coefficients(-torch.eye(3), torch.ones(3), 0.5)
    with pytest.raises(DataError, match=r"shape \(3, 3\) does not fit 2 residuals"):
        coefficients(torch.eye(3), torch.ones(2), 0.5)
    with pytest.raises(DataError, match=r"kernel of task 0 has shape \(3, 2\), not \(3, 3\)"):
        learn_in_sequence([torch.eye(3)[:, :2]], [torch.arange(3)], torch.ones(3), torch.ones(3), 0.5)
    with pytest.raises(DataError, match="mode by mode"):
        learning_curve(POWER_LAW, TARGET[1:], 1, 0.1)
    with pytest.raises(DataError, match="cannot be negative"):
        learning_curve(POWER_LAW, -TARGET, 1, 0.1)
    with pytest.raises(DataError, match="cannot be negative"):
        learning_curve(POWER_LAW, TARGET, -1, 0.1)


class Network:
    """A small vision transformer with adapters: F(images; p) in float64, with three outputs of its feature."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.random.fork_rng():
            torch.manual_seed(1)  # of timm's initialisation
            model = timm.create_model(
                "vit_tiny_patch16_224", pretrained=False, depth=2, embed_dim=16, num_heads=2, img_size=16, patch_size=8
            )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        self.backbone = TimmViT(model.double(), "small", preprocessing="unit")
        self.backbone.freeze()
        self.tuning = Adapter(self.backbone.shape, range(2), generator, bottleneck=4, scale=1.0, dropout=0.0).double()
        self.start = {
            name: (p + 0.3 * torch.randn(p.shape, generator=generator)).detach()
            for name, p in self.tuning.named_parameters()
        }
        self.readout = torch.randn(16, 3, generator=generator, dtype=torch.float64) / 4
        self.images = torch.rand(8, 3, 16, 16, generator=generator, dtype=torch.float64)
        self.targets = torch.randn(24, generator=generator, dtype=torch.float64)

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        """F at all images, [n · o]."""
        outer = _Feature(self.backbone, self.tuning)
        named = {f"tuning.{name}": value for name, value in parameters.items()}
        return (functional_call(outer, named, (self.images,)) @ self.readout).flatten()

    def gram(self, parameters: dict[str, Tensor]) -> Tensor:
        jacobian = torch.cat([j.flatten(1) for j in jacrev(self, chunk_size=1)(parameters).values()], 1)
        return jacobian @ jacobian.T

    def step(self, parameters: dict[str, Tensor], rows: Tensor, rate: float) -> dict[str, Tensor]:
        """One step of gradient descent on ½‖y − F‖² over the rows."""
        live = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        loss = 0.5 * (self.targets - self(live))[rows].square().sum()
        gradients = torch.autograd.grad(loss, list(live.values()))
        return {name: p.detach() - rate * g for (name, p), g in zip(live.items(), gradients, strict=True)}


class _Feature(torch.nn.Module):
    def __init__(self, backbone: TimmViT, tuning: Adapter) -> None:
        super().__init__()
        self.backbone, self.tuning = backbone, tuning

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images, self.tuning)


def test_training_a_network_with_a_small_rate_follows_its_kernel() -> None:
    """Spec §12 item 26: a few steps give F − F₀ = −steps · rate · K(F₀ − y), with an error that falls with the rate."""
    network, every = Network(), torch.arange(24)
    gram, initial = network.gram(network.start), network(network.start)
    top = float(torch.linalg.eigvalsh(gram)[-1])
    errors = []
    for rate in (1e-3 / top, 1e-4 / top, 1e-5 / top):
        parameters = network.start
        for _ in range(4):
            parameters = network.step(parameters, every, rate)
        predicted = -4 * rate * gram @ (initial - network.targets)
        measured = network(parameters) - initial
        errors.append(agreement(predicted, measured).relative_error)
    assert errors[0] < 0.2
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([10, 10], rel=0.15)


def test_the_drift_of_a_network_trained_on_two_tasks_is_the_predicted_one() -> None:
    """The stronger the pull to where a task began, the nearer a network stays to its tangent: error ~ 1/λ in (3.3)."""
    network = Network()
    rows = [torch.arange(12), torch.arange(12, 24)]
    top = float(torch.linalg.eigvalsh(network.gram(network.start))[-1])
    errors = []
    for strength in (10 * top, 100 * top, 1000 * top):
        anchor, seen, kernels = network.start, [network(network.start)], []
        for own in rows:
            kernels.append(network.gram(network.start)[:, own])
            # ½‖y − F‖² + (λ/2)‖p − anchor‖² is solved by p = anchor − ∇(½‖y − F‖²)/λ: a contraction for large λ.
            parameters = anchor
            for _ in range(12):
                moved = network.step(parameters, own, 1 / strength)
                parameters = {name: anchor[name] + moved[name] - parameters[name] for name in anchor}
            anchor = parameters
            seen.append(network(anchor))
        run = learn_in_sequence(kernels, rows, network.targets, seen[0], strength)
        found = agreement(run.shift(0), (seen[2] - seen[1])[rows[0]])
        errors.append(found.relative_error)
        assert found.correlation > 0.99
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([10, 10], rel=0.3)
