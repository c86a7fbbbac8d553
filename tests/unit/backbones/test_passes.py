"""Passes: each forward at most once, shared beginnings, graphs only where something is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evertune.backbones import Passes, TimmViT, digest
from evertune.tuning import Bank, Tuning, make_tuning


def make(vit: TimmViT, blocks: str = "all", kind: str = "adapter", **options: Any) -> Tuning:
    generator = torch.Generator().manual_seed(5)
    tuning = make_tuning(kind, vit.shape, generator, blocks=blocks, **options)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tuning.double().eval()


@pytest.fixture
def calls(vit: TimmViT) -> Iterator[Counter[str]]:
    """How often the embedding, each block's attention and the second block's MLP ran."""
    counted: Counter[str] = Counter()

    def count(name: str) -> Any:
        return lambda *_: counted.update([name])

    places: dict[str, nn.Module] = {"embed": vit.vit.patch_embed}
    places |= {str(i): block.norm1 for i, block in enumerate(vit.vit.blocks)}
    places["mlp of 1"] = vit.vit.blocks[1].norm2
    handles = [place.register_forward_hook(count(name)) for name, place in places.items()]
    yield counted
    for handle in handles:
        handle.remove()


class Remembered(dict[str, tuple[Tensor, Tensor]]):
    """Features and which of their rows are known, by branch, of a batch of so many images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def put(self, branch: str, features: Tensor, rows: Tensor) -> None:
        empty = torch.zeros(self.size, features.shape[1]), torch.zeros(self.size, dtype=torch.bool)
        whole, known = self.setdefault(branch, empty)
        whole[rows], known[rows] = features, True


