"""The deployed scores as a function of the tuning parameters: the same scores, the right columns, nothing changed."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import Tensor

from evertune import Learner, Stream
from evertune.backbones import Passes, TimmViT
from evertune.diagnostics import Spectrum, Tangent, exact, sample_gain
from evertune.errors import ConfigError
from evertune.methods import HiDePET, Method
from evertune.streams import ArraySource


def answers(method: Method, backbone: TimmViT, images: Tensor) -> Tensor:
    with torch.no_grad():
        return next(iter(method.scores(Passes(backbone, images)).values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scores_are_those_that_the_learner_answers_with(
    learner: Learner, pictures: Tensor, dtype: torch.dtype
) -> None:
    tangent = Tangent(learner.method, learner.backbone, outputs=6, dtype=dtype)
    scores, features = tangent.evaluate(pictures)
    expected = answers(learner.method, cast(TimmViT, learner.backbone), pictures)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.float(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(9, dtype=dtype))


def test_more_classes_than_outputs_are_projected_on_fixed_orthonormal_directions(
    learner: Learner, pictures: Tensor
) -> None:
    few, again, other = (
        Tangent(learner.method, learner.backbone, outputs=3, seed=seed, dtype=torch.float64) for seed in (0, 0, 1)
    )
    all_of_them = Tangent(learner.method, learner.backbone, outputs=6, dtype=torch.float64)
    torch.testing.assert_close(few.directions.T @ few.directions, torch.eye(3, dtype=torch.float64))
    assert torch.equal(few.directions, again.directions) and not torch.equal(few.directions, other.directions)
    torch.testing.assert_close(few.evaluate(pictures)[0], few.project(all_of_them.evaluate(pictures)[0]))
    whole = exact(all_of_them, pictures).view(9, 6, 9, 6)
    expected = torch.einsum("iajb,ac,bd->icjd", whole, few.directions, few.directions).reshape(27, 27)
    torch.testing.assert_close(exact(few, pictures), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_the_learner_is_what_it_was_to_the_last_bit(learner: Learner, stream: Stream, pictures: Tensor) -> None:
    method, backbone = learner.method, learner.backbone
    before = {name: t.clone() for name, t in (*method.state_dict().items(), *backbone.state_dict().items())}
    trainable = {name: (p.requires_grad, p.grad, id(p)) for name, p in method.named_parameters()}
    modes, random = [m.training for m in method.modules()], torch.random.get_rng_state()
    generator = method.generators.sampling.get_state()
    for dtype in (torch.float32, torch.float64):
        exact(Tangent(method, backbone, dtype=dtype), pictures)
    after = dict((*method.state_dict().items(), *backbone.state_dict().items()))
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    assert trainable == {name: (p.requires_grad, p.grad, id(p)) for name, p in method.named_parameters()}
    assert modes == [m.training for m in method.modules()]
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(generator, method.generators.sampling.get_state())


def test_an_image_routed_to_a_task_depends_on_the_parameters_of_that_task_alone(
    learners: dict[str, Learner], pictures: Tensor
) -> None:
    method = copy.deepcopy(cast(HiDePET, learners["hide_pet"].method))
    routes = torch.tensor([0, 2, 1, 0, 2, 0, 1, 1, 2])
    told = iter([torch.zeros(1, dtype=torch.long), routes[:8], routes[8:]])
    method.identify = lambda passes: next(told)  # type: ignore[method-assign]
    tangent = Tangent(method, learners["hide_pet"].backbone, outputs=2)
    kernel = exact(tangent, pictures)
    for slot in range(3):
        own = {name.split(".blocks")[0] for name in tangent.live(slot)}
        assert own == {f"method.e.slots.{slot}"}
    apart = (routes[:, None] != routes).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert (kernel[apart] == 0).all() and (kernel.diagonal() > 0).all()


def test_a_learner_without_tuning_parameters_is_refused(tiny: TimmViT, stream: Stream) -> None:
    learner = Learner("simple_cil", tiny, progress=False, device="cpu")
    learner.learn(stream[0])
    with pytest.raises(ConfigError, match="simple_cil has no trained tuning parameters"):
        Tangent(learner.method, tiny)


def test_parts_stand_side_by_side(learners: dict[str, Learner], pictures: Tensor) -> None:
    """D9: each part's rows are those of a tangent of its own; "together" is the mean of the three."""
    method, backbone = learners["ntk_cl"].method, learners["ntk_cl"].backbone
    parts = ("hybrid", "channel", "patch")
    kernel = exact(Tangent(method, backbone, outputs=2, parts=parts), pictures)
    blocks = kernel.view(9, 3, 2, 9, 3, 2)
    ranks = []
    for index, part in enumerate(parts):
        alone = exact(Tangent(method, backbone, outputs=2, parts=[part]), pictures)
        own = blocks[:, index, :, :, index].reshape(18, 18)
        torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-5 * float(alone.max()))
        ranks.append(Spectrum.of(alone).effective_rank)
    answer = exact(Tangent(method, backbone, outputs=2), pictures)
    torch.testing.assert_close(blocks.mean((1, 4)).view(18, 18), answer, rtol=1e-4, atol=1e-5 * float(answer.max()))
    assert sample_gain(kernel, 9, 3) == pytest.approx(Spectrum.of(kernel).effective_rank / ranks[0], rel=1e-3)


def test_parts_and_parameters_that_are_not_there_are_named(learners: dict[str, Learner]) -> None:
    ntk, hide = learners["ntk_cl"], learners["hide_pet"]
    with pytest.raises(ConfigError, match=r"no scores of the part 'hybird'. Did you mean 'hybrid'\?"):
        Tangent(ntk.method, ntk.backbone, parts=["hybird"])
    with pytest.raises(ConfigError, match="hide_pet routes images"):
        Tangent(hide.method, hide.backbone, parts=["routed"])
    with pytest.raises(ConfigError, match="no tuning parameter 'weight'"):
        Tangent(ntk.method, ntk.backbone, names=["weight"])


def test_there_is_at_least_one_output(learners: dict[str, Learner], blobs: tuple[ArraySource, ArraySource]) -> None:
    with pytest.raises(ConfigError, match="outputs=0"):
        Tangent(learners["safe"].method, learners["safe"].backbone, outputs=0)
