"""Frozen pre-trained transformers."""

from evertune.backbones.backbone import Backbone, BlockSites, Identity, ImageIdentity, Shape, TextIdentity, digest
from evertune.backbones.hf_encoder import HFEncoder
from evertune.backbones.load import load_again, load_backbone, read_weights
from evertune.backbones.passes import Passes
from evertune.backbones.timm_vit import TimmViT

__all__ = [
    "Backbone",
    "BlockSites",
    "HFEncoder",
    "Identity",
    "ImageIdentity",
    "Passes",
    "Shape",
    "TextIdentity",
    "TimmViT",
    "digest",
    "load_again",
    "load_backbone",
    "read_weights",
]
