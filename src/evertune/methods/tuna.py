"""TUNA, task-specific and universal adapters (Wang, Zhou, Ye, ICCV 2025, arXiv 2508.08165): the adapter that is surest
of its answer, and one fused from all of them, answer together."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evertune.backbones import Passes, Shape
from evertune.heads import CosineHead, align
from evertune.methods.config import option, require
from evertune.methods.losses import entropy, masked_cross_entropy, row_means, separation
from evertune.methods.method import Batch, Collect, Generators, Method, Optimise, Phase, Solve, TaskInfo, register
from evertune.methods.training import OURS_LORA, AlignedConfig, ScaledConfig
from evertune.statistics import ClassGaussians, TaskFeatures
from evertune.tuning import Bank, Tuning, fuse


@dataclass(frozen=True, kw_only=True)
class TUNAConfig(ScaledConfig, AlignedConfig):
    """Options of TUNA; the paper preset is the released CIFAR-100 configuration, with L_orth."""

    epochs: int = option(15, "epochs of each task")
    sigma_init: float = option(20.0, "s, scale of the cosine head; it stays what it is")
    orthogonal: float = option(0.0, "λ of L_orth, which weighs λ exp(−t) in task t")

    statistics_rank: int = option(10, "directions per class, for lowrank")
    align_epochs: int = option(30, "epochs of the alignment; 0 leaves it out")
    align_samples: int = option(5, "draws of each class in each of them, in batches")
    align_rate: float = option(0.005, "rate of the alignment at the start")

    presets = {  # noqa: RUF012
        "evertune": OURS_LORA | {"statistics": "lowrank"},
        "paper": {"tuning_options": {"bottleneck": 16}, "batch_size": 16, "decay": "all", "orthogonal": 1e-3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1: without training, all adapters are equal.")
        require(self.orthogonal >= 0, f"orthogonal={self.orthogonal} must not be negative.")
        for name in ("statistics_rank", "align_samples"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")


@register
class TUNA(Method):
    """p(x) = ½ softmax(z_i) + ½ softmax(z_U), where z_t are the logits under the adapter of task t, i is the task whose
    softmax has the lowest entropy, and U is the universal adapter. One cosine head serves them all."""

    name = "tuna"
    paper = (
        "Yan Wang, Da-Wei Zhou, Han-Jia Ye. *Integrating Task-Specific and Universal Adapters for Pre-Trained "
        "Model-based Class-Incremental Learning.* ICCV 2025. [arXiv 2508.08165](https://arxiv.org/abs/2508.08165)"
    )
    config_type = TUNAConfig
    config: TUNAConfig

    def __init__(self, config: TUNAConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.bank = Bank(config.fresh(shape, generators.init))
        self.universal = config.fresh(shape, generators.init).freeze()
        self.head = CosineHead(width, config.sigma_init)
        self.features = TaskFeatures()
        self.gaussians = ClassGaussians(config.statistics, rank=config.statistics_rank)
        require(
            not config.orthogonal or bool(self.universal.writes()),
            f"orthogonal={config.orthogonal} is about the matrix by which a bottleneck writes; a {config.tuning} has "
            "none: choose adapter, sequential_adapter or lora, or orthogonal=0.",
        )

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        loss = functools.partial(self.loss, task, self._earlier(task))
        return [
            Solve("open", functools.partial(self._open, len(task.new))),
            Optimise("adapter", loss, self.trained, self.config.recipe()),
            Solve("fuse", self._fuse),
            Collect("features", self._collect),
            Solve("alignment", functools.partial(self._align, task)),
        ]

    # -- a task's own adapter, and the universal one -------------------------------------------------------------------

    def _open(self, new: int) -> None:
        """An adapter that begins as the one before, and rows for new classes."""
        self.bank.open()
        self.head.draw(new, self.generators.init)

    def _earlier(self, task: TaskInfo) -> Tensor | None:
        """What L_orth needs of the adapters of earlier tasks, if it counts."""
        if not task.index or not self.config.orthogonal:
            return None
        return torch.stack([row_means(self.bank[t].writes()) for t in range(task.index)])

    def loss(self, task: TaskInfo, earlier: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
        adapter = self.bank[task.index]
        logits = self.head(batch.passes(adapter))
        terms = {"classification": masked_cross_entropy(logits, batch.labels, task.present)}
        if earlier is not None:
            weight = self.config.orthogonal * math.exp(-1 - task.index)
            terms["orthogonality"] = weight * separation(row_means(adapter.writes()), earlier)
        return terms

    def trained(self) -> list[nn.Parameter]:
        return [*self.bank.last.parameters(), self.head.weight]

    def _fuse(self) -> None:
        self.restored()
        fuse(self.universal, list(self.bank))

    def restored(self) -> None:
        self.bank.freeze()

    # -- classifier alignment ------------------------------------------------------------------------------------------

    def _collect(self, batch: Batch) -> None:
        self.features.add(batch.passes(self.bank.last), batch.labels)

    def _align(self, task: TaskInfo) -> None:
        """Gaussians of the task's classes under its own adapter; then the head learns all classes on draws of them."""
        c, gaussians = self.config, self.gaussians
        gaussians.learn(self.features, task.index, self.generators.sampling)
        if task.index:
            align(
                self.head,
                self._draw,
                epochs=c.align_epochs,
                steps=gaussians.entries,
                batch=c.align_samples * c.batch_size,
                rate=c.align_rate,
                fixed=("sigma",),
            )
            gaussians.rest()

    def _draw(self, n: int) -> tuple[Tensor, Tensor]:
        features, entry = self.gaussians.sample(n, self.generators.sampling, equally=True)
        return features, self.gaussians.entry_class[entry]

    # -- prediction ----------------------------------------------------------------------------------------------------

    def _logits(self, passes: Passes) -> Tensor:
        """z_1(x) … z_T(x), [T, B, K]."""
        return torch.stack([self.head(passes(adapter)) for adapter in self.bank])

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        """ln p(x), and the logits z_i and z_U it is made of."""
        logits = self._logits(passes)
        chosen = surest(logits)[None, :, None].expand(1, -1, self.head.classes)
        routed = logits.gather(0, chosen)[0]
        universal = self.head(passes(self.branches[-1]))
        together = torch.logaddexp(routed.log_softmax(1), universal.log_softmax(1)) - math.log(2)
        return {"mixture": together, "routed": routed, "universal": universal}

    def identify(self, passes: Passes) -> Tensor:
        return surest(self._logits(passes))

    def told(self, passes: Passes, tasks: Tensor) -> Tensor:
        """z_t of the task t alone, which is one pass."""
        logits: Tensor = self.head(passes.routed(self.bank, tasks))
        return logits

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.head.drop(classes)
        tasks = self.gaussians.forget(classes)
        self.bank.drop(tasks)
        fuse(self.universal, list(self.bank))
        return [
            f"A task that keeps other classes keeps its tuning ({self.config.tuning}), and those of later tasks began "
            "as those of earlier ones; the universal one is fused anew from what is left.",
            "The rows of other classes were trained beside these, or aligned with draws of them, and stay as they are.",
            "An input chooses its tuning by the entropy over the classes that are left, and scores of others change.",
        ]

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        """A single adapter is the universal one, too."""
        return (*self.bank, self.universal) if len(self.bank) > 1 else tuple(self.bank)

    def describe(self) -> dict[str, Any]:
        return {"bytes": {"each tuning": self.bank.nbytes, "statistics": self.gaussians.nbytes}}


def surest(logits: Tensor) -> Tensor:
    """Of logits [T, B, K], the t whose softmax has the lowest entropy, [B]."""
    return torch.stack([entropy(z) for z in logits]).argmin(0)
