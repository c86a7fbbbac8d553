"""RanPAC (McDonnell et al., NeurIPS 2023, arXiv 2307.02251; SAFE spec §5): a ridge classifier on random features of a
backbone adapted to the first task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.heads import RidgeHead, cosine_logits, project, random_projection
from evertune.methods.config import option
from evertune.methods.first_session import EVERTUNE, ZERO_PROMPTS, FirstSession
from evertune.methods.method import Batch, Collect, Generators, Phase, Solve, TaskInfo, register
from evertune.methods.ridge import RIDGE, RidgeConfig
from evertune.statistics import Gram, TaskFeatures

RELEASED: dict[str, Any] = {
    "ridge_low": -8,
    "ridge_scale": "none",
    "ridge_split": "shuffled",
    "decay": "all",
    "by_kind": ZERO_PROMPTS,
}
"""What the released code does otherwise."""


@dataclass(frozen=True, kw_only=True)
class RanPACConfig(RidgeConfig):
    """Options of RanPAC; ``epochs=0`` leaves out phase 1, ``features=0`` the random projection."""

    scoring: Literal["inner", "cosine"] = option(
        "inner", "hᵀA_c as published, or cos(h, A_c) as in the LAMDA-PILOT toolbox (spec §5.5)"
    )

    presets = {  # noqa: RUF012
        "evertune": EVERTUNE | RIDGE,
        "paper": {"ridge_low": -8},
        "pilot": RELEASED | {"scoring": "cosine"},
        "released": RELEASED,
    }


@register
class RanPAC(FirstSession):
    """G += HᵀH, Q += HᵀY with H = ReLU(Φ R); A = (G + λI)⁻¹ Q; predict argmax_c h(x)ᵀ A_c."""

    name = "ranpac"
    paper = (
        "Mark D. McDonnell, Dong Gong, Amin Parvaneh, Ehsan Abbasnejad, Anton van den Hengel. *RanPAC: Random "
        "Projections and Pre-trained Models for Continual Learning.* NeurIPS 2023. [arXiv "
        "2307.02251](https://arxiv.org/abs/2307.02251)"
    )
    config_type = RanPACConfig
    config: RanPACConfig
    of_data: ClassVar[dict[str, str]] = {"R": "nothing: random numbers"}
    R: Tensor

    def __init__(self, config: RanPACConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.register_buffer("R", random_projection(width, config.features, generators.init))
        self.task, self.gram, self.ridge = TaskFeatures(), Gram(), RidgeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [*self.first_session(task), Collect("statistics", self._collect), Solve("ridge", self._solve)]

    def _collect(self, batch: Batch) -> None:
        self.task.add(batch.passes(self.branch), batch.labels)

    def _solve(self) -> None:
        self.ridge.fit(self.task, self.gram, self.R, self.config.ridge, self.generators.sampling)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        h = project(passes(self.branch), self.R)
        if self.config.scoring == "cosine":
            return {"ridge": cosine_logits(h, self.ridge.A.T, torch.ones_like(h[:1, :1]))}
        return {"ridge": self.ridge(h)}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.gram.drop(classes)
        self.ridge.drop(classes)
        return [*super().forget(classes), self.gram.stays]

    def describe(self) -> dict[str, Any]:
        return {"ridge strength": float(self.ridge.strength)}
