"""HiDe-PET's within-task step, EMA, router and schedules against the published code's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evertune.backbones import Passes, TimmViT
from evertune.engine.optimizer import make_optimizer
from evertune.heads import by_group
from evertune.methods import Batch, Generators, HiDePET, Recipe, TaskInfo
from evertune.methods.losses import centre_constants

pytestmark = pytest.mark.golden

TASK = TaskInfo(index=1, present=(4, 5, 6), new=(4, 5, 6), known=4, size=4)


def recorded(vit: TimmViT, vectors: Callable[[str], Any], dtype: torch.dtype) -> HiDePET:
    """The state in which the published loop took its step: slot 1 of three, a head of ten classes, twelve centres."""
    step, bank = vectors("hide_wtp_step"), vectors("hide_tuning_lora")
    config = HiDePET.config_type.make("reference", contrastive=float(step["reg"]), rate=float(step["lr"]))
    method = HiDePET(config, vit.shape, vit.shape.width, Generators()).to(dtype)
    for slot in range(2):
        tuning = method.e.open()
        for i in tuning.indices:
            for n in "kv":
                tuning.block(i).a[n].data.copy_(bank[f"bank.{n}.A"][slot, i])
                tuning.block(i).b[n].data.copy_(bank[f"bank.{n}.B"][slot, i])
    method.e.freeze(0)
    method.psi.weight = nn.Parameter(step["head.weight"])
    method.psi.bias = nn.Parameter(step["head.bias"])
    method.instructed.means = step["bank_multi_centroids"].flatten(0, 1)
    return method


def test_within_task_step(vit: TimmViT, vectors: Callable[[str], Any], dtype: torch.dtype) -> None:
    step = vectors("hide_wtp_step")
    method, exact = recorded(vit, vectors, dtype), dtype == torch.float64
    constants = centre_constants(method.instructed.centres, method.config.temperature)
    batch = Batch(Passes(vit, step["images"]), step["labels"], torch.arange(4))
    if exact:  # features leave the passes in float32; the equations are compared in double here
        batch.passes._features[id(method.e[1])] = vit(step["images"], method.e[1])
        batch.passes._kept.append(method.e[1])
    step.check_features("features", batch.passes(method.e[1]))
    terms = method.own_loss(TASK, constants, batch)
    rtol = 1e-9 if exact else 1e-4
    for name, key in (("classification", "loss_ce"), ("contrastive", "loss_cr_weighted")):
        wanted = step.arrays[f"{key}_f64" if exact else key]
        np.testing.assert_allclose(terms[name].item(), wanted, rtol=rtol)
    torch.stack(list(terms.values())).sum().backward()
    head, slot = method.psi, method.e[1]
    step.check_gradient("grad.head.weight", head.weight.grad)
    step.check_gradient("grad.head.bias", head.bias.grad)
    assert not head.weight.grad[[0, 1, 2, 3, 7, 8, 9]].any()
    for n in "kv":
        for letter, part in (("A", "a"), ("B", "b")):
            grads = [getattr(slot.block(i), part)[n].grad for i in slot.indices]
            step.check_gradient(f"grad.slot1.{n}.{letter}", torch.stack(grads))
    assert all(p.grad is None for p in method.e[0].parameters())

    parameters = [*slot.parameters(), *head.parameters()]
    norm = nn.utils.clip_grad_norm_(parameters, float(step["max_norm"]))
    np.testing.assert_allclose(norm.item(), step.arrays["grad_total_norm_before_clip"], rtol=1e-4)
    recipe = Recipe(epochs=1, batch_size=4, rate=float(step["lr"]), optimizer="adam", schedule="constant")
    make_optimizer(parameters, recipe).step()
    suffix = "_f64" * exact
    after = {"head.weight": head.weight, "head.bias": head.bias}
    for n in "kv":
        for letter, part in (("A", "a"), ("B", "b")):
            after[f"slot1.{n}.{letter}"] = torch.stack([getattr(slot.block(i), part)[n] for i in slot.indices])
    for name, value in after.items():
        # Adam's first step is lr · sign(g): in float32 an entry of almost no gradient may go either way.
        gradient = np.abs(step.arrays[f"grad.{name}"])
        certain = gradient > (0 if exact else 1e-5 * gradient.max())
        wanted = step.arrays[f"after_adam.{name}{suffix}"]
        np.testing.assert_allclose(value.detach().numpy()[certain], wanted[certain], rtol=0, atol=5e-5)


def test_averaged_copy_of_the_shared_parameters(vit: TimmViT, vectors: Callable[[str], Any]) -> None:
    golden = vectors("hide_ensemble_ema_router")
    sequence, averages = golden["ema.sequence"], golden["ema.after_each_task"]  # [T, block, D, r]
    config = HiDePET.config_type.make(
        "reference", shared="ema", ema=float(golden["ema.momentum"]), blocks="0-1", **{"tuning.rank": 3}
    )
    method = HiDePET(config, vit.shape, 12, Generators()).to(sequence.dtype)
    g = method.g.open()
    for values, wanted in zip(sequence, averages, strict=True):
        for i in range(2):
            g.block(i).a["k"].data[:12] = values[i]
        with torch.no_grad():
            method._keep_shared(g)
        got = torch.stack([method.average[0].block(i).a["k"][:12] for i in range(2)])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        assert not any(p.requires_grad for p in method.average.parameters())


def test_answers_of_both_copies(vit: TimmViT, vectors: Callable[[str], Any]) -> None:
    """Under EMA the larger logit of g_t and m_t counts."""
    golden = vectors("hide_ensemble_ema_router")
    method = HiDePET(HiDePET.config_type.make("reference", shared="ema"), vit.shape, 12, Generators())
    method._keep_shared(method.g.open())
    features = {method.g[0]: golden["ema.logits_current"], method.average[0]: golden["ema.logits_average"]}
    method.omega = nn.Identity()
    assert torch.equal(method._entry_logits(features.__getitem__), golden["ema.logits_combined"])  # type: ignore[arg-type]


def test_reading_the_task(vectors: Callable[[str], Any]) -> None:
    golden = vectors("hide_ensemble_ema_router")
    seen = int(golden["router.n_seen_tasks"])
    owner = golden["router.class_to_task"]
    columns = owner < seen
    logits = golden["router.logits"][:, columns]
    z = by_group(logits, owner[columns], seen)
    torch.testing.assert_close(z, golden["router.class_max_task_logits"])
    assert torch.equal(z.argmax(1), golden["router.task_ids"])
    truth = owner[golden["router.labels"]]
    accuracy = 100 * (z.argmax(1) == truth).double().mean().item()
    assert math.isclose(accuracy, float(golden["router.acc_at_task"]), abs_tol=1e-3)
    chosen = golden["router.predictor_logits"][:, columns].argmax(1)
    masked = 100 * (chosen == golden["router.labels"]).double().mean().item()
    assert math.isclose(masked, float(golden["router.acc_at_1_masked_to_seen"]), abs_tol=1e-2)


@pytest.mark.parametrize(
    ("name", "column", "recipe", "factor"),
    [
        ("lora_stageB.cosine_warmup5_base_0.01x24_256", None, {"rate": 0.01 * 24 / 256, "warmup": 5}, 1.0),
        ("prefix_stageB.cosine_no_warmup_base_0.05x24_256", None, {"rate": 0.05 * 24 / 256}, 1.0),
        ("prefix_stageA.step30_base_0.03x24_256", None, {"rate": 0.03 * 24 / 256, "schedule": "step"}, 1.0),
        ("adapter_stageA.two_groups_pet_slow0.01_head", 0, {"rate": 0.03 * 24 / 256, "warmup": 5}, 0.01),
        ("adapter_stageA.two_groups_pet_slow0.01_head", 1, {"rate": 0.03 * 24 / 256, "warmup": 5}, 1.0),
    ],
)
def test_rate_of_every_epoch(
    vectors: Callable[[str], Any], name: str, column: int | None, recipe: dict[str, Any], factor: float
) -> None:
    stored = vectors("hide_lr_schedules").arrays[name]
    wanted = stored if column is None else stored[:, column]
    made = Recipe(epochs=50, batch_size=24, optimizer="adam", floor=1e-5, lag=True, **recipe)
    np.testing.assert_allclose([made.rate_at(e, factor) for e in range(50)], wanted, rtol=1e-12)
    prompt = Recipe(epochs=50, batch_size=24, optimizer="adam", floor=1e-5, **recipe)
    np.testing.assert_allclose([prompt.rate_at(e, factor) for e in range(1, 49)], wanted[2:], rtol=1e-12)


def test_presets_have_the_published_rates() -> None:
    for kind, shared_slow, shared, own, head in (
        ("prefix", 2.8125e-4, 2.8125e-3, 4.6875e-3, 4.6875e-4),
        ("lora", 2.8125e-4, 2.8125e-3, 9.375e-4, 9.375e-4),
        ("sequential_adapter", 2.8125e-5, 2.8125e-3, 9.375e-4, 9.375e-4),
    ):
        config = HiDePET.config_type.make("reference", tuning=kind)
        got = [config.shared_rate * config.slow, config.shared_rate, config.rate, config.rate * config.head_factor]
        np.testing.assert_allclose(got, [shared_slow, shared, own, head])


def test_a_mixed_batch_through_the_methods_own_bank(vit: TimmViT, vectors: Callable[[str], Any]) -> None:
    golden = vectors("hide_tuning_lora")
    method = recorded(vit, vectors, golden.dtype)
    third = method.e.open()
    for i in third.indices:
        for n in "kv":
            third.block(i).a[n].data.copy_(golden[f"bank.{n}.A"][2, i])
            third.block(i).b[n].data.copy_(golden[f"bank.{n}.B"][2, i])
    ids: Tensor = golden["slot_ids"]
    with torch.no_grad():
        features = Passes(vit, golden["images"]).routed(method.e, ids)
    torch.testing.assert_close(features, golden["mixed.features"].float(), rtol=0, atol=5e-4)
