"""Losses as pure functions: of SAFE (SAFE spec §6.2, §6.3, §6.5), of tasks that train on their own classes (HiDe-PET
spec §7.1; SLCA++), HiDe-PET's contrastive regulariser (HiDe-PET spec §7.2, §16.4), TUNA's orthogonality, and NTK-CL's
regularisers (NTK-CL spec §5). Shapes: features [B, L], weights [K, L], labels [B]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.heads import cosine_logits
from evertune.statistics import CHUNK


def transfer(slow: Tensor, plain: Tensor, *, per_feature: bool = False) -> tuple[Tensor, Tensor]:
    """(L_diag, L_rdn) of the cross-correlation M = SᵀP / B [L, L] between the learner and the pre-trained model.

    L_diag = Σ_i (M_ii − 1)²; L_rdn = Σ_{i≠j} M_ij². Rows are normalised per sample (SAFE as released, D4), or columns
    are standardised over the batch with ``per_feature``. M is never formed: its squared norm is the sum of the product
    of the two B×B similarity matrices, over B².
    """
    s, p = (_standardise(x) if per_feature else F.normalize(x, dim=1) for x in (slow, plain))
    batch = len(s)
    diagonal = (s * p).sum(0) / batch
    norm = ((s @ s.T) * (p @ p.T)).sum() / batch**2
    return (diagonal - 1).square().sum(), norm - diagonal.square().sum()


def _standardise(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-6)


def alignment(fast: Tensor, slow: Tensor, *, reduction: str = "mean") -> Tensor:
    """L_cos = 1 − cos(φ_f(x), φ_s(x)), over the batch as a mean, or as the released sum (T8)."""
    distance = 1 - F.cosine_similarity(fast, slow, dim=1, eps=1e-12)
    return distance.sum() if reduction == "sum" else distance.mean()


def cross_classification(samples: Tensor, prototypes: Tensor, labels: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """One learner's cosine head classifies the other's prototypes of known classes and features of the batch.

    L_s2f: ``samples`` φ_s(x), ``prototypes`` W_s (both constant), ``weight`` W_f. L_f2s: ``samples`` φ_f(x),
    ``prototypes`` W_f, ``weight`` W_s (constant). The mean runs over the K_known + B rows.
    """
    rows = torch.cat([prototypes, samples])
    targets = torch.cat([torch.arange(len(prototypes), device=labels.device), labels])
    return F.cross_entropy(cosine_logits(rows, weight, sigma), targets)


def entropy(logits: Tensor) -> Tensor:
    """E = −Σ_c p_c ln(p_c + 1e-9) of the softmax p of ``logits`` [B, K], in nats, [B] (§6.5)."""
    p = logits.softmax(1)
    return -(p * (p + 1e-9).log()).sum(1)


def entropy_weights(*logits: Tensor, gamma: float) -> Tensor:
    """α = softmax over learners of −γ·E, [learners, B]."""
    return (-gamma * torch.stack([entropy(z) for z in logits])).softmax(0)


def aggregate(*logits: Tensor, gamma: float) -> Tensor:
    """Σ_learners α · z: logits mixed sample by sample, the more certain learner counting more."""
    weights = entropy_weights(*logits, gamma=gamma)
    return (weights[:, :, None] * torch.stack(logits)).sum(0)


def contrastive(features: Tensor, centres: Tensor, constant: Tensor, *, tau: float = 0.8) -> Tensor:
    """InfoNCE over M = [μ_1 … μ_K; h_1 … h_B], each row its own positive: the mean over K + B rows of CE(M Mᵀ/τ, row).

    Neither normalised nor aware of labels: a hard margin on products, zero unless one comes near a row's own. The
    ``centres`` μ [K, L] of earlier classes are constants, and ``constant`` [K] is :func:`centre_constants` of them, so
    that only products with the batch are computed. Own products are subtracted first: float32 then bears thousands.
    """
    similarity = features @ features.T / tau
    own = similarity.diagonal()
    rows = (similarity - own[:, None]).logsumexp(1)
    if not len(centres):
        return rows.mean()
    shift = own.detach()
    crossed, pulled = _Crossed.apply(features, centres.detach().to(features), shift, tau)
    rows = torch.logaddexp(rows, crossed + (shift - own))  # zero in value; the shift's part of the gradient
    return torch.cat([torch.logaddexp(constant.to(features), pulled), rows]).mean()


class _Crossed(torch.autograd.Function):
    """log Σ_k exp((h_b·μ_k)/τ − s_b), [B], and log Σ_b exp((h_b·μ_k − μ_k·μ_k)/τ), [K], for shifts s [B].

    With thousands of centres these two sums are what the loss costs: here each product is exponentiated once for each
    of them, and both exponentials are kept for the gradient. Exponents end at −80: beside the largest, which is 0, that
    is nothing, and exponentials of numbers that underflow are ten times slower.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, centres: Tensor, shift: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        products = (features / tau) @ centres.T - shift[:, None]
        top = products.amax(1, keepdim=True)
        across = (products - top).clamp_min_(-80).exp_()
        products += shift[:, None] - centres.square().sum(1) / tau
        peak = products.amax(0)
        down = products.sub_(peak).clamp_min_(-80).exp_()
        sums, totals = across.sum(1), down.sum(0)
        ctx.save_for_backward(centres, across, down, sums, totals)
        ctx.tau = tau
        return top[:, 0] + sums.log(), peak + totals.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        centres, across, down, sums, totals = ctx.saved_tensors
        weights = (across * (gradients[0] / sums)[:, None]).addcmul_(down, gradients[1] / totals)
        return weights @ centres / ctx.tau, None, None, None


