"""What a tangent kernel predicts: how tasks disturb each other, and how well each is learned from its examples.

The learner is replaced by its tangent: near its parameters p it is F(x; p + δ) = F(x; p) + J(x) δ, with the kernel
K(x, x′) = J(x) J(x′)ᵀ. In this linear model, learning task after task by ridge regression, each pulled towards the
parameters of the task before, is solved in closed form (NTK-CL spec §3.1). That gives two kinds of numbers:

**Exact for the linear model**, up to rounding: the coefficients (3.1), the function after each task (3.2), the drift of
an earlier task (3.3), the norms of the increments, and the bound on the training error that remains. How well they
describe the learner itself is a matter of measurement: :func:`agreement`.

**Surrogates**, to compare learners and tasks by, never to certify one. The interplay gap (3.4) comes from the
Rademacher complexity of norm balls (Bennani, Doan & Sugiyama 2020, arXiv 2006.11942); its radii are read off the data
without the union bound a certificate needs. The learning curve (3.5) of kernel regression (Bordelon, Canatar & Pehlevan
2020, arXiv 2002.02561; Canatar, Bordelon & Pehlevan 2021, arXiv 2006.13198) is a mean over data sets in the limit of
many modes; it is fed with the spectrum of a sample, the tail of which is biased.

Rows: a function with o outputs at n images is a vector [n · o], image by image, the outputs of one image side by side;
N counts such rows. All is computed in float64. A ridge λ stands beside the kernel of sums, K + λI: the loss is half the
squared error, summed over rows. A penalty w · ‖p − p′‖² beside the mean loss of n images is λ = 2 · n · w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evertune.diagnostics.kernel import Spectrum
from evertune.errors import ConfigError, DataError

BIAS = 0.1
"""A mode counts as resolved while the smaller ones together shift its eigenvalue by at most this share."""


def coefficients(gram: Tensor, residuals: Tensor, strength: float) -> Tensor:
    """α = (K + λI)⁻¹ ỹ [N] (3.1), of a Gram matrix [N, N] and what is left to learn, ỹ = y − F [N].

    Raises
    ------
    ConfigError
        λ is not a positive number.
    DataError
        Shapes that do not fit, values that are not finite, or K + λI not positive definite.
    """
    if not (math.isfinite(strength) and strength > 0):
        raise ConfigError(f"ridge {strength}: give a positive number; without one the increment is not defined.")
    residuals = residuals.double()
    if gram.shape != (len(residuals), len(residuals)):
        raise DataError(f"a Gram matrix of shape {tuple(gram.shape)} does not fit {len(residuals)} residuals.")
    if not (gram.isfinite().all() and residuals.isfinite().all()):
        raise DataError("the Gram matrix or the residuals hold NaN or infinity: the learner has diverged.")
    system = _symmetric(gram)
    system.diagonal().add_(strength)
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item():
        raise DataError(
            f"the Gram matrix plus a ridge of {strength:g} is not positive definite: it is below the rounding "
            "errors of the kernel. Give a larger ridge, or compute the kernel in float64."
        )
    return torch.cholesky_solve(residuals[:, None], factor)[:, 0]


def increment_norm(gram: Tensor, alpha: Tensor) -> float:
    """‖g‖ = √(αᵀKα), the norm of the increment g = K(·, X) α, and of the step J(X)ᵀα of the parameters (§3.2)."""
    return math.sqrt(max(float(alpha @ gram.double() @ alpha), 0.0))


def norm_bound(residuals: Tensor, alpha: Tensor) -> float:
    """√(ỹᵀα) = √(ỹᵀ(K + λI)⁻¹ỹ), never below ‖g‖; and √λ times it is never below the training residual (§3.2)."""
    return math.sqrt(max(float(residuals.double() @ alpha), 0.0))


@dataclass(frozen=True)
class LinearSequence:
    """Tasks learned one after the other by the tangent model, seen at N rows.

    ``initial`` [N] is F before the first task, ``increments`` [T, N] what each task added at all rows,
    ``residuals`` and ``alphas`` its ỹ_k and α_k [N_k], ``rows`` [N_k] where its examples stand.
    """

    initial: Tensor
    increments: Tensor
    residuals: tuple[Tensor, ...]
    alphas: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]

    def after(self, task: int) -> Tensor:
        """F*_task [N], the function after that task, counted from 0; −1 is before the first (3.2)."""
        return self.initial + self.increments[: task + 1].sum(0)

    def shift(self, task: int) -> Tensor:
        """Σ_{k > task} K_k(X_task, X_k) α_k [N_task]: how later tasks move F at the task's examples (3.3)."""
        return self.increments[task + 1 :, self.rows[task]].sum(0)


