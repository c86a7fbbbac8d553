"""S-Prompts over a real, tiny transformer: what each task has is its own, and the nearest centroid says whose."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods import SPrompt
from evertune.streams import Source, Stream


def learner(backbone: TimmViT, **options: Any) -> Learner:
    quick: dict[str, Any] = {"epochs": 1, "batch_size": 8, "centroids": 3}
    return Learner("s_prompt", backbone, progress=False, device="cpu", **quick | options)


def directions(me: Learner, source: Source) -> np.ndarray:
    plain = me.engine.features(source).double().numpy()
    return plain / np.linalg.norm(plain, axis=1, keepdims=True)


def identified(me: Learner, test: Source) -> Tensor:
    method = me.method
    return me.engine.compute(test, method.branches, lambda p: {"tasks": method.identify(p)})["tasks"].long()


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5, "decay": "all", "optimizer": "sgd"}])
def test_a_task_moves_nothing_of_another(backbone: TimmViT, stream: Stream, options: dict[str, Any]) -> None:
    me = learner(backbone, **options)
    method = cast(SPrompt, me.method)
    me.learn(stream[0])
    first = copy.deepcopy(method.state_dict())
    me.learn(stream[1])
    after = method.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in after.items() if name.startswith("bank.slots.0."))
    assert torch.equal(method.heads.weight[:2], first["heads.weight"])
    assert torch.equal(method.centroids.centroids[:3], first["centroids.centroids"])
    assert not torch.equal(after["bank.slots.1.blocks.0.prompts"], first["bank.slots.0.blocks.0.prompts"])


def test_the_nearest_centroid_tells_the_task(backbone: TimmViT, stream: Stream, test: Source) -> None:
    """With a centroid for each training image, that is the task of the nearest neighbour."""
    me = learner(backbone, centroids=100)
    for task in stream:
        me.learn(task)
    train = [directions(me, task.train) for task in stream]
    distances = np.stack([2 - 2 * (directions(me, test) @ own.T).max(axis=1) for own in train], axis=1)
    found = identified(me, test)
    assert found.tolist() == distances.argmin(axis=1).tolist() and len(found.unique()) == 3


@pytest.mark.parametrize("head", ["imprinted", "linear"])
def test_scores_are_those_of_the_tasks_own_prompt_and_classifier(
    backbone: TimmViT, stream: Stream, test: Source, head: str
) -> None:
    me = learner(backbone, head=head)
    method = cast(SPrompt, me.method)
    for task in stream:
        me.learn(task)
    weight, bias = method.heads.weight.detach(), method.heads.bias.detach()
    scores, tasks = me.scores(test), identified(me, test)
    for t in range(3):
        slot = method.bank[t]
        features = me.engine.compute(test, (slot,), lambda p, slot=slot: {"features": p(slot)})["features"]
        if head == "imprinted":
            features = features / features.norm(dim=1, keepdim=True)
        rows, own = tasks == t, slice(2 * t, 2 * t + 2)
        torch.testing.assert_close(scores[rows, own], features[rows] @ weight[own].T + bias[own], rtol=1e-4, atol=1e-4)
        others = [c for c in range(6) if c // 2 != t]
        assert (scores[rows][:, others].amax(1) < scores[rows, own].amin(1)).all()


def test_domains_have_classifiers_of_their_own(backbone: TimmViT, domains: Stream, test: Source) -> None:
    """The same classes come again; each domain answers with its own rows, whichever it shows."""
    me = learner(backbone, head="linear")
    method = cast(SPrompt, me.method)
    for task in domains:
        me.learn(task)
    assert method.heads.classes == 18 and me.scores(test).shape == (30, 6)
    for t in range(3):
        numbers = torch.full((30,), t)
        told = me.engine.compute(test, method.branches, lambda p, n=numbers: {"told": method.told(p, n[p.rows])})[
            "told"
        ]
        slot = method.bank[t]
        features = me.engine.compute(test, (slot,), lambda p, slot=slot: {"features": p(slot)})["features"]
        rows = slice(6 * t, 6 * t + 6)
        wanted = features @ method.heads.weight.detach()[rows].T + method.heads.bias.detach()[rows]
        torch.testing.assert_close(told, wanted, rtol=1e-4, atol=1e-4)


def test_rows_start_as_the_means_of_their_classes(backbone: TimmViT, stream: Stream) -> None:
    """At a rate of nearly nothing they stay there."""
    me = learner(backbone, rate=1e-12, sigma_init=7)
    for task in stream:
        me.learn(task)
    rows = cast(SPrompt, me.method).heads.weight.detach().numpy()
    for t, task in enumerate(stream):
        own = directions(me, task.train)
        for c, name in enumerate(task.classes):
            mean = own[task.train.rows_of([name])].mean(axis=0)
            np.testing.assert_allclose(rows[2 * t + c], 7 * mean / np.linalg.norm(mean), atol=1e-4)


@pytest.mark.parametrize("options", [{"centroids": 0}, {"sigma_init": 0}])
def test_impossible_options(backbone: TimmViT, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}=0"):
        learner(backbone, **options)
