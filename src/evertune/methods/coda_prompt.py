"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218): prompts composed of components, with weights that are
trained end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.methods.config import option, require
from evertune.methods.method import Generators, TaskInfo, register
from evertune.methods.prompted import Prompted, query
from evertune.methods.taskwise import TaskwiseConfig
from evertune.methods.training import OURS
from evertune.tuning import ComponentPool, parse_blocks


@dataclass(frozen=True, kw_only=True)
class CodaPromptConfig(TaskwiseConfig):
    """Options of CODA-Prompt."""

    blocks: str = option("0-4", "which blocks hold prefixes: all, 0-2, 0,3,7 …")
    components: int = option(10, "M / T, components that each task adds to each block")
    length: int = option(4, "L_p / 2, keys (and as many values) of a component in each block")
    orthogonality: float = option(1e-7, "λ, weight of the penalty on components that are not orthonormal")

    presets = {  # noqa: RUF012
        "evertune": OURS,
        "paper": {
            "epochs": 20, "batch_size": 128, "optimizer": "adam", "rate": 1e-3, "weight_decay": 0.0,
            "schedule": "quarter", "head": "linear",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.orthogonality >= 0, f"orthogonality={self.orthogonality} must not be negative.")


@register
class CodaPrompt(Prompted):
    """min CE(g(f(x; p)), y) + λ L_ortho(P, K, A), where p = Σ_m α_m P_m and α_m = γ(q(x) ⊙ A_m, K_m), in each block
    with components of its own. Those of earlier tasks take part and stay as they are."""

    name = "coda_prompt"
    paper = (
        "James Seale Smith, Leonid Karlinsky, Vyshnavi Gutta, Paola Cascante-Bonilla, Donghyun Kim, Assaf Arbelle, "
        "Rameswar Panda, Rogerio Feris, Zsolt Kira. *CODA-Prompt: COntinual Decomposed Attention-based Prompting "
        "for Rehearsal-Free Continual Learning.* CVPR 2023. [arXiv 2211.13218](https://arxiv.org/abs/2211.13218)"
    )
    config_type = CodaPromptConfig
    config: CodaPromptConfig
    pool: ComponentPool

    def __init__(self, config: CodaPromptConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        blocks = parse_blocks(config.blocks, shape.depth)
        self.pool = ComponentPool(shape, blocks, size=config.components, length=config.length)

    def open(self, task: TaskInfo) -> None:
        self.pool.open(self.generators.init)

    def feature(self, passes: Passes) -> Tensor:
        return passes.steered(self.pool, query(passes))

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.feature(passes), {"orthogonality": self.config.orthogonality * self.pool.penalty()}

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"prompts": self.pool.nbytes, "task": self.pool.tasks.nbytes}}
