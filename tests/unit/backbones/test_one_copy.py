"""One backbone in memory, however many learners share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from evertune import Learner, Stream
from evertune.backbones import TimmViT
from evertune.streams import ArraySource, Task

METHODS: dict[str, dict[str, Any]] = {
    "simple_cil": {},
    "ranpac": {"features": 16, "epochs": 1},
    "aper": {"epochs": 1},
    "safe": {"features": 16, "epochs": 1, "follow_epochs": 1},
}


def tensors(root: Any) -> list[Tensor]:
    """Every tensor that can be reached from an object."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, str, bytes, int, float)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
        elif callable(item) and getattr(item, "__closure__", None):
            waiting.extend(cell.cell_contents for cell in item.__closure__)
        if type(item).__module__.startswith(("evertune", "torch.nn", "timm")):
            waiting.extend(vars(item).values() if hasattr(item, "__dict__") else [])
    return found


def two_tasks() -> list[Task]:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, size=(16, 32, 32, 3), dtype=np.uint8)
    source = ArraySource(x, np.arange(16) % 4)
    return list(Stream.class_incremental(source, source, first=2, increment=2))


def test_learners_share_one_backbone(make_model: Callable[..., VisionTransformer]) -> None:
    backbone = TimmViT(make_model().float(), "shared", preprocessing="unit")
    learners = []
    for method, options in METHODS.items():
        learner = Learner(method, backbone, device="cpu", progress=False, **options)
        for task in two_tasks():
            learner.learn(task)
        assert learner.backbone is backbone
        learners.append(learner)
    reached = tensors(learners)
    owned = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    assert owned <= {t.untyped_storage().data_ptr() for t in reached}  # the search does find the backbone
    storages = {t.untyped_storage().data_ptr(): t.detach() for t in reached}
    contents = Counter(t.contiguous().numpy().tobytes() for t in storages.values())
    for name, parameter in backbone.named_parameters():
        assert contents[parameter.detach().numpy().tobytes()] == 1, f"{name} is in memory more than once"
    assert sum(torch.is_tensor(t) for t in reached) > len(owned)  # and what the learners hold besides
