"""L2P, learning to prompt (Wang et al., CVPR 2022, arXiv 2112.08654): a pool of prompts that all tasks share, of which
each input chooses its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.methods.config import option, require
from evertune.methods.method import Generators, register
from evertune.methods.prompted import PUBLISHED, KeyedConfig, Prompted, query
from evertune.methods.training import OURS
from evertune.tuning import PromptPool

PAPER: dict[str, Any] = PUBLISHED | {"batch_size": 128, "rate": 0.015, "pull": 0.1}


@dataclass(frozen=True, kw_only=True)
class L2PConfig(KeyedConfig):
    """Options of L2P."""

    pool: int = option(10, "M, prompts in the pool")
    length: int = option(5, "L_p, tokens of a prompt")
    top: int = option(5, "N, prompts chosen for an input")
    pull: float = option(0.5, "λ, weight of the cosines of queries and chosen keys")
    voting: Literal["sample", "batch"] = option(
        "sample", "while training each sample chooses, or as released the batch does, by its most frequent choices"
    )

    presets = {  # noqa: RUF012
        "evertune": OURS | {"rate": 1e-3, "sigma_init": 30.0},
        "paper": PAPER,
        "released": PAPER | {"voting": "batch"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.top <= self.pool and self.length >= 1,
            f"top={self.top} of pool={self.pool} prompts of length={self.length}: all are at least 1, and no more "
            "can be chosen than there are.",
        )


@register
class L2P(Prompted):
    """min CE(g(f(x; P_{s_1} … P_{s_N})), y) − λ Σ_i γ(q(x), k_{s_i}) (eq. 5), where q(x) is the plain feature, γ the
    cosine and s the N nearest keys (eq. 3)."""

    name = "l2p"
    paper = (
        "Zifeng Wang, Zizhao Zhang, Chen-Yu Lee, Han Zhang, Ruoxi Sun, Xiaoqi Ren, Guolong Su, Vincent Perot, "
        "Jennifer Dy, Tomas Pfister. *Learning to Prompt for Continual Learning.* CVPR 2022. [arXiv "
        "2112.08654](https://arxiv.org/abs/2112.08654)"
    )
    config_type = L2PConfig
    config: L2PConfig
    pool: PromptPool

    def __init__(self, config: L2PConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.pool = PromptPool(
            shape, generators.init, size=config.pool, length=config.length, top=config.top, bound=config.bound
        )

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        q = query(passes)
        ids = self.pool.voted(q) if self.config.voting == "batch" else self.pool.nearest(q)
        return passes.steered(self.pool, ids), {"pull": -self.config.pull * self.pool.pull(q, ids)}

    def imprinted(self, passes: Passes) -> Tensor:
        return self.feature(passes)  # whatever else is in the batch

    def feature(self, passes: Passes) -> Tensor:
        return passes.steered(self.pool, self.pool.nearest(query(passes)))
