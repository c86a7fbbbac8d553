"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799): a G-Prompt for what all tasks share, in the first blocks, and
an E-Prompt for each task in the blocks behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, Shape
from evertune.methods.config import option, require
from evertune.methods.method import Batch, Generators, TaskInfo, register
from evertune.methods.prompted import PUBLISHED, KeyedConfig, Prompted, query
from evertune.methods.training import OURS
from evertune.statistics import ClassMeans, ShownClasses
from evertune.tuning import KeyedBank, Prefix, cosines, parse_blocks


@dataclass(frozen=True, kw_only=True)
class DualPromptConfig(KeyedConfig):
    """Options of DualPrompt."""

    blocks: str = option("0-4", "which blocks hold prefixes: all, 0-2, 0,3,7 …")
    general: int = option(2, "so many of these, the first, hold the G-Prompt, the others E-Prompts")
    general_length: int = option(5, "L_g, keys (and as many values) of the G-Prompt in each block")
    length: int = option(20, "L_e, keys (and as many values) of an E-Prompt in each block")

    presets = {  # noqa: RUF012
        "evertune": OURS,
        "paper": PUBLISHED | {"batch_size": 192, "rate": 0.0225, "length": 5},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.general >= 1, f"general={self.general} must be at least 1: the G-Prompt needs a block.")


@register
class DualPrompt(Prompted):
    """min CE(g(f(x; G, E_t)), y) − λ γ(q(x), k_t) (eq. 6); an input of unknown task takes the E-Prompt whose key is
    nearest to its plain feature q(x). Prompts are prefixes: keys and values in front of those of the tokens (eq. 5)."""

    name = "dualprompt"
    paper = (
        "Zifeng Wang, Zizhao Zhang, Sayna Ebrahimi, Ruoxi Sun, Han Zhang, Chen-Yu Lee, Xiaoqi Ren, Guolong Su, "
        "Vincent Perot, Jennifer Dy, Tomas Pfister. *DualPrompt: Complementary Prompting for Rehearsal-free "
        "Continual Learning.* ECCV 2022. [arXiv 2204.04799](https://arxiv.org/abs/2204.04799)"
    )
    config_type = DualPromptConfig
    config: DualPromptConfig
    pool: KeyedBank

    def __init__(self, config: DualPromptConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        blocks, general = parse_blocks(config.blocks, shape.depth), config.general
        require(general < len(blocks), f"general={general} of blocks={config.blocks}: none is left for the E-Prompts.")
        draw, bound = generators.init, config.bound
        self.pool = KeyedBank(
            Prefix(shape, blocks[:general], draw, length=config.general_length, bound=bound),
            Prefix(shape, blocks[general:], draw, length=config.length, bound=bound),
            bound=bound,
        )
        self.queries = ClassMeans()  # one mean, of the task's queries, only while it is learned
        self.shown = ShownClasses()

    def open(self, task: TaskInfo) -> None:
        self.pool.open(self.generators.init)
        self.shown.add(task.index, task.present)

    def _collect(self, batch: Batch) -> None:
        super()._collect(batch)
        self.queries.update(F.normalize(query(batch.passes), dim=1), batch.labels * 0)

    def _grow(self, task: TaskInfo) -> None:
        """The key starts where it is nearest to the task's queries, if they were collected."""
        super()._grow(task)
        if len(self.queries.means):
            self.pool.experts[task.index].get_parameter("key").copy_(self.queries.means[0])
        self.queries.drop([0])

    def learning(self, passes: Passes) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Under the task's own E-Prompt, whatever key is nearest."""
        q, last = query(passes), len(self.pool.experts) - 1
        feature = passes.steered(self.pool, q.new_full((len(q),), last).long())
        return feature, {"pull": -self.config.pull * cosines(q, self.pool.keys[last:]).mean()}

    def feature(self, passes: Passes) -> Tensor:
        return passes.steered(self.pool, self.identify(passes))

    def identify(self, passes: Passes) -> Tensor:
        return self.pool.nearest(query(passes))

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        logits: Tensor = self.head(passes.steered(self.pool, tasks))
        return logits

    def forget(self, classes: Sequence[int]) -> list[str]:
        """An E-Prompt and its key go with the last class of their task."""
        self.pool.experts.drop(self.shown.forget(classes))
        return super().forget(classes)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"prompts": self.pool.nbytes, "task": self.pool.experts.nbytes}}
