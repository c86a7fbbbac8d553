"""Losses of SAFE as pure functions (SAFE spec §6.2, §6.3). Shapes: features [B, L], weights [K, L], labels [B]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.heads import cosine_logits


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
