"""Banks: slots of their own, batches that mix them, the ensemble, and states of any size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evertune.backbones import Passes, Shape, TimmViT
from evertune.errors import ConfigError
from evertune.tuning import Bank, Tuning, make_tuning

VIT_B = Shape(width=768, depth=12, heads=12, hidden=3072, tokens=197)
MIXING = ["lora", "sequential_adapter", "prefix", "prompt"]
OTHERS = ["adapter", "ssf", "vpt"]


def template(vit: TimmViT, kind: str, **options: Any) -> Tuning:
    return make_tuning(kind, vit.shape, torch.Generator().manual_seed(0), **options).double()


def shake(tuning: Tuning, seed: int) -> None:
    """As after training: every parameter moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def filled(vit: TimmViT, kind: str, slots: int, **options: Any) -> Bank:
    """A bank as after ``slots`` tasks."""
    bank = Bank(template(vit, kind, **options))
    for slot in range(slots):
        shake(bank.open(), seed=slot)
    return bank.eval()


def values(tuning: Tuning) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tuning.state_dict().items()}


def same(tuning: Tuning, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, kept[name]) for name, value in tuning.state_dict().items())


# -- slots -----------------------------------------------------------------------------------------------------------


def test_dropped_slots_are_gone_and_the_others_are_what_they_were(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 4)
    bank.freeze(3)
    kept = [values(bank[slot]) for slot in (1, 3)]
    bank.drop([0, 2])
    assert len(bank) == 2 and all(same(slot, former) for slot, former in zip(bank, kept, strict=True))
    assert [slot.frozen for slot in bank] == [False, True]
    assert same(bank.open(), kept[1])
    with pytest.raises(ConfigError, match="no slot 3"):
        bank.drop([3])


@pytest.mark.parametrize("kind", MIXING + OTHERS)
def test_a_slot_opens_with_the_values_of_the_one_before(vit: TimmViT, kind: str) -> None:
    first = template(vit, kind)
    bank = Bank(first)
    assert len(bank) == 0 and bank.state_dict() == {} and list(bank.parameters()) == []
    assert same(bank.open(), first.state_dict())
    shake(bank[0], 1)
    bank.freeze(0)
    assert bank[0].frozen
    slot = bank.open()
    assert slot is bank[1] and not slot.frozen and same(slot, bank[0].state_dict())
    shake(slot, 2)
    assert not same(slot, bank[0].state_dict())
    assert same(bank.open(0), bank[0].state_dict())
    other = template(vit, kind)
    shake(other, 3)
    assert same(bank.open(other.freeze()), other.state_dict()) and not bank[3].frozen
    assert list(bank) == [bank[i] for i in range(4)] and len(bank) == 4


def test_the_template_is_a_copy(vit: TimmViT) -> None:
    first = template(vit, "lora")
    kept, bank = values(first), Bank(first.freeze())
    shake(first, 1)
    assert same(bank.open(), kept) and not bank[0].frozen


def test_slots_share_no_parameter(vit: TimmViT) -> None:
    parameters = list(filled(vit, "lora", 3).parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters) == 3 * 3 * 4


@pytest.mark.parametrize("slot", [-1, 2, 100])
def test_a_slot_that_is_not_there(vit: TimmViT, slot: int) -> None:
    bank = filled(vit, "lora", 2)
    message = f"The bank has no slot {slot}; it has slots 0 to 1"
    for use in (lambda: bank[slot], lambda: bank.open(slot), lambda: bank.freeze(slot), lambda: bank.ensemble(slot, 0)):
        with pytest.raises(ConfigError, match=message):
            use()
    with pytest.raises(ConfigError, match=message):
        bank.select(torch.tensor([0, slot]))


def test_an_empty_bank_says_so(vit: TimmViT) -> None:
    bank = Bank(template(vit, "lora"))
    for use in (lambda: bank[0], lambda: bank.select(torch.tensor([0])), lambda: bank.select(torch.tensor([]).long())):
        with pytest.raises(ConfigError, match="it has none: open one first"):
            use()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("prefix", {}), ("lora", {"rank": 3}), ("lora", {"alpha": 2.0}), ("lora", {"blocks": "0-1"})],
)
def test_a_slot_opens_from_its_own_kind_only(vit: TimmViT, kind: str, options: dict[str, Any]) -> None:
    bank = filled(vit, "lora", 1)
    with pytest.raises(ConfigError, match=f"slots are lora on blocks .* a {kind} on blocks .* cannot be copied"):
        bank.open(template(vit, kind, **options))
    assert len(bank) == 1


