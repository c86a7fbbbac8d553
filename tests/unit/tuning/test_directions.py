"""A sum of LoRAs against the weights that it adds, and its algebra against numpy on flattened matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.tuning import Directions, Watched, merged
from evertune.tuning.directions import Product
from evertune.tuning.lora import LoRABlock

RANKS = (3, 2, 4)
MAGNITUDES = (0.5, -1.5, 2.0)


def made(vit: TimmViT, ranks: tuple[int, ...] = RANKS, *, close: bool = True) -> Directions:
    """Directions of these ranks with random factors; the last one may be open."""
    tuning, generator = Directions(vit.shape, (0, 2), targets="qv").double(), torch.Generator().manual_seed(3)
    for number, rank in enumerate(ranks):
        tuning.open(rank, generator)
        with torch.no_grad():
            for m in tuning.maps:
                m.b.copy_(0.3 * torch.randn(m.b.shape, generator=generator))
        if close or number + 1 < len(ranks):
            tuning.close()
    with torch.no_grad():
        tuning.magnitudes.copy_(torch.tensor(MAGNITUDES[: len(ranks)]))
    return tuning


def factors(tuning: Directions) -> list[list[np.ndarray]]:
    """A_k B_k of every direction and map, without magnitudes."""
    ends = np.cumsum([0, *RANKS])
    found = []
    for first, last in itertools.pairwise(ends):
        parts = [(torch.cat([m.down, m.a], 1)[:, first:last], torch.cat([m.up, m.b])[first:last]) for m in tuning.maps]
        found.append([(a @ b).detach().numpy() for a, b in parts])
    return found


@pytest.mark.parametrize("close", [True, False])
def test_the_sum_is_that_of_all_directions(vit: TimmViT, images: Tensor, close: bool) -> None:
    tuning = made(vit, close=close)
    each = factors(tuning)
    names = [(i, name) for i in (0, 2) for name in "qv"]
    weights = {at: vit.weight(*at) for at in names}
    before = {at: weight.clone() for at, weight in weights.items()}
    plain = vit(images)
    for number, at in enumerate(names):
        change = sum(alpha * parts[number] for alpha, parts in zip(MAGNITUDES, each, strict=True))
        weights[at].add_(torch.from_numpy(change.T))
    wanted = vit(images)
    for at in names:
        weights[at].copy_(before[at])
    assert not torch.allclose(wanted, plain)
    torch.testing.assert_close(vit(images, tuning), wanted, rtol=0, atol=1e-10)
    with merged(vit, tuning):
        torch.testing.assert_close(vit(images), wanted, rtol=0, atol=1e-10)


def test_large_ranks_are_multiplied_out_and_say_the_same(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit, (9, 5, 4))
    assert isinstance(tuning.block(0), Product)  # 2 · 18 > 32
    tuning.magnitudes.requires_grad_(True)
    assert type(tuning.block(0)) is LoRABlock and tuning.block(1) is None
    factored = vit(images, tuning).detach()
    for _ in range(2):
        torch.testing.assert_close(vit(images, tuning.freeze()), factored, rtol=0, atol=1e-10)
    with merged(vit, tuning):
        torch.testing.assert_close(vit(images), factored, rtol=0, atol=1e-10)
    assert tuning.block(0) is tuning.block(0)
    with torch.no_grad():
        tuning.magnitudes.mul_(2)
    twice = Directions(vit.shape, (0, 2), targets="qv").double()
    twice.load_state_dict(tuning.state_dict())
    assert torch.equal(vit(images, tuning), vit(images, twice.freeze()))
    assert not torch.allclose(vit(images, tuning), factored)


def test_an_open_direction_learns_and_closed_ones_only_their_magnitudes(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit)
    assert tuning.frozen
    before = vit(images, tuning)
    tuning.open(2, torch.Generator().manual_seed(0), 0.8)
    torch.testing.assert_close(vit(images, tuning), before, rtol=0, atol=1e-12)  # B is zero
    assert tuning.magnitudes.tolist() == pytest.approx([*MAGNITUDES, 0.8])
    vit(images, tuning).square().sum().backward()
    assert tuning.magnitudes.grad is not None and (tuning.magnitudes.grad[:3] != 0).all()
    for m in tuning.maps:
        assert m.b.grad is not None and m.b.grad.any() and m.down.grad is None and m.up.grad is None


def test_normalising_changes_the_factors_and_not_the_sum(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit, close=False)
    before, norms = vit(images, tuning), [np.linalg.norm(part) for part in factors(tuning)[2]]
    tuning.normalise()
    torch.testing.assert_close(vit(images, tuning), before, rtol=0, atol=1e-10)
    root = np.sqrt(np.mean(np.square(norms)))
    assert tuning.magnitudes.tolist() == pytest.approx([0.5, -1.5, 2.0 * root])
    assert tuning.inner()[2, 2].item() == pytest.approx(1)


def test_inner_products_are_those_of_the_matrices(vit: TimmViT) -> None:
    tuning = made(vit, close=False)
    flat = np.array([np.concatenate([part.ravel() for part in parts]) for parts in factors(tuning)])
    np.testing.assert_allclose(tuning.inner().detach().numpy(), flat @ flat.T / 4, rtol=1e-9)


def test_a_direction_near_the_others_is_absorbed(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit, close=False)
    flat = np.array([np.concatenate([part.ravel() for part in parts]) for parts in factors(tuning)])
    found, rest, *_ = np.linalg.lstsq(flat[:2].T, flat[2], rcond=None)
    share = float(rest[0] / (flat[2] @ flat[2]))
    assert not tuning.absorb(share * 0.99) and len(tuning.magnitudes) == 3
    assert tuning.absorb(share * 1.01) and tuning.frozen
    assert tuning.magnitudes.tolist() == pytest.approx([0.5 + 2 * found[0], -1.5 + 2 * found[1]])
    assert all(not m.a.numel() and m.down.shape[1] == 5 for m in tuning.maps)
    assert vit(images, tuning).isfinite().all()


def test_what_is_a_combination_is_absorbed_without_a_trace(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit, RANKS[:1])
    tuning.open(3, torch.Generator().manual_seed(0), 2.0)
    with torch.no_grad():
        for m in tuning.maps:
            m.a.copy_(m.down)
            m.b.copy_(0.7 * m.up)
    before = vit(images, tuning)
    assert tuning.absorb(1e-9) and tuning.magnitudes.tolist() == pytest.approx([0.5 + 2 * 0.7])
    torch.testing.assert_close(vit(images, tuning), before, rtol=0, atol=1e-9)


def test_the_first_direction_and_one_of_zeros_are_not_absorbed(vit: TimmViT) -> None:
    first = made(vit, RANKS[:1], close=False)
    assert not first.absorb(0.9)
    first.close()
    first.open(2, torch.Generator().manual_seed(0))
    assert not first.absorb(0.9)
    first.normalise()
    assert first.magnitudes.tolist() == [0.5, 1.0] and first.block(0).b["q"].isfinite().all()


@pytest.mark.parametrize("close", [True, False])
def test_a_state_of_any_size_loads(vit: TimmViT, images: Tensor, close: bool) -> None:
    tuning = made(vit, close=close)
    for other in (Directions(vit.shape, (0, 2), targets="qv").double(), made(vit, (1, 1))):
        other.load_state_dict(tuning.state_dict())
        assert torch.equal(vit(images, other), vit(images, tuning))
        assert other.fingerprint() == tuning.fingerprint()


def test_a_damaged_state_is_refused(vit: TimmViT) -> None:
    state = made(vit).state_dict()
    for name, value in (
        ("owner", torch.full_like(state["owner"], 3)),
        ("owner", state["owner"][:-1]),
        ("blocks.0.q.up", state["blocks.0.q.up"][:-1]),
        ("blocks.2.v.a", torch.zeros(32, 2)),
    ):
        with pytest.raises(RuntimeError, match="state_dict"):
            Directions(vit.shape, (0, 2), targets="qv").double().load_state_dict(state | {name: value})


def test_impossible_settings(vit: TimmViT) -> None:
    with pytest.raises(ConfigError, match="targets 'qx'"):
        Directions(vit.shape, (0,), targets="qx")
    with pytest.raises(ConfigError, match="rank=0"):
        Directions(vit.shape, (0,)).open(0, torch.Generator())


def test_watched_inputs_are_those_of_the_attention(vit: TimmViT, images: Tensor) -> None:
    tuning, seen = made(vit), {}
    hooks = [
        vit.vit.blocks[i].norm1.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out})) for i in (0, 2)
    ]
    watched = Watched(tuning, None)
    feature = vit(images, watched)
    for hook in hooks:
        hook.remove()
    assert torch.equal(feature, vit(images, tuning))
    for sums, i in zip(watched.sums, (0, 2), strict=True):
        wanted = torch.einsum("bnd,bne->de", seen[i], seen[i])
        torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-4)


def test_padding_is_not_watched(vit: TimmViT, images: Tensor) -> None:
    tuning = made(vit)
    mask = torch.ones(4, 17, dtype=torch.bool)
    mask[1:, 5:] = False
    some, first = Watched(tuning, mask), Watched(tuning, None)
    vit(images, some)
    vit(images[:1], first)
    others = [Watched(tuning, None) for _ in range(3)]
    for row, watched in enumerate(others, 1):
        block, tokens = watched.block(0), vit.vit.blocks[0].norm1(vit.embed(images[row : row + 1]))[:, :5]
        block.project(tokens, "k", tokens)
    wanted = first.sums[0] + sum(watched.sums[0] for watched in others)
    torch.testing.assert_close(some.sums[0], wanted, rtol=1e-5, atol=1e-5)
