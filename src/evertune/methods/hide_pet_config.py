"""Options of HiDe-PET and its named settings (HiDe-PET spec §6 to §12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evertune.methods.config import option, require
from evertune.methods.method import Recipe
from evertune.methods.training import TuningConfig

SCALE = 24 / 256
"""The published base rates hold for batches of 256; the published batch is 24 (§12.2)."""

LORA: dict[str, Any] = {
    "tuning_options": {"rank": 5, "targets": "kv", "init": "wide"},
    "shared_rate": 0.03 * SCALE, "slow": 0.1, "shared_schedule": "constant",
    "rate": 0.01 * SCALE, "schedule": "cosine", "warmup": 5, "ensemble": 0.1, "clip": 2.0,
}  # fmt: skip
ADAPTER: dict[str, Any] = LORA | {
    "tuning_options": {"bottleneck": 5}, "slow": 0.01, "shared_schedule": "cosine", "shared_warmup": 5,
}  # fmt: skip
PREFIX: dict[str, Any] = {
    "tuning_options": {"length": 20},
    "shared_rate": 0.03 * SCALE, "slow": 0.1, "shared_schedule": "step",
    "rate": 0.05 * SCALE, "head_factor": 0.1, "schedule": "cosine", "ensemble": 0.01, "clip": 1.0,
}  # fmt: skip
BY_KIND = {"lora": LORA, "sequential_adapter": ADAPTER, "prefix": PREFIX, "prompt": PREFIX}
"""The published recipes of Split ImageNet-R (§12.1)."""

RELEASED_BY_KIND = {
    "lora": LORA,
    "sequential_adapter": ADAPTER | {"first_factor": 0.1},  # the first task's optimiser has other groups (§14.2-7)
    "prefix": PREFIX | {"contrastive": 0.0, "statistics_first": True},  # L_CR is commented out; §14.2-4
    "prompt": PREFIX | {"contrastive": 0.0, "statistics_first": True},
}
CIFAR100: dict[str, Any] = {
    "epochs": 5, "shared_epochs": 5, "rate": 0.03 * SCALE, "schedule": "constant", "shared_schedule": "constant",
    "warmup": 0, "shared_warmup": 0, "contrastive": 0.01,
}  # fmt: skip
"""The released configuration files of CIFAR-100 (§12.3), their slow factors filled in from the recipes."""
CIFAR100_BY_KIND = {
    **{kind: recipe | CIFAR100 for kind, recipe in BY_KIND.items()},
    "lora": LORA | CIFAR100 | {"tuning_options": {"rank": 4, "targets": "kv", "init": "wide"}},
    "sequential_adapter": ADAPTER | CIFAR100 | {"tuning_options": {"bottleneck": 8}},
}

HIDE_PROMPT: dict[str, Any] = {"tuning": "prefix", "shared": "none", "router_head": "mlp", "shared_epochs": 20} | {
    "by_kind": {
        kind: PREFIX
        | {"tuning_options": {"length": 5}, "shared_rate": 5e-4 * SCALE, "shared_schedule": "constant"}
        | {"rate": 0.03 * SCALE, "schedule": "step", "contrastive": 0.1}
        for kind in ("prefix", "prompt")
    }
}
"""The predecessor (Wang et al., NeurIPS 2023, arXiv 2310.07234) on CIFAR-100: prompts only, a router on the features of
the plain model (§9, §12.4)."""

OURS = CIFAR100 | {
    "batch_size": 48, "rate": 5e-3, "head_factor": 1.0,
    "shared_rate": 5e-3, "shared_epochs": 10, "shared_follow_epochs": 5,
}  # fmt: skip
EVERTUNE: dict[str, Any] = OURS | {"by_kind": {kind: recipe | OURS for kind, recipe in CIFAR100_BY_KIND.items()}}
"""Ours: the CIFAR-100 settings at twice the batch, with more of g in the first task; docs/defaults.md says why."""


@dataclass(frozen=True, kw_only=True)
class HiDeConfig(TuningConfig):
    """Options of HiDe-PET; those of a task's own parameters e_t have no prefix, those of the shared g have ``shared_``.

    Rates are effective: the published ones, times 24/256.
    """

    tuning: str = option("lora", "kind of tuning of g and e_t: lora, sequential_adapter, prefix, prompt or another")
    blocks: str = option("0-4", "which blocks are tuned: all, 0-2, 0,3,7 …")
    batch_size: int = option(24, "images per step")
    optimizer: Literal["sgd", "adam"] = option("adam", "sgd (with momentum), or adam with decoupled decay")
    weight_decay: float = option(0.0, "weight decay; the released one is 0 in effect (§12.1)")
    clip: float | None = option(2.0, "bound of the gradient's norm, or none")
    floor: float = option(1e-5, "where cosine schedules end")
    schedule_lag: bool = option(False, "each epoch at the rate of the one before it (released, §12.2)")

    shared: Literal["fsa", "sl", "fsa_sl", "ema", "fix_then_tune", "sequential", "none"] = option(
        "fsa_sl", "how g learns: first task only, slowly, both, averaged, head first, freely; none: no g (§6)"
    )
    shared_epochs: int = option(50, "epochs of g in each task")
    shared_follow_epochs: int | None = option(None, "in tasks after the first, if not the same")
    shared_rate: float = option(0.03 * SCALE, "rate of g and its head")
    shared_schedule: Literal["cosine", "step", "constant"] = option("constant", "schedule of g and its head")
    shared_warmup: int = option(0, "epochs of rising rate of g")
    slow: float = option(0.1, "factor on g's rate where it learns slowly")
    fix_epochs: int = option(10, "epochs of the head alone, for fix_then_tune")
    ema: float = option(0.99, "m_t = ema · m_{t−1} + (1 − ema) · g_t, for ema")

    epochs: int = option(50, "epochs of e_t in each task")
    rate: float = option(0.01 * SCALE, "rate of e_t at the start")
    warmup: int = option(0, "epochs of rising rate of e_t")
    head_factor: float = option(1.0, "factor on the rate of the output layer ψ")
    first_factor: float = option(1.0, "factor on the rate of e_1")
    start: Literal["previous", "shared", "fresh"] = option(
        "previous", "what e_t starts from: e_{t−1}, g, or the values e_1 was drawn with"
    )
    ensemble: float = option(0.1, "m in e_t ← (1 − m) e_t + m · mean of the earlier ones (§7.3)")
    ensemble_space: Literal["parameters", "delta"] = option("parameters", "where that is done; delta: on ΔW (lora)")
    contrastive: float = option(1e-3, "λ, weight of the contrastive regulariser L_CR (§7.2)")
    temperature: float = option(0.8, "τ of L_CR")

    statistics: Literal["centroids", "covariance", "variance", "lowrank"] = option(
        "centroids", "what is kept of a class's features (§8.2); lowrank is ours"
    )
    centroids: int = option(10, "k-means centroids per class")
    statistics_rank: int = option(10, "directions per class, for lowrank")
    statistics_first: bool = option(False, "take them before the ensemble (released for prefixes, §14.2-4)")

    identity: Literal["class_max", "class_logsumexp", "task_head"] = option(
        "class_max", "how the task is read from û: its best class, its classes together, or a layer of its own (§9)"
    )
    router_head: Literal["linear", "mlp"] = option("linear", "auxiliary output layer on û; mlp: HiDe-Prompt's")
    tii_epochs: int = option(30, "epochs of the router's alignment; 0 leaves it out")
    tap_epochs: int = option(30, "epochs of ψ's alignment over all classes (TAP); 0 leaves it out")
    align_rate: float = option(0.005, "rate of both at the start")
    align_scale: Literal["none", "energy"] = option(
        "none", "what divides that rate: nothing, or the class means' mean ‖μ‖², so that it fits every backbone"
    )
    align_samples: int = option(5, "pseudo-features per class and epoch, in batches")

    accumulate: bool = option(False, "a growing set of shared g_k, opened for tasks far from all known (§11)")
    accumulate_threshold: float = option(1.0, "distance from which a task is far and opens a set, 0 to 2")
    accumulate_order: int = option(5, "which smallest distance of a task's images counts")
    accumulate_quantile: float | None = option(None, "which quantile of them counts instead, e.g. 0.5")

    presets = {  # noqa: RUF012
        "reference": {"by_kind": BY_KIND},
        "released": {"by_kind": RELEASED_BY_KIND, "schedule_lag": True},
        "cifar100": CIFAR100 | {"by_kind": CIFAR100_BY_KIND},
        "hide_prompt": HIDE_PROMPT,
        "evertune": EVERTUNE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shared_rate", "temperature", "align_rate"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive.")
        for name in (
            "shared_epochs", "fix_epochs", "slow", "floor", "warmup", "shared_warmup", "head_factor", "first_factor",
            "contrastive", "tii_epochs", "tap_epochs", "accumulate_threshold",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        for name in ("ensemble", "ema", "accumulate_quantile"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name}={value} must be between 0 and 1.")
        for name in ("centroids", "statistics_rank", "align_samples", "accumulate_order"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        follow = self.shared_follow_epochs
        require(follow is None or follow >= 0, f"shared_follow_epochs={follow} must not be negative, or none.")
        for warmup, epochs in (("warmup", "epochs"), ("shared_warmup", "shared_epochs")):
            risen, whole = getattr(self, warmup), getattr(self, epochs)
            require(
                not risen or not whole or risen < whole,
                f"With {warmup}={risen} the rate still rises when {epochs}={whole} are over: set {warmup} lower, or 0.",
            )
        require(self.clip is None or self.clip > 0, f"clip={self.clip} must be positive, or none.")
        require(
            not (self.accumulate and self.shared in ("none", "ema")),
            f"accumulate keeps several sets of shared parameters, of which shared={self.shared} has none or two: "
            "choose fsa, sl, fsa_sl, fix_then_tune or sequential.",
        )
        require(
            not (self.start == "shared" and self.shared == "none"),
            "start=shared needs shared parameters, and shared=none has none: choose start=previous.",
        )
        require(
            self.ensemble_space == "parameters" or self.tuning == "lora",
            f"ensemble_space=delta is defined for lora, not for {self.tuning}: choose parameters.",
        )

    def own_recipe(self) -> Recipe:
        return self.recipe(clip=self.clip, floor=self.floor, warmup=self.warmup, lag=self.schedule_lag)

    def shared_recipe(self, epochs: int) -> Recipe:
        return self.recipe(
            epochs=epochs,
            rate=self.shared_rate,
            schedule=self.shared_schedule,
            clip=self.clip,
            floor=self.floor,
            warmup=self.shared_warmup,
            lag=self.schedule_lag,
        )