def test_bytes_of_a_slot() -> None:
    lora = make_tuning("lora", VIT_B, torch.Generator(), blocks="0-4")
    assert Bank(lora).nbytes == 76_800 * 4
    assert Bank(lora.double()).nbytes == 76_800 * 8


def test_new_slots_are_where_the_bank_is(vit: TimmViT) -> None:
    bank = Bank(template(vit, "lora")).to(torch.float32)
    assert {p.dtype for p in bank.open().parameters()} == {torch.float32}
    assert {p.dtype for p in bank.double().open().parameters()} == {torch.float64}


def test_a_frozen_slot_does_not_go_back_to_training(vit: TimmViT) -> None:
    bank = Bank(template(vit, "adapter")).train()
    bank.open()
    bank.freeze(0)
    assert bank.open().training
    bank.train()
    assert not bank[0].training and bank[1].training
    assert not bank.eval().open().training


def test_a_copied_bank_is_another(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 2)
    other, kept = copy.deepcopy(bank), values(bank[1])
    shake(other[1], 5)
    shake(other.open(), 6)
    assert same(bank[1], kept) and len(bank) == 2


# -- finished slots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("given_all", [True, False])
def test_finished_slots_stay_bit_for_bit(vit: TimmViT, images: Tensor, given_all: bool, to_none: bool) -> None:
    """Weight decay on, one optimiser for all tasks with its momentum, and even given every slot; trap 1 of §14.2."""
    bank = Bank(template(vit, "lora"))
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-2, weight_decay=0.5)
    finished: list[dict[str, Tensor]] = []
    for task in range(3):
        slot = bank.open()
        if given_all:
            optimizer.param_groups[0]["params"] = list(bank.parameters())
        else:
            optimizer.add_param_group({"params": list(slot.parameters())})
        start = values(slot)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=to_none)
            ids = torch.tensor([task, 0, task, task])  # an earlier slot in the same batch
            (vit(images, slot).square().sum() + vit(images, bank.select(ids)).square().sum()).backward()
            optimizer.step()
        assert not same(slot, start)
        bank.freeze(task)
        finished.append(values(slot))
        assert all(same(bank[i], kept) for i, kept in enumerate(finished))


# -- mixed batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["all", "0-1", "0,2"])
@pytest.mark.parametrize("kind", MIXING)
def test_each_sample_of_a_batch_has_its_own_slot(vit: TimmViT, images: Tensor, kind: str, blocks: str) -> None:
    bank = filled(vit, kind, 4, blocks=blocks)
    alone = torch.stack([vit(images, slot) for slot in bank])
    assert all(not torch.allclose(alone[i], alone[j]) for i in range(4) for j in range(i))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.permutations(range(4)))
    def check(chosen: list[int], order: list[int]) -> None:
        ids = torch.tensor(chosen)
        together = vit(images, bank.select(ids))
        torch.testing.assert_close(together, alone[ids, torch.arange(4)], rtol=0, atol=1e-11)
        moved = vit(images[order], bank.select(ids[order]))
        torch.testing.assert_close(moved, together[order], rtol=0, atol=1e-11)

    check()


@pytest.mark.parametrize("kind", MIXING + OTHERS)
def test_one_slot_for_all_is_that_slot(vit: TimmViT, kind: str) -> None:
    bank = filled(vit, kind, 3)
    assert bank.select(torch.tensor([2, 2, 2])) is bank[2]
    assert bank.select(torch.tensor([1], dtype=torch.int32)) is bank[1]
    assert bank.select(torch.tensor([], dtype=torch.int64)) is bank[0]  # a batch of none


