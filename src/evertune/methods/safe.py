"""SAFE, slow and fast parameter-efficient tuning (Zhao et al., NeurIPS 2024, arXiv 2411.02175; SAFE spec §6, §7)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, RidgeHead, project, random_projection
from evertune.methods.config import option, require
from evertune.methods.first_session import ZERO_PROMPTS
from evertune.methods.losses import aggregate, alignment, cross_classification, transfer
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.ridge import RIDGE, RidgeConfig
from evertune.methods.training import OURS_LORA, parameters_of
from evertune.statistics import Gram, TaskFeatures
from evertune.tuning import Tuning

PAPER: dict[str, Any] = {"lambda_cos": 24.0, "lambda_cc": 1.0}
"""CIFAR-100. Its transfer weights, 5e-10 and 5e-9, are a numerical no-op (D5) and left at 0 but in ``released``."""
IMAGENET_A: dict[str, Any] = {
    "tuning": "ssf", "lambda_diag": 0.01, "lambda_rdn": 10.0, "lambda_cos": 48.0, "lambda_cc": 0.0, "gamma": 100.0
}  # fmt: skip
RELEASED: dict[str, Any] = {
    "new_rows": "zeros", "statistics": "shared", "inference_scale": "trained", "cos_reduction": "sum",
    "ridge_scale": "none", "ridge_split": "shuffled", "decay": "all", "by_kind": ZERO_PROMPTS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SAFEConfig(RidgeConfig):
    """Options of SAFE. Names in brackets refer to the deviations (D) and traps (T) of the specification."""

    follow_epochs: int = option(15, "epochs of the fast learner in later sessions")
    follow_horizon: int = option(20, "epochs after which its cosine schedule would reach 0 (D9)")
    follow_rate: float | None = option(None, "its learning rate, if not that of the first session")
    follow_optimizer: Literal["same", "sgd", "adam"] = option("same", "its optimiser: sgd, adam, or as in the first")
    sigma_init: float = option(10.0, "scale of the cosine heads at the start")
    lambda_diag: float = option(0.0, "weight of L_diag, the transfer loss's diagonal")
    lambda_rdn: float = option(0.0, "weight of L_rdn, its redundancy term")
    transfer_norm: Literal["sample", "feature"] = option("sample", "normalisation inside the transfer loss (D4)")
    lambda_cos: float = option(24.0, "weight of the alignment L_cos of fast to slow features")
    cos_reduction: Literal["mean", "sum"] = option("mean", "L_cos over the batch; the released sum needs λ/B (T8)")
    lambda_cc: float = option(1.0, "weight of the cross-classification L_s2f + L_f2s")
    new_rows: Literal["imprint", "zeros"] = option("imprint", "head rows of new classes; zeros: released (D1, D2, T1)")
    statistics: Literal["separate", "shared"] = option("separate", "one Gram per learner, or one for both (D3)")
    gamma: float = option(1.0, "γ of the entropy weights")
    inference_scale: Literal["fixed", "trained"] = option(
        "fixed", "scale of fast logits: fixed, or the trained σ_f (T7)"
    )
    scale: float | None = option(None, "fixed scale of the logits at inference, if not sigma_init")

    presets = {  # noqa: RUF012
        "evertune": OURS_LORA
        | RIDGE
        | {"follow_epochs": 3, "follow_horizon": 3, "follow_rate": 1e-3, "lambda_cos": 1.0},
        "paper": PAPER,
        "paper-imagenet-a": IMAGENET_A,
        "released": PAPER | RELEASED | {"lambda_cos": 0.5, "lambda_diag": 5e-10, "lambda_rdn": 5e-9},
        "released-imagenet-a": IMAGENET_A | RELEASED | {"lambda_cos": 1.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_diag", "lambda_rdn", "lambda_cos", "lambda_cc", "gamma"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        require(self.follow_epochs >= 0, f"follow_epochs={self.follow_epochs} must not be negative.")
        require(self.follow_horizon >= 1, f"follow_horizon={self.follow_horizon} must be at least 1.")
        for name in ("follow_rate", "scale"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive, or none.")


@register
class SAFE(Method):
    """A slow learner trained once and frozen, a fast learner that follows every task under its guidance, and a mixture
    of their ridge heads by entropy."""

    name = "safe"
    paper = (
        "Linglan Zhao, Xuerui Zhang, Ke Yan, Shouhong Ding, Weiran Huang. *SAFE: Slow and Fast Parameter-Efficient "
        "Tuning for Continual Learning with Pre-Trained Models.* NeurIPS 2024. [arXiv "
        "2411.02175](https://arxiv.org/abs/2411.02175)"
    )
    config_type = SAFEConfig
    config: SAFEConfig
    of_data: ClassVar[dict[str, str]] = {"R": "nothing: random numbers", "known": "nothing: bookkeeping"}
    R: Tensor
    known: Tensor

    def __init__(self, config: SAFEConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.slow = config.fresh(shape, generators.init)
        self.fast = copy.deepcopy(self.slow)
        self.head_slow, self.head_fast = CosineHead(width, config.sigma_init), CosineHead(width, config.sigma_init)
        self.register_buffer("R", random_projection(width, config.features, generators.init))
        self.register_buffer("known", torch.zeros((), dtype=torch.long))  # K_{t−1} while task t is learned
        self.task_slow, self.task_fast = TaskFeatures(), TaskFeatures()
        self.gram_fast = Gram()
        self.gram_slow = Gram() if config.statistics == "separate" else None
        self.ridge_slow, self.ridge_fast = RidgeHead(), RidgeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        c = self.config
        if task.index == 0:  # §6.2
            return [
                Solve("draw head", lambda: self.head_slow.draw(task.seen, self.generators.init)),
                Optimise("slow learner", self.slow_loss, lambda: parameters_of(self.slow, self.head_slow), c.recipe()),
                Solve("freeze slow learner", self._freeze),
                Collect("slow statistics", self._collect_slow),
                Solve("ridge heads", self._solve_first),
            ]
        recipe = c.recipe(
            epochs=c.follow_epochs,
            horizon=c.follow_horizon,
            rate=c.follow_rate,
            optimizer=None if c.follow_optimizer == "same" else c.follow_optimizer,
        )
        imprints = c.new_rows == "imprint" and task.new
        return [  # §6.3
            Collect("slow statistics", self._collect_both if imprints else self._collect_slow),
            Solve("grow heads", lambda: self._grow(task)),
            Optimise("fast learner", self.fast_loss, lambda: parameters_of(self.fast, self.head_fast), recipe),
            Collect("fast statistics", self._collect_fast),
            Solve("ridge heads", self._solve),
        ]

    # -- losses ------------------------------------------------------------------------------------------------------

    def slow_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """L = L_cls + λ_diag L_diag + λ_rdn L_rdn; without transfer weights the plain model is not run."""
        c, u = self.config, batch.passes(self.slow)
        terms = {"classification": F.cross_entropy(self.head_slow(u), batch.labels)}
        if c.lambda_diag or c.lambda_rdn:
            diagonal, redundancy = transfer(u, batch.passes(), per_feature=c.transfer_norm == "feature")
            terms |= {"diagonal": c.lambda_diag * diagonal, "redundancy": c.lambda_rdn * redundancy}
        return terms

    def fast_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """L = L_cls + λ_cos L_cos + λ_cc (L_s2f + L_f2s), all from one forward of each learner (T13)."""
        c, y = self.config, batch.labels
        v = batch.passes(self.fast)
        terms = {"classification": F.cross_entropy(self.head_fast(v), y)}
        if not c.lambda_cos and not c.lambda_cc:
            return terms
        u = batch.passes(self.slow)
        if c.lambda_cos:
            terms["alignment"] = c.lambda_cos * alignment(v, u, reduction=c.cos_reduction)
        if c.lambda_cc:
            W_s, W_f, known = self.head_slow, self.head_fast, int(self.known)
            s2f = cross_classification(u, W_s.weight[:known], y, W_f.weight, W_f.sigma)
            f2s = cross_classification(v, W_f.weight[:known], y, W_s.weight, W_s.sigma)
            terms |= {"slow to fast": c.lambda_cc * s2f, "fast to slow": c.lambda_cc * f2s}
        return terms

    # -- between the losses ------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        """Both learners part here: the slow one never changes again (T2, T12). The scales start anew (§6.6)."""
        self.head_slow.sigma.fill_(self.config.sigma_init)
        self.fast.load_state_dict(self.slow.state_dict())
        self.head_fast.load_state_dict(self.head_slow.state_dict())
        self.restored()

    def restored(self) -> None:
        if self.head_fast.classes:
            self.slow.freeze()
            self.head_slow.requires_grad_(False)

    def _grow(self, task: TaskInfo) -> None:
        """Rows of W_s from slow and of W_f from fast features of the new classes (D1, D2); none for a new domain."""
        self.task_slow.close()
        self.task_fast.close()
        for head, features in ((self.head_slow, self.task_slow), (self.head_fast, self.task_fast)):
            if self.config.new_rows == "imprint" and task.new:
                head.imprint(features.means(task.new))
            else:
                head.grow(head.weight.new_zeros(len(task.new), self.width))
        self.task_fast.clear()
        self.known.fill_(task.known)

    def _collect_slow(self, batch: Batch) -> None:
        self.task_slow.add(batch.passes(self.slow), batch.labels)

    def _collect_both(self, batch: Batch) -> None:
        self._collect_slow(batch)
        # In the second session the fast learner is still the slow one, so one pass serves both.
        self.task_fast.add(batch.passes(self.slow if self.tasks_seen == 1 else self.fast), batch.labels)

    def _collect_fast(self, batch: Batch) -> None:
        self.task_fast.add(batch.passes(self.fast), batch.labels)

    # -- ridge heads (§6.4) and their mixture (§6.5) -----------------------------------------------------------------

    def _solve_first(self) -> None:
        """The learners are equal, so one head serves both; with shared statistics every example counts twice (D3)."""
        self.task_slow.close()
        if self.gram_slow is None:
            self.task_fast.features, self.task_fast.labels = self.task_slow.features, self.task_slow.labels
            self._solve()
        else:
            self._fit(self.task_slow, self.gram_slow, self.ridge_slow)
            self.gram_fast.load_state_dict(self.gram_slow.state_dict())
            self.ridge_fast.load_state_dict(self.ridge_slow.state_dict())

    def _solve(self) -> None:
        """Fast, then slow; with separate statistics the order is irrelevant."""
        self._fit(self.task_fast, self.gram_fast, self.ridge_fast)
        self._fit(self.task_slow, self.gram_slow or self.gram_fast, self.ridge_slow)

    def _fit(self, task: TaskFeatures, gram: Gram, ridge: RidgeHead) -> None:
        ridge.fit(task, gram, self.R, self.config.ridge, self.generators.sampling)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        c = self.config
        sigma = c.scale if c.scale is not None else c.sigma_init
        slow = sigma * self.ridge_slow(project(passes(self.slow), self.R))
        if self.tasks_seen <= 1 and c.statistics == "separate":
            return {"mixture": slow, "slow": slow, "fast": slow}
        scale = self.head_fast.sigma if c.inference_scale == "trained" else sigma
        fast = scale * self.ridge_fast(project(passes(self.fast if self.tasks_seen > 1 else self.slow), self.R))
        return {"mixture": aggregate(fast, slow, gamma=c.gamma), "slow": slow, "fast": fast}

    def forget(self, classes: Sequence[int]) -> list[str]:
        parts = (self.head_slow, self.head_fast, self.gram_fast, self.gram_slow, self.ridge_slow, self.ridge_fast)
        for part in filter(None, parts):
            part.drop(classes)
        self.known -= sum(c < int(self.known) for c in classes)
        return [
            f"The slow learner ({self.slow.kind}) was trained on the first task and the fast one on every task. Both "
            "stay as they are; so do the head rows of other classes, which were trained beside these.",
            self.gram_fast.stays,
            "The scores of the slow and of the fast learner stay what they were. Their mixture weighs them by an "
            "entropy over all classes, so it changes a little where there are fewer.",
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (self.slow, self.fast) if self.tasks_seen > 1 else (self.slow,)

    def describe(self) -> dict[str, Any]:
        strengths = {"fast": self.ridge_fast.strength, "slow": self.ridge_slow.strength}
        return {f"ridge strength {name}": float(value) for name, value in strengths.items()}
