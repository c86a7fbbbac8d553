"""The module that exports are made from: the library's own scores, out of no more than they need."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from evertune import ArraySource, Learner, Task
from evertune.backbones import HFEncoder
from evertune.errors import ExportError, StreamError
from evertune.export import Graph
from evertune.methods import METHODS

Taught = Callable[..., Learner]
PIXELS = np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
STATIC = sorted(name for name, method in METHODS.items() if not method.dynamic)
DYNAMIC = sorted(METHODS.keys() - set(STATIC))
TUNINGS = ("adapter", "full", "lora", "prefix", "prompt", "sequential_adapter", "ssf", "token_mixing", "vpt")


def scores(graph: Graph, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return graph(inputs)["scores"]


def test_few_methods_are_no_static_graph() -> None:
    """All others are exported below. A method that decides by its scores belongs here, one that need not does not."""
    assert DYNAMIC == ["hide_pet", "s_prompt"]


@pytest.mark.parametrize("method", STATIC)
def test_a_graph_answers_as_the_learner(method: str, taught: Taught) -> None:
    learner = taught(method)
    torch.testing.assert_close(scores(Graph(learner), IMAGES), learner.scores(PIXELS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_every_tuning_folds(tuning: str, taught: Taught) -> None:
    learner = taught("finetune", tuning=tuning)
    torch.testing.assert_close(scores(Graph(learner), IMAGES), learner.scores(PIXELS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", DYNAMIC)
def test_one_task_alone_is_static_where_all_together_are_not(method: str, taught: Taught) -> None:
    learner = taught(method)
    first = learner.history[0]["task"]
    with pytest.raises(ExportError, match=f"{METHODS[method].dynamic}.*task='task 2'"):
        Graph(learner)
    for task in (first, 1):
        ours = learner.scores(PIXELS, task)
        assert ours.isneginf().sum() == 3 * len(PIXELS)
        torch.testing.assert_close(scores(Graph(learner, task), IMAGES), ours, rtol=1e-5, atol=1e-5)
    with pytest.raises(StreamError, match="No task is called 'other'"):
        Graph(learner, "other")


def test_a_told_task_leaves_its_classes_for_static_methods_too(taught: Taught) -> None:
    learner = taught("simple_cil")
    torch.testing.assert_close(scores(Graph(learner, 1), IMAGES), learner.scores(PIXELS, 1))


def test_it_holds_no_copy_and_only_what_scores_are_made_from(taught: Taught) -> None:
    learner = taught("safe")
    graph = Graph(learner)
    assert graph.backbone is learner.backbone
    own = {tensor.data_ptr() for tensor in learner.method.state_dict().values()}
    held = graph.method.state_dict()
    assert {tensor.data_ptr() for tensor in held.values()} <= own
    assert {name.split(".")[0] for name in held} == {"R", "slow", "fast", "ridge_slow", "ridge_fast"}
    assert not any(tensor.requires_grad for tensor in (*graph.parameters(), *graph.buffers()))


def test_the_learner_stays_as_it_was_and_learns_on(taught: Taught, blobs: tuple[ArraySource, ArraySource]) -> None:
    learner, twin = taught("safe"), taught("safe")
    Graph(learner)
    for one in (learner, twin):
        one.learn(Task(2, "again", blobs[0].select(range(0, 72, 9)), kind="domain"))
    for (name, mine), theirs in zip(
        learner.method.state_dict().items(), twin.method.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    mine, theirs = ([p.requires_grad for p in one.method.parameters()] for one in (learner, twin))
    assert mine == theirs


def test_probabilities_are_at_the_learners_temperature(taught: Taught, blobs: tuple[ArraySource, ArraySource]) -> None:
    learner = taught("simple_cil")
    learner.calibrate(blobs[1])
    assert learner.temperature is not None
    found = Graph(learner)(IMAGES)["probabilities"]
    np.testing.assert_allclose(found, learner.predict_proba(PIXELS), rtol=1e-4, atol=1e-6)
    assert abs(found - Graph(learner)(IMAGES)["scores"].softmax(1)).max() > 0.01


def test_token_ids_of_any_length(read: Taught) -> None:
    learner = read("safe")
    assert isinstance(learner.backbone, HFEncoder)
    text = "w30 w41 w52"
    ids = torch.nn.functional.pad(learner.test_view(text, np.random.default_rng()), (0, 13))[None]
    torch.testing.assert_close(scores(Graph(learner), ids), learner.scores([text]), rtol=1e-5, atol=1e-5)


def test_nothing_learned_is_nothing_to_export(tiny: torch.nn.Module) -> None:
    with pytest.raises(ExportError, match="learned nothing yet"):
        Graph(Learner("simple_cil", tiny, device="cpu", progress=False))  # type: ignore[arg-type]