@pytest.mark.parametrize("kind", OTHERS)
def test_kinds_that_do_not_mix_say_so(vit: TimmViT, kind: str) -> None:
    bank = filled(vit, kind, 3)
    assert not bank.mixes and filled(vit, "lora", 0).mixes
    with pytest.raises(
        ConfigError, match=rf"Slots \[0, 2\] in one batch: a {kind} steers all samples of a batch alike"
    ):
        bank.select(torch.tensor([2, 0, 2]))
    block = bank[0].block(0)
    assert block is not None
    with pytest.raises(ConfigError, match="cannot steer the samples of one batch differently"):
        type(block).mixed([block, block], torch.tensor([0, 1]))


@pytest.mark.parametrize("ids", [torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor(0), torch.ones(2) > 0])
def test_ids_that_are_none(vit: TimmViT, ids: Tensor) -> None:
    with pytest.raises(ConfigError, match="chosen by whole numbers"):
        filled(vit, "lora", 2).select(ids)


@pytest.mark.parametrize("kind", MIXING)
def test_gradients_of_a_mixed_batch_reach_the_slots_that_occur(vit: TimmViT, images: Tensor, kind: str) -> None:
    bank, ids = filled(vit, kind, 4), torch.tensor([3, 0, 3, 1])
    vit(images, bank.select(ids)).square().sum().backward()
    mixed = [[p.grad for p in slot.parameters()] for slot in bank]
    assert all(g is None for g in mixed[2])
    bank.zero_grad()
    for row, slot in enumerate(ids):  # one image at a time
        vit(images[row : row + 1], bank[int(slot)]).square().sum().backward()
    for i in (0, 1, 3):
        for got, parameter in zip(mixed[i], bank[i].parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad)


@pytest.mark.parametrize("kind", MIXING)
def test_a_mixed_batch_among_the_passes(vit: TimmViT, images: Tensor, kind: str) -> None:
    bank, ids = filled(vit, kind, 3, blocks="1-2"), torch.tensor([0, 1, 1, 2])
    mixed = bank.select(ids)
    assert mixed.begins == 1 and not mixed.frozen and mixed.block(0) is None
    passes = Passes(vit, images)
    passes()
    features = passes(mixed)
    assert features.requires_grad
    torch.testing.assert_close(features, vit(images, mixed).float())
    for slot in range(3):
        bank.freeze(slot)
    assert mixed.frozen and not Passes(vit, images)(bank.select(ids)).requires_grad


def test_the_fingerprint_of_a_mixed_batch(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 3)
    kept = bank.select(torch.tensor([0, 1, 2])).fingerprint()
    assert bank.select(torch.tensor([0, 1, 2])).fingerprint() == kept
    assert bank.select(torch.tensor([1, 0, 2])).fingerprint() != kept
    shake(bank[2], 7)
    assert bank.select(torch.tensor([0, 1, 2])).fingerprint() != kept


# -- ensemble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXING + OTHERS)
def test_the_ensemble_averages_with_all_before(vit: TimmViT, kind: str) -> None:
    bank = filled(vit, kind, 4)
    before = [values(slot) for slot in bank]
    bank.ensemble(2, 0.1)
    for name, value in bank[2].state_dict().items():
        expected = 0.9 * before[2][name] + 0.1 * (before[0][name] + before[1][name]) / 2
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    assert all(same(bank[i], before[i]) for i in (0, 1, 3))
    assert not bank[2].frozen


@pytest.mark.parametrize("space", ["parameters", "delta"])
def test_nothing_before_or_no_weight_changes_nothing(vit: TimmViT, space: str) -> None:
    bank = filled(vit, "lora", 2)
    before = [values(slot) for slot in bank]
    bank.ensemble(0, 0.7, space)
    bank.ensemble(1, 0.0, space)
    assert same(bank[0], before[0]) and same(bank[1], before[1])


def test_the_ensemble_of_changes_is_the_nearest_of_its_rank(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 3, rank=2, alpha=3.0, targets="qv")
    before = [[slot.block(i).delta() for i in range(3)] for slot in bank]
    kept = values(bank[0])
    bank.ensemble(2, 0.3, "delta")
    for i in range(3):
        block = bank[2].block(i)
        for name, delta in block.delta().items():
            target = 0.7 * before[2][i][name] + 0.3 * (before[0][i][name] + before[1][i][name]) / 2
            u, s, vh = torch.linalg.svd(target)
            torch.testing.assert_close(delta, u[:, :2] @ s[:2].diag() @ vh[:2], rtol=0, atol=1e-12)
            assert (s[2:6] > 1e-3).all()  # something had to be left out
            a, b = block.a[name], block.b[name]
            torch.testing.assert_close(a.T @ a, b @ b.T, rtol=0, atol=1e-12)  # divided evenly
    assert same(bank[0], kept)


