"""Continual-learning methods, one file per paper."""

from evertune.methods.aper import APER
from evertune.methods.config import Config
from evertune.methods.dualprompt import DualPrompt
from evertune.methods.ease import EASE
from evertune.methods.fecam import FeCAM
from evertune.methods.finetune import Finetune
from evertune.methods.hide_pet import HiDePET
from evertune.methods.l2p import L2P
from evertune.methods.make import get_method, make_method
from evertune.methods.method import (
    METHODS,
    Batch,
    Collect,
    Generators,
    Method,
    Optimise,
    Phase,
    Recipe,
    Solve,
    TaskInfo,
    register,
)
from evertune.methods.ntk_cl import NTKCL
from evertune.methods.ranpac import RanPAC
from evertune.methods.safe import SAFE
from evertune.methods.simple_cil import SimpleCIL
from evertune.methods.stored import Stored

__all__ = [
    "APER",
    "EASE",
    "L2P",
    "METHODS",
    "NTKCL",
    "SAFE",
    "Batch",
    "Collect",
    "Config",
    "DualPrompt",
    "FeCAM",
    "Finetune",
    "Generators",
    "HiDePET",
    "Method",
    "Optimise",
    "Phase",
    "RanPAC",
    "Recipe",
    "SimpleCIL",
    "Solve",
    "Stored",
    "TaskInfo",
    "get_method",
    "make_method",
    "register",
]