def test_asking_twice_costs_once(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes, tuning = Passes(vit, images), make(vit)
    assert passes() is passes()
    assert passes(tuning) is passes(tuning)
    assert passes.forwards == 2
    assert calls == {"embed": 1, "0": 2, "1": 2, "mlp of 1": 2, "2": 2, "3": 2}


def test_branches_share_their_beginning(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes = Passes(vit, images)
    first, later, plain = make(vit, "1-3"), make(vit, "3"), None
    got = [passes(branch) for branch in (first, later, plain)]
    assert calls == {"embed": 1, "0": 1, "1": 1, "mlp of 1": 2, "2": 2, "3": 3}  # an adapter spares the attention
    for branch, features in zip((first, later, plain), got, strict=True):
        torch.testing.assert_close(features.detach(), vit(images, branch).float().detach(), rtol=0, atol=1e-6)


def test_what_acts_behind_the_attention_shares_it(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes = Passes(vit, images)
    channel, patch = make(vit, "1-3"), make(vit, "1-3", "token_mixing", length=2)
    got = [passes(branch) for branch in (channel, patch)]
    assert calls == {"embed": 1, "0": 1, "1": 1, "mlp of 1": 2, "2": 2, "3": 2}
    for branch, features in zip((channel, patch), got, strict=True):
        torch.testing.assert_close(features.detach(), vit(images, branch).float().detach(), rtol=0, atol=1e-6)


def test_a_tuned_embedding_is_its_own(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes, ssf = Passes(vit, images), make(vit, kind="ssf")
    plain, tuned = passes(), passes(ssf)
    assert calls == {"embed": 2, "0": 2, "1": 2, "mlp of 1": 2, "2": 2, "3": 2}
    torch.testing.assert_close(tuned.detach(), vit(images, ssf).float().detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain, vit(images).float(), rtol=0, atol=1e-6)


def test_scale_and_shift_of_late_blocks_share(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes = Passes(vit, images)
    passes(make(vit, "2-3", "ssf"))
    passes()
    assert calls == {"embed": 1, "0": 1, "1": 1, "mlp of 1": 1, "2": 2, "3": 2}


def test_frozen_branches_have_no_graph_and_may_enter_one(vit: TimmViT, images: Tensor) -> None:
    passes, frozen = Passes(vit, images), make(vit).freeze()
    weight = nn.Parameter(torch.ones(vit.shape.width))
    for features in (passes(), passes(frozen)):
        assert features.dtype == torch.float32
        assert not features.requires_grad and not features.is_inference()
        (features * weight).square().sum().backward()
    assert weight.grad is not None


def test_only_the_tuning_is_trained(vit: TimmViT, images: Tensor) -> None:
    before = digest(vit.state_dict())
    tuning = make(vit, "1-3").train()
    optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
    passes = Passes(vit, images)
    loss = (passes(tuning) - passes()).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tuning.parameters())
    assert all(p.grad is None for p in vit.parameters())
    optimizer.step()
    assert digest(vit.state_dict()) == before


def test_no_graph_where_gradients_are_off(vit: TimmViT, images: Tensor) -> None:
    with torch.no_grad():
        features = Passes(vit, images)(make(vit))
    assert not features.requires_grad and not features.is_inference()


def test_a_look_without_gradients_does_not_spoil_training(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    passes, tuning = Passes(vit, images), make(vit, "2-3")
    with torch.no_grad():
        looked = passes(tuning)
    trained = passes(tuning)
    trained.square().sum().backward()
    torch.testing.assert_close(looked, trained.detach(), rtol=0, atol=0)
    assert all(p.grad is not None for p in tuning.parameters())
    assert calls == {"embed": 1, "0": 1, "1": 1, "mlp of 1": 1, "2": 1, "3": 2}
    with torch.no_grad():
        assert passes(tuning) is trained


def test_a_branch_that_shares_tokens_made_without_gradients_trains(vit: TimmViT, images: Tensor) -> None:
    passes, tuning = Passes(vit, images), make(vit)
    with torch.no_grad():
        passes()
    passes(tuning).square().sum().backward()
    assert all(p.grad is not None for p in tuning.parameters())


def test_memory_spares_frozen_branches_even_the_decoding(vit: TimmViT, images: Tensor, calls: Counter[str]) -> None:
    memory, frozen, trained = Remembered(len(images)), make(vit).freeze(), make(vit, kind="lora")
    first = Passes(vit, images, memory=memory)
    expected = [first(), first(frozen), first(trained)]
    assert set(memory) == {"plain", frozen.fingerprint()}

    def unread() -> Tensor:
        raise AssertionError("the images were not needed")

    calls.clear()
    second = Passes(vit, unread, memory=memory)
    assert torch.equal(second(), expected[0]) and torch.equal(second(frozen), expected[1])
    assert second.forwards == 0 and not calls
    with pytest.raises(AssertionError, match="not needed"):
        second(trained)


def test_without_a_memory_no_tuning_is_hashed(vit: TimmViT, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(self: Tuning) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(Tuning, "fingerprint", hashed)
    Passes(vit, images)(make(vit).freeze())


# -- a tuning for every image ------------------------------------------------------------------------------------------


@pytest.fixture
def bank(vit: TimmViT) -> Bank:
    slots = Bank(make(vit, kind="lora"))
    generator = torch.Generator().manual_seed(3)
    for slot in range(3):
        with torch.no_grad():
            for parameter in slots.open().parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        slots.freeze(slot)
    return slots


def one_by_one(vit: TimmViT, images: Tensor, bank: Bank, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([vit(images[i : i + 1], bank[int(ids[i])]) for i in range(len(ids))]).float()


@pytest.mark.parametrize("bucket", [1, 2, 100])
def test_each_image_under_its_own_slot(vit: TimmViT, bank: Bank, monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    """Alone, in buckets, or mixed: the same answers."""
    monkeypatch.setattr("evertune.backbones.passes.BUCKET", bucket)
    images = torch.rand(7, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([2, 0, 2, 1, 2, 0, 2])
    passes = Passes(vit, images)
    features = passes.routed(bank, ids)
    torch.testing.assert_close(features, one_by_one(vit, images, bank, ids), rtol=0, atol=1e-6)
    assert not features.requires_grad and passes.forwards == {1: 3, 2: 3, 100: 1}[bucket]


def test_kinds_that_do_not_mix_are_passed_in_buckets(vit: TimmViT, images: Tensor) -> None:
    slots = Bank(make(vit, kind="ssf"))
    slots.open()
    with torch.no_grad():
        for parameter in slots.open().parameters():
            parameter.add_(0.5)
    ids = torch.arange(len(images)) % 2
    passes = Passes(vit, images)
    features = passes.routed(slots, ids)
    torch.testing.assert_close(features, one_by_one(vit, images, slots, ids), rtol=0, atol=1e-5)
    assert passes.forwards == 2


def test_only_images_with_an_unknown_slot_are_passed_again(vit: TimmViT, images: Tensor, bank: Bank) -> None:
    memory, ids = Remembered(len(images)), torch.arange(len(images)) % 2
    first = Passes(vit, images, memory=memory).routed(bank, ids)

    def unread() -> Tensor:
        raise AssertionError("the images were not needed")

    assert torch.equal(Passes(vit, unread, memory=memory).routed(bank, ids), first)
    changed = ids.clone()
    changed[0] = 2
    again = Passes(vit, images, memory=memory).routed(bank, changed)
    assert torch.equal(again[1:], first[1:])
    torch.testing.assert_close(again, one_by_one(vit, images, bank, changed), rtol=0, atol=1e-6)
    assert memory[bank[2].fingerprint()][1].nonzero().tolist() == [[0]]


def test_every_process_passes_its_own_images(vit: TimmViT, images: Tensor, bank: Bank) -> None:
    ids = torch.arange(len(images)) % 3
    whole = one_by_one(vit, images, bank, ids)
    for rank in range(2):
        mine = images.tensor_split(2)[rank]
        others = whole.tensor_split(2)

        def gather(part: Tensor, rank: int = rank, others: Any = others) -> Tensor:
            return torch.cat([part if i == rank else other for i, other in enumerate(others)])

        passes = Passes(vit, mine, gather=gather, part=lambda t, rank=rank: t.tensor_split(2)[rank])  # type: ignore[misc]
        torch.testing.assert_close(passes.routed(bank, ids), whole, rtol=0, atol=1e-6)


def test_images_are_made_once_and_late(vit: TimmViT, images: Tensor) -> None:
    made: list[int] = []

    def decode() -> Tensor:
        made.append(1)
        return images

    passes = Passes(vit, decode)
    assert not made
    passes()
    passes(make(vit, kind="ssf"))
    assert made == [1]


def test_features_of_all_processes_are_gathered(vit: TimmViT, images: Tensor) -> None:
    memory = Remembered(2 * len(images))
    passes = Passes(vit, images, gather=lambda t: torch.cat([t, t]), memory=memory)
    assert len(passes()) == len(memory["plain"][0]) == 2 * len(images)


def test_sums_are_those_of_all_processes(vit: TimmViT, images: Tensor) -> None:
    others = [torch.full((1, 2, 3), 4.0), torch.zeros(1, 2, 3)]
    passes = Passes(vit, images, gather=lambda t: torch.cat([t, *others]))
    assert torch.equal(passes.summed(torch.ones(2, 3)), torch.full((2, 3), 5.0))
    assert torch.equal(Passes(vit, images).summed(torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["adapter", "lora", "ssf", "vpt"])
def test_low_precision_gives_float32_features_and_gradients(make_model: Any, kind: str) -> None:
    vit = TimmViT(make_model().float(), "bf16", preprocessing="unit")
    tuning = make(vit, kind=kind).float().train()
    images = torch.rand(2, 3, 32, 32)
    passes = Passes(vit, images, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    features = passes(tuning)
    assert features.dtype == passes().dtype == torch.float32
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in tuning.parameters())
    exact = vit(images, tuning.eval()).detach()
    torch.testing.assert_close(Passes(vit, images)(tuning).detach(), exact)
    assert (passes(tuning) - exact).norm() < 0.2 * exact.norm()


def test_a_process_may_have_no_row_of_a_batch() -> None:
    """With more processes than rows in the last batch a part is empty, and must pass all the same."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    model = TimmViT(vit, "tiny")
    assert model(torch.zeros(0, 3, 32, 32)).shape == (0, 48)
