"""InfLoRA and SD-LoRA over a real, tiny transformer."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune.backbones import Passes, TimmViT
from evertune.errors import ConfigError
from evertune.learner import Learner
from evertune.methods.inflora import InfLoRA, InfLoRAConfig
from evertune.methods.sd_lora import SDLoRA, SDLoRAConfig
from evertune.streams import ArraySource, Stream
from evertune.tuning import Watched

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "blocks": "0-1"}


def learner(name: str, backbone: TimmViT, **options: Any) -> Learner:
    return Learner(name, backbone, progress=False, device="cpu", **QUICK | options)


def read_by_maps(me: Learner, source: ArraySource) -> Tensor:
    """Σ h hᵀ of what each block's maps read of all examples, [blocks, D, D]."""
    method, totals = cast(InfLoRA, me.method), []

    def read(passes: Passes) -> dict[str, Tensor]:
        watched = Watched(method.tuning, None)
        made = passes(watched)
        totals.append(watched.sums)
        return {"feature": made}

    me.engine.compute(source, (), read)
    return torch.stack(totals).sum(0)


# -- InfLoRA -----------------------------------------------------------------------------------------------------------


def test_branches_lie_outside_of_what_earlier_tasks_read(backbone: TimmViT, stream: Stream) -> None:
    me = learner("inflora", backbone, rank=4, share=0.9)
    method = cast(InfLoRA, me.method)
    read: list[Tensor] = []
    for number, task in enumerate(stream):
        memories = [space.free(torch.eye(48)) for space in method.spaces]
        me.learn(task)
        read.append(read_by_maps(me, task.train))
        last = method.tuning.owner == number
        for block, free in zip(method.tuning.indices, memories, strict=True):
            maps = method.tuning.maps_of(block)
            rows = maps["k"].down[:, last].detach().double()  # B_tᵀ
            assert torch.equal(maps["k"].down, maps["v"].down)
            torch.testing.assert_close(rows.T @ rows, torch.eye(4).double() / 3, rtol=0, atol=1e-5)
            torch.testing.assert_close(free @ rows, rows, rtol=0, atol=1e-5)
            assert maps["k"].up[last].any() and maps["v"].up[last].any()  # A_tᵀ, which began at zero
        for space, moments in zip(method.spaces, read[-1], strict=True):
            left = torch.einsum("ij,jk,ik->", space.free(torch.eye(48)), moments, space.free(torch.eye(48)))
            assert left <= (1 - method.config.share_of(number) + 1e-6) * moments.trace()
    assert method.tuning.magnitudes.tolist() == [1, 1, 1]


def test_the_change_for_old_inputs_is_bounded_by_what_the_memory_left(backbone: TimmViT, stream: Stream) -> None:
    """‖X B_tᵀ A_tᵀ‖_F over old inputs X is at most √((1 − ε) ‖X‖²_F) ‖B_tᵀ A_tᵀ‖_2."""
    me = learner("inflora", backbone, rank=4, share=0.99, share_end=0.99)
    method = cast(InfLoRA, me.method)
    me.learn(stream[0])
    moments = read_by_maps(me, stream[0].train)
    me.learn(stream[1])
    for block, moment in zip(method.tuning.indices, moments, strict=True):
        for m in method.tuning.maps_of(block).values():
            change = (m.down[:, 4:] @ m.up[4:]).detach().double()
            moved = torch.einsum("ij,ik,kj->", change, moment, change)
            bound = 0.01 * moment.trace() * torch.linalg.matrix_norm(change, 2) ** 2
            assert 0 < moved <= bound * (1 + 1e-4)


def test_with_nothing_left_to_learn_in_the_features_stay(backbone: TimmViT, stream: Stream, test: ArraySource) -> None:
    me = learner("inflora", backbone, rank=4, share=1.0)
    me.learn(stream[0])
    assert all(space.size == 47 for space in cast(InfLoRA, me.method).spaces)  # the norm in front centres tokens
    before = me.method.tuning.block(0).delta()
    scores = me.scores(test)
    me.learn(stream[1])
    after = me.method.tuning.block(0).delta()
    assert all(torch.allclose(after[name], before[name]) for name in before)
    cosine = F.cosine_similarity(scores, me.scores(test)[:, :2])
    assert cosine.min() > 0.999  # rows stay, the scale learns