def learn_in_sequence(
    kernels: Sequence[Tensor], rows: Sequence[Tensor], targets: Tensor, initial: Tensor, strength: float
) -> LinearSequence:
    """Kernel ridge regression task after task, each started from the solution before it (3.1), (3.2).

    Parameters
    ----------
    kernels
        For task k the kernel K_k(X, X_k) [N, N_k] between all rows and its own, at the parameters where it begins. A
        kernel that stays the same is the columns of one Gram matrix.
    rows
        For task k the indices [N_k] of its rows. Rows of no task are only watched.
    targets, initial
        y and F before the first task, both [N].
    strength
        λ.
    """
    targets, current = targets.double(), initial.double()
    increments: list[Tensor] = []
    residuals: list[Tensor] = []
    alphas: list[Tensor] = []
    for kernel, own in zip(kernels, rows, strict=True):
        if kernel.shape != (len(current), len(own)):
            raise DataError(
                f"the kernel of task {len(alphas)} has shape {tuple(kernel.shape)}, not {(len(current), len(own))}."
            )
        residual = targets[own] - current[own]
        alpha = coefficients(kernel[own], residual, strength)
        increment = kernel.double() @ alpha
        current = current + increment
        increments.append(increment)
        residuals.append(residual)
        alphas.append(alpha)
    return LinearSequence(initial.double(), torch.stack(increments), tuple(residuals), tuple(alphas), tuple(rows))


@dataclass(frozen=True)
class Agreement:
    """How a prediction fits what was measured.

    ``correlation`` is Pearson's, None where one side is constant; ``relative_error`` is ‖predicted − measured‖ over
    ‖measured‖, None where nothing moved.
    """

    correlation: float | None
    relative_error: float | None


def agreement(predicted: Tensor, measured: Tensor) -> Agreement:
    """D6: the drift that (3.3) predicts against the one measured, of the same shape."""
    if predicted.shape != measured.shape:
        raise DataError(f"predicted {tuple(predicted.shape)} and measured {tuple(measured.shape)} drift do not match.")
    a, b = predicted.double().flatten(), measured.double().flatten()
    size, error = b.norm(), (a - b).norm()
    a, b = a - a.mean(), b - b.mean()
    spread = a.norm() * b.norm()
    return Agreement(float(a @ b / spread) if spread > 0 else None, float(error / size) if size > 0 else None)


def interplay_term(norms: Sequence[float], trace: float, images: int) -> float:
    """D7: Σ_k ‖g_k‖/n · √tr K, over the increments of all tasks, with K the Gram block of the n images of one task."""
    return sum(norms) * math.sqrt(trace) / images


def interplay_proxy(residuals: Tensor, alpha: Tensor, images: int) -> float:
    """D7 without a second kernel: √(ỹᵀ(K + λI)⁻¹ỹ / n), where a task's own kernel has tr K ≈ n."""
    return norm_bound(residuals, alpha) / math.sqrt(images)


