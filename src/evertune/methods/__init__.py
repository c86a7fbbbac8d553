"""Continual-learning methods, one file per paper."""

from evertune.methods.aper import APER
from evertune.methods.coda_prompt import CodaPrompt
from evertune.methods.config import Config
from evertune.methods.dualprompt import DualPrompt
from evertune.methods.ease import EASE
from evertune.methods.fecam import FeCAM
from evertune.methods.finetune import Finetune
from evertune.methods.hide_pet import HiDePET
from evertune.methods.inflora import InfLoRA
from evertune.methods.l2p import L2P
from evertune.methods.lae import LAE
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
from evertune.methods.probes import LinearProbe, RidgeProbe
from evertune.methods.ranpac import RanPAC
from evertune.methods.s_prompt import SPrompt
from evertune.methods.safe import SAFE
from evertune.methods.sd_lora import SDLoRA
from evertune.methods.simple_cil import SimpleCIL
from evertune.methods.slca import SLCA
from evertune.methods.stored import Stored
from evertune.methods.tuna import TUNA

__all__ = [
    "APER",
    "EASE",
    "L2P",
    "LAE",
    "METHODS",
    "NTKCL",
    "SAFE",
    "SLCA",
    "TUNA",
    "Batch",
    "CodaPrompt",
    "Collect",
    "Config",
    "DualPrompt",
    "FeCAM",
    "Finetune",
    "Generators",
    "HiDePET",
    "InfLoRA",
    "LinearProbe",
    "Method",
    "Optimise",
    "Phase",
    "RanPAC",
    "Recipe",
    "RidgeProbe",
    "SDLoRA",
    "SPrompt",
    "SimpleCIL",
    "Solve",
    "Stored",
    "TaskInfo",
    "get_method",
    "make_method",
    "register",
]
