"""FeCAM (Goswami et al., NeurIPS 2023, arXiv 2309.14062): nearest class mean, where each class measures distances by
its own covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.heads import mahalanobis, tukey
from evertune.methods.config import option, require
from evertune.methods.first_session import EVERTUNE, FirstSession, FirstSessionConfig
from evertune.methods.method import Batch, Collect, Generators, Phase, Solve, TaskInfo, register
from evertune.statistics import ClassScatters, TaskFeatures


@dataclass(frozen=True, kw_only=True)
class FeCAMConfig(FirstSessionConfig):
    """Options of FeCAM; ``epochs=0`` reads the plain model, more train a tuning on the first task."""

    covariance: Literal["class", "common", "diagonal"] = option(
        "class", "of each class, one of all classes, or the variances of each class alone"
    )
    unit: bool = option(True, "features are brought to length 1 first, as the released code does with a ViT")
    tukey: float = option(1.0, "λ of Tukey's transformation sign(x)|x|^λ; 1 leaves features as they are")
    gamma1: float = option(1.0, "γ₁: so many mean variances are added to each variance")
    gamma2: float = option(0.0, "γ₂: so many mean covariances are added to each covariance")
    correlation: bool = option(True, "covariances are normalised to correlations")

    presets = {  # noqa: RUF012
        "evertune": EVERTUNE | {"epochs": 0},
        "tuned": EVERTUNE,
        "paper": {"epochs": 0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tukey > 0, f"tukey={self.tukey} must be positive; 1 leaves the features as they are.")
        require(
            0 <= self.gamma2 <= self.gamma1,
            f"gamma1={self.gamma1} and gamma2={self.gamma2}: γ₂ must lie between 0 and γ₁, or what is shrunk may be no "
            "covariance.",
        )


@register
class FeCAM(FirstSession):
    """D(x, c) = (φ̃(x) − μ̃_c)ᵀ Σ̂_c⁻¹ (φ̃(x) − μ̃_c); predict argmin_c.

    A class that comes again in another domain adds to its mean and covariance, as if all had come at once.
    """

    name = "fecam"
    paper = (
        "Dipam Goswami, Yuyang Liu, Bartłomiej Twardowski, Joost van de Weijer. *FeCAM: Exploiting the "
        "Heterogeneity of Class Distributions in Exemplar-Free Continual Learning.* NeurIPS 2023. [arXiv "
        "2309.14062](https://arxiv.org/abs/2309.14062)"
    )
    config_type = FeCAMConfig
    config: FeCAMConfig

    def __init__(self, config: FeCAMConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.task, self.classes = TaskFeatures(), ClassScatters(config.covariance)

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [*self.first_session(task), Collect("features", self._collect), Solve("covariances", self._fit)]

    def _features(self, passes: Passes) -> Tensor:
        """φ̃(x)."""
        x = passes(self.branch)
        return tukey(F.normalize(x, dim=1) if self.config.unit else x, self.config.tukey)

    def _collect(self, batch: Batch) -> None:
        self.task.add(self._features(batch.passes), batch.labels)

    def _fit(self) -> None:
        self.classes.fit(*self.task.take())

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        c = self.config
        distances = mahalanobis(self._features(passes), self.classes, c.gamma1, c.gamma2, normalised=c.correlation)
        return {"mahalanobis": -distances.float()}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.classes.drop(classes)
        return [*super().forget(classes), *([self.classes.stays] if self.config.covariance == "common" else [])]

    def describe(self) -> dict[str, Any]:
        return {"bytes of covariances": self.classes.scatter.nbytes}