def interplay_gap(
    norms: Sequence[float],
    trace: float,
    images: int,
    outputs: int,
    *,
    lipschitz: float = 1.0,
    ceiling: float = 1.0,
    failure: float = 0.05,
) -> tuple[float, float]:
    """What (3.4) adds to the risk of the final function on one task's images, complexity and deviation: a surrogate.

    Parameters
    ----------
    norms
        ‖g_k‖ of every task's increment.
    trace, images, outputs
        tr K(X, X) over all n · o rows of the task, n, and o. From two outputs on the complexity takes the factor √2 of
        vector contraction.
    lipschitz, ceiling
        ρ and c of the loss: |ℓ(u) − ℓ(v)| ≤ ρ‖u − v‖ and 0 ≤ ℓ ≤ c.
    failure
        δ, the probability left over.

    Notes
    -----
    The norms depend on the data and no union bound over them is taken; nor is the kernel independent of the data where
    it was measured on a trained learner.
    """
    if images < 1 or not 0 < failure < 1:
        raise ConfigError(f"interplay gap: images={images} must be at least 1, failure={failure} between 0 and 1.")
    contraction = math.sqrt(2.0) if outputs > 1 else 1.0
    complexity = 2.0 * lipschitz * contraction * interplay_term(norms, trace, images)
    return complexity, 3.0 * ceiling * math.sqrt(math.log(2.0 / failure) / (2.0 * images))


@dataclass(frozen=True)
class CurvePoint:
    """(3.5) at some number of samples: the effective ridge κ, γ in [0, 1), the expected squared error of one output."""

    kappa: float
    gamma: float
    error: float


def learning_curve(eigenvalues: Tensor, powers: Tensor, samples: float, strength: float) -> CurvePoint:
    """The expected error of kernel ridge regression from so many samples (3.5).

    Parameters
    ----------
    eigenvalues, powers
        η_ρ of the kernel under the distribution of inputs, and a_ρ² of the target in its eigenfunctions, both [R].
    samples
        n; from none the error is Σ a².
    strength
        λ, beside the sums over samples: K + λI.

    Notes
    -----
    Against the mean over Gaussian features on power-law spectra of 50 modes it is 3 to 12 % too small at 10 to 40
    samples, the more so the fewer modes carry the target; the difference shrinks with the number of samples.
    """
    eta, power = eigenvalues.double(), powers.double()
    if not (math.isfinite(strength) and strength > 0):
        raise ConfigError(f"ridge {strength}: a learning curve needs a positive number; take a small one for none.")
    if eta.shape != power.shape or eta.ndim != 1 or not (eta.isfinite() & power.isfinite()).all():
        raise DataError(
            f"eigenvalues {tuple(eta.shape)} and powers {tuple(power.shape)}: give finite numbers, mode by mode."
        )
    if (eta < 0).any() or (power < 0).any() or samples < 0:
        raise DataError("eigenvalues, powers and the number of samples cannot be negative.")
    kappa = effective_ridge(eta, samples, strength)
    known = samples * eta + kappa
    # 1 − γ by the equation for κ, without the cancellation that small ridges would suffer.
    slack = strength / kappa + float((kappa * eta / known.square()).sum())
    error = float((power * (kappa / known).square()).sum()) / slack
    return CurvePoint(kappa, float((samples * (eta / known).square()).sum()), error)


def effective_ridge(eigenvalues: Tensor, samples: float, strength: float) -> float:
    """κ, the one positive root of κ = λ + Σ κη/(nη + κ) (3.5), as exactly as float64 allows.

    κ − λ − Σ κη/(nη + κ) is convex in κ, negative at 0 and not negative at λ + Ση. Newton's steps from there come down
    to the root without ever passing it, whatever the spectrum; they end where rounding stops the descent.
    """
    eta = eigenvalues.double()
    kappa = strength + float(eta.sum())
    while True:
        known = samples * eta + kappa
        slope = 1.0 - float((samples * (eta / known).square()).sum())
        lower = (strength + float((eta * (kappa / known).square()).sum())) / slope if slope > 0 else kappa
        if not lower < kappa:
            return kappa
        kappa = lower


@dataclass(frozen=True)
class IntrinsicTerm:
    """D8: what (3.5) expects of a task from its Gram matrix.

    ``error`` is the expected squared error per output, ``power`` the mean square of the target, which is the error of
    learning nothing, ``kappa`` and ``gamma`` the state of the curve. ``resolved`` modes have an eigenvalue that the
    rest of the spectrum shifts by at most 10 %; ``unresolved_power`` is the share of the target in the other modes, and
    ``biased`` says that there are any: their eigenvalues and powers are then those of the sample, not of the task.
    """

    error: float
    power: float
    kappa: float
    gamma: float
    resolved: int
    unresolved_power: float
    biased: bool


