"""Learners that have learned three tasks, and a linear model whose kernel is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune import Learner, Stream
from evertune.backbones import Backbone, Passes, TimmViT
from evertune.backbones.backbone import ImageIdentity, Shape
from evertune.methods import Generators, Method, Phase, TaskInfo
from evertune.methods.config import Config
from evertune.streams import ArraySource
from evertune.tuning import Tuning

Data = tuple[ArraySource, ArraySource]
SIZE = 4
WIDTH = 3 * SIZE * SIZE

OPTIONS: dict[str, dict[str, Any]] = {
    "safe": {"features": 40, "epochs": 1, "follow_epochs": 1},
    "ranpac": {"features": 40, "epochs": 1},
    "aper": {"epochs": 1, "tuning": "adapter"},
    "ntk_cl": {"epochs": 1},
    "hide_pet": {
        "preset": "cifar100", "blocks": "0-1", "epochs": 1, "shared_epochs": 1, "warmup": 0, "shared_warmup": 0,
        "tii_epochs": 20, "tap_epochs": 5, "centroids": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def stream(blobs: Data) -> Stream:
    """Three tasks of two classes of 12 images."""
    return Stream.class_incremental(*blobs, first=2, increment=2)


@pytest.fixture(scope="session")
def learners(tiny: TimmViT, stream: Stream) -> dict[str, Learner]:
    made = {}
    for method, options in OPTIONS.items():
        made[method] = Learner(method, tiny, progress=False, device="cpu", **options)
        for task in stream:
            made[method].learn(task)
    return made


@pytest.fixture(params=["safe", "ranpac", "aper", "ntk_cl", "hide_pet"])
def learner(request: pytest.FixtureRequest, learners: dict[str, Learner]) -> Learner:
    return learners[request.param]


@pytest.fixture(scope="session")
def pictures(blobs: Data) -> Tensor:
    """Nine images [9, 3, 32, 32] in [0, 1], of all classes."""
    loaded = np.stack([np.asarray(blobs[0].load(row)) for row in range(0, 72, 8)])
    return torch.from_numpy(loaded).permute(0, 3, 1, 2).float() / 255


class Flat(Backbone):
    """The feature of an image are its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape(width=WIDTH, depth=1, heads=1, hidden=1, tokens=1)
        self.identity = ImageIdentity("flat", "", "unit", (0.0,) * 3, (1.0,) * 3, SIZE)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)

    def embed(self, inputs: Tensor, tuning: object = None) -> Tensor:
        return inputs.flatten(1)[:, None]

    def run(self, tokens: Tensor, tuning: object, start: float, stop: float, mask: Tensor | None = None) -> Tensor:
        return tokens

    def read(self, tokens: Tensor, tuning: object, mask: Tensor | None = None) -> Tensor:
        return tokens[:, 0]

    def weight(self, block: int, name: str) -> Tensor:
        raise NotImplementedError


class Linear(Method):
    """F(x) = W x; ``dead`` reaches no score."""

    name = "linear"

    def __init__(self, classes: int) -> None:
        super().__init__(Config(), Flat().shape, WIDTH, Generators())
        self.W = nn.Parameter(torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(0)))
        self.dead = nn.Parameter(torch.ones(7))
        self.chosen = ["W"]

    def phases(self, task: TaskInfo) -> Sequence[Phase]:
        return []

    def scores(self, passes: Passes) -> dict[str, Tensor]:
        return {"linear": passes() @ self.W.T}

    @property
    def branches(self) -> tuple[Tuning | None, ...]:
        return (None,)

    @property
    def tangent_parameters(self) -> dict[str, nn.Parameter]:
        return {name: self.get_parameter(name) for name in self.chosen}


@pytest.fixture
def linear() -> Linear:
    return Linear(3)


@pytest.fixture
def flat() -> Flat:
    return Flat()


@pytest.fixture
def pixels() -> Tensor:
    """Ten images of the linear model."""
    return torch.rand(10, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
