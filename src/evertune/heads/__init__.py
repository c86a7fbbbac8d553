"""From a feature to class scores; every head grows with the classes seen."""

from evertune.heads.align import align
from evertune.heads.cosine import CosineHead, cosine_logits
from evertune.heads.fusion import HybridFusion
from evertune.heads.groups import by_group, normalised
from evertune.heads.linear import LinearHead
from evertune.heads.mahalanobis import mahalanobis, tukey
from evertune.heads.mlp import MLPHead
from evertune.heads.prototype import PrototypeHead, section_scores
from evertune.heads.ridge import RidgeHead, RidgeOptions, project, random_projection

__all__ = [
    "CosineHead",
    "HybridFusion",
    "LinearHead",
    "MLPHead",
    "PrototypeHead",
    "RidgeHead",
    "RidgeOptions",
    "align",
    "by_group",
    "cosine_logits",
    "mahalanobis",
    "normalised",
    "project",
    "random_projection",
    "section_scores",
    "tukey",
]