def intrinsic_term(gram: Tensor, targets: Tensor, strength: float) -> IntrinsicTerm:
    """D8, of a Gram matrix [N, N] and targets [N]: η_ρ ≈ eig(K)/N and a_ρ² ≈ (u_ρᵀy)²/N in (3.5), at N samples.

    A row is a sample: several outputs are one function of the image and the number of the output, which is exact where
    outputs do not share a kernel and gives the error of one output.

    Notes
    -----
    The smaller eigenvalues of a sample are not those of the kernel: all modes beyond a given one add their sum to it,
    spread over N. Modes are resolved as long as that is at most :data:`BIAS` of the eigenvalue.
    """
    rows = len(targets)
    values, vectors = torch.linalg.eigh(_symmetric(gram))
    eta = values.flip(0).clamp_min(0) / rows
    power = (vectors.flip(1).T @ targets.double()).square() / rows
    point = learning_curve(eta, power, rows, strength)
    beyond = eta.sum() - eta.cumsum(0)
    rounding = rows * torch.finfo(eta.dtype).eps * eta.sum()
    resolved = int((beyond <= BIAS * rows * eta + rounding).long().cumprod(0).sum())
    whole, tail = float(power.sum()), float(power[resolved:].sum())
    return IntrinsicTerm(
        error=point.error,
        power=whole,
        kappa=point.kappa,
        gamma=point.gamma,
        resolved=resolved,
        unresolved_power=tail / whole if whole > 0 else 0.0,
        biased=resolved < rows,
    )


def target_alignment(gram: Tensor, targets: Tensor) -> float:
    """D5: yᵀKy / (‖K‖_F ‖y‖²), in [−1, 1], of K [N, N] and y [N]; 0 where one of them is zero."""
    gram, y = gram.double(), targets.double()
    size = gram.norm() * y.square().sum()
    return float(y @ gram @ y / size) if size > 0 else 0.0


def sample_gain(stacked: Tensor, images: int, parts: int) -> float:
    """D9: the effective rank of the Gram of several parts' scores side by side over that of the first part alone.

    As many as there are parts, were they independent samples of one scale; 1 where the further ones bring nothing new;
    less where one of them has much larger gradients and little in them.

    Parameters
    ----------
    stacked
        K [n·P·o, n·P·o] of :class:`Tangent` with these ``parts``: rows by image, by part, by output.
    images, parts
        n and P.
    """
    if parts < 1 or images < 1 or len(stacked) % (images * parts) or stacked.shape != (len(stacked), len(stacked)):
        raise DataError(f"a Gram matrix of shape {tuple(stacked.shape)} does not fit {images} images × {parts} parts.")
    outputs = len(stacked) // (images * parts)
    blocks = stacked.view(images, parts, outputs, images, parts, outputs)
    first = Spectrum.of(blocks[:, 0, :, :, 0].reshape(images * outputs, images * outputs)).effective_rank
    if not first:
        raise DataError("a Gram matrix of zeros has no effective rank: no parameter reaches the scores of this part.")
    return Spectrum.of(stacked).effective_rank / first


