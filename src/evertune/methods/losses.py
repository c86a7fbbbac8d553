"""Losses as pure functions: of SAFE (SAFE spec §6.2, §6.3, §6.5), and HiDe-PET's contrastive regulariser (HiDe-PET spec
§7.2, §16.4). Shapes: features [B, L], weights [K, L], labels [B]."""

from __future__ import annotations

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
