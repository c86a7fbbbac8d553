"""Frozen pre-trained transformers."""

from evertune.backbones.backbone import Backbone, BlockSites, Identity, Shape, digest
from evertune.backbones.load import load_backbone, read_weights
from evertune.backbones.passes import Passes
from evertune.backbones.timm_vit import TimmViT

__all__ = [
    "Backbone",
    "BlockSites",
    "Identity",
    "Passes",
    "Shape",
    "TimmViT",
    "digest",
    "load_backbone",
    "read_weights",
]