def centre_constants(centres: Tensor, tau: float = 0.8) -> Tensor:
    """log Σ_j exp((μ_k·μ_j − μ_k·μ_k)/τ) of each centre [K, L], [K]: its row of the loss, were there no batch."""
    exact = centres.detach().double()
    parts = []
    for rows in torch.split(exact, CHUNK):
        own = rows.square().sum(1, keepdim=True)
        parts.append(((rows @ exact.T - own) / tau).logsumexp(1))
    return torch.cat(parts).to(centres.dtype)


def task_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropy over the columns of a task's ``classes`` alone (HiDe-PET spec §7.1); ``logits`` [B, C] are those.

    Leaving the other columns out has the value and the gradient of setting them to −∞, and cannot turn into
    not-a-number under mixed precision (trap 9).
    """
    return F.cross_entropy(logits, torch.searchsorted(torch.tensor(classes, device=labels.device), labels))


def masked_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """:func:`task_cross_entropy`, given ``logits`` [B, K] of all classes."""
    return task_cross_entropy(logits[:, list(classes)], labels, classes)


def reverse_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """−Σ_c p_c ln q_c over a task's classes, for the softmax p and a one-hot q whose zeros are 1e-4: mean of 9.21 (1 −
    p_y). With the cross-entropy it makes the symmetric one (SLCA++; Wang et al., ICCV 2019). The
    ``logits`` [B, C] are those of ``classes``.
    """
    own = torch.searchsorted(torch.tensor(classes, device=labels.device), labels)
    return -math.log(1e-4) * (1 - logits.softmax(1).gather(1, own[:, None])).mean()


def row_means(matrices: Sequence[Tensor]) -> Tensor:
    """The mean over each matrix [out, r] of its rows at length 1, [S, r]; a row of zeros stays one, as a constant."""
    return torch.stack([F.normalize(m[m.any(1)], dim=1).sum(0) / len(m) for m in matrices])


def separation(current: Tensor, earlier: Tensor) -> Tensor:
    """L_orth of TUNA, as released: Σ_i mean_s |ū_s · v̄_is| of :func:`row_means` [S, r] and those of earlier tasks
    [n, S, r]. Each product is the mean cosine of all pairs of rows, so it is 0 where these cancel, too.
    """
    return torch.einsum("sr,isr->is", current, earlier).abs().mean(1).sum()


def dissimilarity(features: Tensor, labels: Tensor, prototypes: Tensor, *, tau: float = 0.1) -> Tensor:
    """L_dis: supervised contrastive over the batch, with prototypes [n, L] of other classes as further negatives.

    For s = cos/τ: −mean_i 1/|P(i)| Σ_{j∈P(i)} log(exp s_ij / Σ_{a≠i} exp s_ia), a over batch and prototypes. A sample
    alone in its class counts the log of the mean exp(s) over the prototypes instead, or nothing where there are none.
    """
    batch = len(features)
    s, positive = _similarities(features, labels, prototypes, tau)
    log_p = s[:, :batch] - s.logsumexp(1, keepdim=True)
    count = positive.sum(1)
    together = -torch.where(positive, log_p, 0).sum(1) / count.clamp_min(1)
    alone = s[:, batch:].logsumexp(1) - math.log(len(prototypes)) if len(prototypes) else torch.zeros_like(together)
    return torch.where(count > 0, together, alone).mean()


def dissimilarity_released(features: Tensor, labels: Tensor, prototypes: Tensor, *, tau: float = 0.1) -> Tensor:
    """−I of the released code: minimised, it pushes samples of a class apart (T2); 0 for a batch without pairs (T6).

    I = −log Σ_{i≠j alike} exp s_ij + mean_i log Σ_{j≠i} exp s_ij, where the prototypes are anchors too.
    """
    batch = len(features)
    s, positive = _similarities(torch.cat([features, prototypes]), labels, prototypes[:0], tau)
    if not positive.any():
        return features.new_zeros(())
    return s[:batch, :batch][positive].logsumexp(0) - s.logsumexp(1).mean()


def _similarities(features: Tensor, labels: Tensor, prototypes: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """cos/τ of rows with rows and prototypes [B, B + n], none with itself; and which labelled rows are alike."""
    rows, others = F.normalize(features, dim=1), F.normalize(prototypes, dim=1).to(features)
    own = torch.eye(len(rows), len(rows) + len(others), dtype=torch.bool, device=rows.device)
    s = (rows @ torch.cat([rows, others]).T / tau).masked_fill(own, -1e4)  # finite, also where nothing is left
    alike = labels[:, None] == labels
    return s, alike & ~own[: len(labels), : len(labels)]


def old_directions(prototypes: Tensor, rank: int) -> Tensor:
    """U [L, k], the k = min(``rank``, rank of Φ) main directions of the normalised rows of Φ, orthonormal."""
    strength: Tensor
    rows: Tensor
    _, strength, rows = torch.linalg.svd(F.normalize(prototypes.double(), dim=1), full_matrices=False)
    alive = int((strength > 1e-6 * strength.amax().clamp_min(1e-12)).sum()) if len(strength) else 0
    return rows[: min(rank, alive)].T.to(prototypes.dtype)


def overlap(directions: Tensor, *features: Tensor) -> Tensor:
    """L_orth: mean_b Σ ‖Uᵀẑ_b‖² over kinds of features, each in [0, 1]; U [L, k] spans the old prototypes."""
    return torch.stack([(F.normalize(z, dim=1) @ directions).square().sum(1).mean() for z in features]).sum()


def overlap_released(residual: Tensor, *features: Tensor) -> Tensor:
    """Σ of all coordinates of (I − UUᵀ)ẑ, over the batch, as released: odd in ẑ, no measure of orthogonality (T3).

    ``residual`` [L] is :func:`released_residual`, (I − UUᵀ)·1.
    """
    return torch.stack([(F.normalize(z, dim=1) @ residual).sum() for z in features]).sum()


def released_residual(prototypes: Tensor, rank: int) -> Tensor:
    """(I − UUᵀ)·1, with U padded to ``rank`` by arbitrary directions where Φ has fewer. The current session's rows
    that the release has among those of Φ are still zero and change nothing (T4)."""
    U: Tensor = torch.linalg.svd(F.normalize(prototypes.double(), dim=1).T, full_matrices=True).U[:, :rank]
    return (1 - U @ U.sum(0)).to(prototypes.dtype)
