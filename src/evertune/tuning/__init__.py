"""What is trained beside the frozen weights."""

from evertune.tuning.adapter import Adapter
from evertune.tuning.bank import Bank
from evertune.tuning.components import ComponentPool
from evertune.tuning.directions import Directions
from evertune.tuning.full import Full
from evertune.tuning.fuse import fuse
from evertune.tuning.lora import LoRA, LowRank
from evertune.tuning.make import TUNINGS, make_tuning, parse_blocks, tuning_options, validate_tuning
from evertune.tuning.merge import merged
from evertune.tuning.pool import Chosen, KeyedBank, PromptPool, cosines
from evertune.tuning.prefix import Prefix
from evertune.tuning.prompt import Prompt
from evertune.tuning.sequential import SequentialAdapter
from evertune.tuning.ssf import SSF
from evertune.tuning.token_mixing import TokenMixing
from evertune.tuning.tuning import TRAINED, BlockTuning, Tuning
from evertune.tuning.vpt import VPT
from evertune.tuning.watched import Watched

__all__ = [
    "SSF",
    "TRAINED",
    "TUNINGS",
    "VPT",
    "Adapter",
    "Bank",
    "BlockTuning",
    "Chosen",
    "ComponentPool",
    "Directions",
    "Full",
    "KeyedBank",
    "LoRA",
    "LowRank",
    "Prefix",
    "Prompt",
    "PromptPool",
    "SequentialAdapter",
    "TokenMixing",
    "Tuning",
    "Watched",
    "cosines",
    "fuse",
    "make_tuning",
    "merged",
    "parse_blocks",
    "tuning_options",
    "validate_tuning",
]
