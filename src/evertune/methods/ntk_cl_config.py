"""Options of NTK-CL and its named settings (NTK-CL spec §9, §11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evertune.methods.config import option, require
from evertune.methods.first_session import EVERTUNE as FIRST_SESSION
from evertune.methods.training import TuningConfig

REFERENCE: dict[str, Any] = {
    "tuning": "adapter", "tuning_options": {"bottleneck": 16}, "epochs": 20, "batch_size": 16, "rate": 0.025,
    "weight_decay": 5e-4, "decay": "all",
}  # fmt: skip
"""CIFAR-100 (§9.1)."""
OTHERS: dict[str, Any] = REFERENCE | {"rate": 0.02, "weight_decay": 5e-3, "w_dis": 0.2}
"""What all other data sets have in common, and ImageNet-R and -A as they are."""
SMALL: dict[str, Any] = OTHERS | {"epochs": 5, "batch_size": 96, "plain": True}
RELEASED: dict[str, Any] = {
    "prompt_init": "zeros", "dis": "released", "orth": "released", "reg_scope": "weights", "fusion": "attention",
    "frozen_dropout": True,
}  # fmt: skip
EVERTUNE: dict[str, Any] = FIRST_SESSION | {
    "plain": True, "beta": 0.1, "average": "first", "follow_epochs": 3, "follow_rate": 1e-3,
    "hybrid_prototypes": "fused", "answer": "together",
}  # fmt: skip
"""Ours; docs/defaults.md says how it was chosen."""


@dataclass(frozen=True, kw_only=True)
class NTKConfig(TuningConfig):
    """Options of NTK-CL. Names in brackets refer to the traps (T) of the specification."""

    tuning: str = option("adapter", "the channel-wise subnetwork: adapter (the paper's), lora, or another")
    prompts: int = option(10, "Q, prompts per block of the token-wise subnetwork")
    prompt_init: Literal["kaiming", "zeros"] = option("kaiming", "G's start; zeros: released, it never learns (T1)")
    branch: Literal["both", "channel", "patch"] = option("both", "both subnetworks and their fusion, or one alone")
    plain: bool = option(False, "whether features begin with the plain model's section (S = 3)")
    frozen: int = option(1, "K, frozen sets of parameters")
    segment: int | None = option(None, "tasks that a frozen set averages before the next begins; needed for K > 1")
    average: Literal["mean", "first", "none"] = option(
        "mean", "a frozen set is the mean over its sessions (7.1), its first session, or stays pre-trained"
    )
    total_tasks: int | None = option(None, "after the last of so many tasks no average is taken (released, T11)")
    frozen_dropout: bool = option(False, "dropout in frozen sets while training (released, T9)")
    fusion: Literal["value", "attention"] = option("value", "attention: with the released query and key (T7)")
    fusion_dropout: float = option(0.1, "probability that a head of the fusion is dropped")
    views: int | None = option(None, "show so many views of each image in turn; frozen sets pass each once (§14.3)")
    follow_epochs: int | None = option(None, "epochs after the first session, if not the same")
    follow_rate: float | None = option(None, "rate after the first session, if not the same")
    sigma_init: float = option(1.0, "scale of the session's cosine head at the start")

    w_dis: float = option(0.03, "weight of the dissimilarity loss L_dis")
    dis: Literal["supcon", "released"] = option("supcon", "its form; released has the sign inverted (T2)")
    tau: float = option(0.1, "its temperature")
    w_orth: float = option(1e-4, "weight of the orthogonality loss L_orth")
    orth: Literal["energy", "released"] = option("energy", "its form; released: a signed sum of coordinates (T3, T4)")
    rank: int = option(40, "k, directions of the old prototypes, or as many as they have")
    w_reg: float = option(1e-3, "weight of the pull L_reg to the session before")
    reg_scope: Literal["all", "weights"] = option("all", "what it pulls; weights: no biases (released, T10)")

    alpha: float = option(0.1, "ω of the section of current parameters")
    beta: float = option(1.0, "ω of the plain model's section")
    gamma: float = option(0.3, "ω of every frozen set's section")
    hybrid_prototypes: Literal["stored", "fused"] = option(
        "stored", "prototypes of m: as they were in their session, or those of c and p through today's fusion"
    )
    answer: Literal["hybrid", "channel", "patch", "together"] = option(
        "hybrid", "the feature that answers (released: hybrid), or the sum of the three scores"
    )

    presets = {  # noqa: RUF012
        "evertune": EVERTUNE,
        "reference": REFERENCE,
        "released": REFERENCE | RELEASED,
        "imagenet-r": OTHERS,
        "domainnet": OTHERS | {"epochs": 50, "batch_size": 96},
        "vtab": SMALL | {"epochs": 45, "rate": 0.03},
        "pets": SMALL,
        "eurosat": SMALL | {"rate": 1e-4},
        "plantvillage": SMALL | {"rate": 5e-3},
        "kvasir": SMALL | {"rate": 5e-3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("w_dis", "w_orth", "w_reg", "alpha", "beta", "gamma"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        for name in ("prompts", "frozen", "rank"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("segment", "total_tasks", "views"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value} must be at least 1, or none.")
        for name in ("tau", "sigma_init"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive.")
        require(0 <= self.fusion_dropout < 1, f"fusion_dropout={self.fusion_dropout} must be at least 0 and below 1.")
        require(
            self.frozen == 1 or self.segment is not None,
            f"frozen={self.frozen} sets take turns: say after how many tasks with segment=.",
        )
        require(
            self.follow_epochs is None or self.follow_epochs >= 0,
            f"follow_epochs={self.follow_epochs} must not be negative, or none.",
        )
        require(
            self.follow_rate is None or self.follow_rate > 0,
            f"follow_rate={self.follow_rate} must be positive, or none.",
        )
        require(
            self.views is None or not self.frozen_dropout,
            "views keeps the features of frozen sets, which frozen_dropout changes in every step: use one of them.",
        )
        require(
            self.tuning != "token_mixing",
            "token_mixing is the token-wise subnetwork already: choose another tuning for the channel-wise one.",
        )
        require(
            self.plain * self.beta + self.gamma + self.alpha > 0,
            "alpha=0 and gamma=0 leave no section to score (nor does beta without plain): set one of them.",
        )