def test_only_the_new_branch_learns(backbone: TimmViT, stream: Stream) -> None:
    me = learner("inflora", backbone, rank=4)
    me.learn(stream[0])
    method = cast(InfLoRA, me.method)
    down, up = ([getattr(m, name).detach().clone() for m in method.tuning.maps] for name in ("down", "up"))
    reports = me.learn(stream[1])
    assert [r.name for r in reports] == [
        "open", "inputs", "design", "class means", "grow head", "direction", "inputs learned", "remember", "close"
    ]  # fmt: skip
    assert reports[5].parameters == 2 * 2 * 4 * 48 + 4 * 48 + 1  # A_t of two maps in two blocks, the head, its scale
    assert all(torch.equal(m.down[:, :4], old) for m, old in zip(method.tuning.maps, down, strict=True))
    assert all(torch.equal(m.up[:4], old) for m, old in zip(method.tuning.maps, up, strict=True))
    assert method.tuning.frozen and not method.moments.sums.numel()


def test_shares_grow_in_equal_steps() -> None:
    made = InfLoRAConfig.make("paper")
    assert [made.share_of(t) for t in range(12)] == pytest.approx([0.95 + 0.005 * t for t in range(10)] + [0.995] * 2)


# -- SD-LoRA -----------------------------------------------------------------------------------------------------------


def test_directions_stay_and_magnitudes_learn(backbone: TimmViT, stream: Stream) -> None:
    me = learner("sd_lora", backbone, ranks="3,2:2")
    tuning = cast(SDLoRA, me.method).tuning
    magnitudes: list[float] = []
    for number, task in enumerate(stream):
        before = [(m.down.detach().clone(), m.up.detach().clone()) for m in tuning.maps]
        me.learn(task)
        for m, (down, up) in zip(tuning.maps, before, strict=True):
            assert torch.equal(m.down[:, : down.shape[1]], down) and torch.equal(m.up[: len(up)], up)
        learned = tuning.magnitudes.tolist()
        assert all(new != old for new, old in zip(learned, magnitudes, strict=False)) and len(learned) == number + 1
        magnitudes = learned
    assert tuning.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    torch.testing.assert_close(tuning.inner().diagonal(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)
    assert tuning.frozen and me.method.describe()["magnitudes"] == [round(a, 4) for a in magnitudes]


def test_one_pass_serves_any_number_of_tasks(backbone: TimmViT, stream: Stream, test: ArraySource) -> None:
    me = learner("sd_lora", backbone)
    for task in stream:
        me.learn(task)
        counted: list[int] = []

        def read(passes: Passes, counted: list[int] = counted) -> dict[str, Tensor]:
            me.method.scores(passes)
            counted.append(passes.forwards)
            return {}

        me.engine.compute(test, (), read)
        assert counted == [1]


def test_a_direction_that_adds_little_is_absorbed(backbone: TimmViT, stream: Stream) -> None:
    me = learner("sd_lora", backbone, absorb=0.999999)  # whatever is not quite orthogonal
    tuning = cast(SDLoRA, me.method).tuning
    me.learn(stream[0])
    first = tuning.magnitudes.tolist()
    me.learn(stream[1])
    assert len(tuning.magnitudes) == 1 and tuning.magnitudes.tolist() != first
    assert tuning.owner.tolist() == [0] * 5 and tuning.frozen


def test_ranks_follow_the_tasks() -> None:
    made = SDLoRAConfig.make("paper-rr")
    assert [made.rank_of(t) for t in range(10)] == [10] * 4 + [8] * 4 + [6] * 2
    assert [SDLoRAConfig.make("paper").rank_of(t) for t in (0, 9)] == [10, 10]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (InfLoRAConfig, {"rank": 0}),
        (InfLoRAConfig, {"share": 1.5}),
        (InfLoRAConfig, {"share": 0.9, "share_end": 0.8}),
        (InfLoRAConfig, {"horizon": 0}),
        (SDLoRAConfig, {"ranks": "10,4"}),
        (SDLoRAConfig, {"ranks": "0"}),
        (SDLoRAConfig, {"magnitude": 0.0}),
        (SDLoRAConfig, {"absorb": 1.0}),
    ],
)
def test_impossible_options_are_refused(config: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        config.make(**options)
