"""SimpleCIL (Zhou et al., arXiv 2303.07338, IJCV 2024; SAFE spec §4.1): class means of frozen features, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evertune.backbones import Passes, Shape
from evertune.heads import PrototypeHead
from evertune.methods.config import Config
from evertune.methods.method import Batch, Collect, Generators, Method, Phase, TaskInfo, register
from evertune.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class SimpleCILConfig(Config):
    """SimpleCIL has nothing to choose."""

    presets = {"evertune": {}, "paper": {}}  # noqa: RUF012


@register
class SimpleCIL(Method):
    """p_c = mean of φ_0(x) over the training images of c; predict argmax_c cos(φ_0(x), p_c).

    A class that comes again in another domain adds to its mean.
    """

    name = "simple_cil"
    paper = (
        "Da-Wei Zhou, Zi-Wen Cai, Han-Jia Ye, De-Chuan Zhan, Ziwei Liu. *Revisiting Class-Incremental Learning "
        "with Pre-Trained Models: Generalizability and Adaptivity are All You Need.* IJCV 2024. [arXiv "
        "2303.07338](https://arxiv.org/abs/2303.07338)"
    )
    config_type = SimpleCILConfig

    def __init__(self, config: SimpleCILConfig, shape: Shape, width: int, generators: Generators) -> None:
        super().__init__(config, shape, width, generators)
        self.prototypes = PrototypeHead()

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return [Collect("prototypes", self._collect)]

    def _collect(self, batch: Batch) -> None:
        self.prototypes.update(batch.passes(), batch.labels)

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"prototypes": self.prototypes(passes())}

    def forget(self, classes: Sequence[int]) -> list[str]:
        self.prototypes.drop(classes)
        return []

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None,)