def test_equal_changes_have_themselves_as_ensemble(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 1)
    bank.open()
    with torch.no_grad():  # the same change in other factors: their parameters' mean would be another change
        for block in bank[1].blocks.values():
            for name in "kv":
                block.a[name].mul_(-2)
                block.b[name].mul_(-0.5)
    before = bank[1].block(0).delta()
    bank.ensemble(1, 0.5, "delta")
    torch.testing.assert_close(bank[1].block(0).delta(), before)
    bank.open(1)
    with torch.no_grad():
        for block in bank[2].blocks.values():
            block.a["k"].mul_(-2)
            block.b["k"].mul_(-0.5)
    bank.ensemble(2, 0.5)
    assert not torch.allclose(bank[2].block(0).delta()["k"], before["k"])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("lora", (1, -0.1), r"weight=-0.1 must be from 0 to 1"),
        ("lora", (1, 1.5), r"weight=1.5 must be from 0 to 1"),
        ("lora", (0, float("nan")), r"weight=nan must be from 0 to 1"),
        ("lora", (1, 0.1, "weights"), r"space 'weights' does not exist; choose 'parameters' or 'delta'"),
        ("prefix", (1, 0.1, "delta"), r"only LoRA is a change of weights; give a prefix space='parameters'"),
    ],
)
def test_ensembles_that_are_refused(vit: TimmViT, kind: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filled(vit, kind, 2).ensemble(*arguments)


def test_a_frozen_slot_is_not_ensembled(vit: TimmViT) -> None:
    bank = filled(vit, "lora", 2)
    bank.freeze(1)
    kept = values(bank[1])
    with pytest.raises(ConfigError, match="slot 1 is frozen"):
        bank.ensemble(1, 0.1)
    assert same(bank[1], kept)


# -- state -----------------------------------------------------------------------------------------------------------


class Method(nn.Module):
    """A bank somewhere inside."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.own, self.head = bank, nn.Linear(2, 2)


@pytest.mark.parametrize("kind", MIXING + OTHERS)
@pytest.mark.parametrize(("stored", "there"), [(7, 0), (3, 5), (2, 2), (12, 1), (0, 3)])
def test_a_state_of_any_number_of_slots(vit: TimmViT, kind: str, stored: int, there: int) -> None:
    source, target = Method(filled(vit, kind, stored)), Method(filled(vit, kind, there))
    for slot in target.own:
        shake(slot, 99)
    for slot in range(min(stored, there)):
        target.own.freeze(slot)
    target.load_state_dict({name: value.clone() for name, value in source.state_dict().items()})
    assert len(target.own) == stored
    assert all(same(slot, source.own[i].state_dict()) for i, slot in enumerate(target.own))
    assert [slot.frozen for slot in target.own] == [i < there for i in range(stored)]
    assert len({id(p) for p in target.own.parameters()}) == len(list(source.own.parameters()))
    if stored:
        assert same(target.own.open(), source.own[stored - 1].state_dict())


def test_a_state_of_another_kind_is_an_error(vit: TimmViT) -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*slots\.0"):
        Bank(template(vit, "lora")).load_state_dict(filled(vit, "prefix", 2).state_dict())
    lame = {name: value for name, value in filled(vit, "lora", 3).state_dict().items() if "slots.1." not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*slots\.1"):
        Bank(template(vit, "lora")).load_state_dict(lame)


def test_a_number_in_a_name_makes_no_slots(vit: TimmViT) -> None:
    bank = Bank(template(vit, "lora"))
    with pytest.raises(RuntimeError, match=r"slots\.1000000000000\.x"):
        bank.load_state_dict({"slots.1000000000000.x": torch.zeros(1)})
    assert len(bank) == 1
