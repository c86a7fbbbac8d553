"""CODA-Prompt over a real, tiny transformer."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods import CodaPrompt
from evertune.streams import Source, Stream


def learner(backbone: TimmViT, **options: Any) -> Learner:
    quick: dict[str, Any] = {"epochs": 1, "batch_size": 8, "blocks": "0-1", "components": 4, "length": 2}
    return Learner("coda_prompt", backbone, progress=False, device="cpu", **quick | options)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5, "decay": "all"}])
def test_a_task_adds_components_and_moves_no_other(backbone: TimmViT, stream: Stream, options: dict[str, Any]) -> None:
    me = learner(backbone, **options)
    method = cast(CodaPrompt, me.method)
    me.learn(stream[0])
    first = copy.deepcopy(method.pool.tasks[0].state_dict())
    me.learn(stream[1])
    assert all(torch.equal(value, first[name]) for name, value in method.pool.tasks[0].state_dict().items())
    assert method.pool.all(0, "prompts").shape == (8, 4, 48) and len(method.pool.tasks) == 2
    moved = [(p - q).abs().max() for p, q in zip(method.pool.tasks[1].parameters(), first.values(), strict=True)]
    assert min(moved) > 0


def test_rows_of_another_task_stay(backbone: TimmViT, stream: Stream) -> None:
    me = learner(backbone)
    method = cast(CodaPrompt, me.method)
    me.learn(stream[0])
    rows = method.head.weight.detach().clone()
    me.learn(stream[1])
    assert torch.equal(method.head.weight[:2], rows)


def test_scores_are_the_heads_of_the_composed_feature(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """Its query is the plain feature, and all components compose."""
    me = learner(backbone)
    method = cast(CodaPrompt, me.method)
    for task in stream:
        me.learn(task)
    query = me.engine.features(test)
    images = me.engine.compute(test, (None,), lambda passes: {"images": passes.inputs.flatten(1)})["images"]
    with torch.no_grad():
        features = backbone(images.view(-1, 3, 32, 32), method.pool.select(query))
        wanted = method.head.sigma * torch.nn.functional.cosine_similarity(
            features[:, None], method.head.weight[None], dim=2
        )
    torch.testing.assert_close(me.scores(test), wanted, rtol=1e-4, atol=1e-4)
    assert method.pool.weights(0, query).shape == (len(test), 12)


def test_the_penalty_keeps_components_apart(backbone: TimmViT, stream: Stream) -> None:
    left = []
    for weight in (0.0, 10.0):
        me = learner(backbone, orthogonality=weight, epochs=3)
        me.learn(stream[0])
        left.append(float(cast(CodaPrompt, me.method).pool.penalty().detach()))
    assert left[1] < left[0] / 2


@pytest.mark.parametrize("options", [{"orthogonality": -1}, {"components": 49}, {"components": 0}, {"length": 0}])
def test_impossible_options(backbone: TimmViT, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}|components of length"):
        learner(backbone, **options)