def gap_terms(
    gram: Tensor, tasks: Tensor, targets: Tensor, scores: Tensor, strength: float, *, failure: float = 0.05
) -> dict[str, Any]:
    """All gap terms of a set of images of several tasks, as numbers that JSON can hold.

    The tangent model with this one kernel starts from ``scores`` and learns the tasks in the order of their numbers.

    Parameters
    ----------
    gram
        K [n·o, n·o] of all images, rows by image and then by output: row = image · o + output.
    tasks
        Number [n] of the task of each image, in any order; learned in ascending order.
    targets, scores
        y and F at the images, [n, o], on the same output directions. The scores of the learner itself ask what learning
        the tasks once more, in order, would do; zeros ask the same from nothing.
    strength
        λ of (3.1), the same for all tasks.
    failure
        δ of (3.4).

    Returns
    -------
    dict
        ``strength``, ``outputs``, ``failure``, and ``tasks``, a list with one dict per task in order:

        =====================  =========================================================================================
        task, images           its number and how many images it has
        trace                  tr K over its rows
        alignment              D5, of its targets
        norm, norm_bound       ‖g‖ of its increment and √(ỹᵀα) above it
        residual               √(mean square per row) of what its training leaves, and
        residual_bound         what λ ỹᵀα allows it at most
        moved_by               for every task k, the root mean square of g_k at this task's rows
        drift                  root mean square of (3.3): how far the later tasks together move it
        interplay              D7
        interplay_proxy        its cheap form
        risk                   mean over its images of min(‖F*_T − y‖, 1), the loss used for (3.4): ρ = c = 1
        complexity, deviation  the two parts of (3.4) added to it; with the risk a surrogate, no certificate
        intrinsic              :class:`IntrinsicTerm` (D8) of what was left to learn, ỹ, when its turn came
        =====================  =========================================================================================

    Raises
    ------
    DataError
        Shapes that do not fit, or values that are not finite.
    ConfigError
        λ or δ out of range.
    """
    images, outputs = _checked(gram, tasks, targets, scores)
    gram, wanted = _symmetric(gram), targets.double().flatten()
    numbers = torch.unique(tasks)
    every = torch.arange(images * outputs, device=gram.device).view(images, outputs)
    rows = [every[(tasks == number).to(gram.device)].flatten() for number in numbers]
    run = learn_in_sequence([gram[:, own] for own in rows], rows, wanted, scores.flatten(), strength)
    blocks = [gram[own][:, own] for own in rows]
    norms = [increment_norm(block, alpha) for block, alpha in zip(blocks, run.alphas, strict=True)]
    final = run.after(len(rows) - 1) - wanted

    described = []
    for k, (own, block, residual, alpha) in enumerate(zip(rows, blocks, run.residuals, run.alphas, strict=True)):
        count, trace = len(own) // outputs, float(block.trace())
        complexity, deviation = interplay_gap(norms, trace, count, outputs, failure=failure)
        described.append(
            {
                "task": int(numbers[k]),
                "images": count,
                "trace": trace,
                "alignment": target_alignment(block, wanted[own]),
                "norm": norms[k],
                "norm_bound": norm_bound(residual, alpha),
                "residual": _root_mean_square(strength * alpha),
                "residual_bound": math.sqrt(strength / len(own)) * norm_bound(residual, alpha),
                "moved_by": [_root_mean_square(increment[own]) for increment in run.increments],
                "drift": _root_mean_square(run.shift(k)),
                "interplay": interplay_term(norms, trace, count),
                "interplay_proxy": interplay_proxy(residual, alpha, count),
                "risk": float(final[own].view(count, outputs).norm(dim=1).clamp_max(1.0).mean()),
                "complexity": complexity,
                "deviation": deviation,
                "intrinsic": asdict(intrinsic_term(block, residual, strength)),
            }
        )
    return {"strength": strength, "outputs": outputs, "failure": failure, "tasks": described}


def _checked(gram: Tensor, tasks: Tensor, targets: Tensor, scores: Tensor) -> tuple[int, int]:
    """Images and outputs, where everything fits them."""
    if targets.ndim != 2 or targets.shape != scores.shape or not targets.numel():
        raise DataError(
            f"targets {tuple(targets.shape)} and scores {tuple(scores.shape)} must both be images by outputs."
        )
    images, outputs = targets.shape
    if gram.shape != (images * outputs, images * outputs):
        raise DataError(
            f"a Gram matrix of shape {tuple(gram.shape)} does not fit {images} images with {outputs} outputs."
        )
    if tasks.shape != (images,):
        raise DataError(f"task numbers of shape {tuple(tasks.shape)} given for {images} images: one each is needed.")
    return images, outputs


def _symmetric(gram: Tensor) -> Tensor:
    """(K + Kᵀ)/2 in float64, a copy."""
    gram = gram.double()
    return (gram + gram.T) / 2


def _root_mean_square(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))
