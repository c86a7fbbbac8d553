"""From a feature to class scores; every head grows with the classes seen."""

from evertune.heads.cosine import CosineHead
from evertune.heads.linear import LinearHead
from evertune.heads.prototype import PrototypeHead
from evertune.heads.ridge import RidgeHead, RidgeOptions, project, random_projection

__all__ = ["CosineHead", "LinearHead", "PrototypeHead", "RidgeHead", "RidgeOptions", "project", "random_projection"]
