"""What is trained beside the frozen weights."""

from evertune.tuning.adapter import Adapter
from evertune.tuning.lora import LoRA
from evertune.tuning.make import TUNINGS, make_tuning, parse_blocks, tuning_options, validate_tuning
from evertune.tuning.ssf import SSF
from evertune.tuning.tuning import BlockTuning, Tuning
from evertune.tuning.vpt import VPT

__all__ = [
    "SSF",
    "TUNINGS",
    "VPT",
    "Adapter",
    "BlockTuning",
    "LoRA",
    "Tuning",
    "make_tuning",
    "parse_blocks",
    "tuning_options",
    "validate_tuning",
]
