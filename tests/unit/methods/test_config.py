"""Options, presets, recipes and names of methods."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from evertune.backbones import TimmViT
from evertune.errors import ConfigError
from evertune.methods import METHODS, Recipe, get_method, make_method
from evertune.methods.config import convert

METHOD_PRESETS = [(name, preset) for name, method in METHODS.items() for preset in method.config_type.presets]


@pytest.mark.parametrize(("name", "preset"), METHOD_PRESETS)
def test_every_preset_can_be_made_and_written_down(name: str, preset: str) -> None:
    kind = METHODS[name].config_type
    config = kind.make(preset)
    again = kind.make(preset, **json.loads(json.dumps(config.as_dict())))
    assert again == config


@pytest.mark.parametrize(("name", "preset"), METHOD_PRESETS)
def test_a_kept_configuration_means_the_same_under_any_preset(name: str, preset: str) -> None:
    """As a stored learner is read: plain options, and those of the tuning by their prefix."""
    kind = METHODS[name].config_type
    kept = json.loads(json.dumps(kind.make(preset).as_dict()))
    tuning = kept.pop("tuning_options", {})
    for other in kind.presets:
        assert kind.make(other, **kept, **{f"tuning.{k}": v for k, v in tuning.items()}) == kind.make(preset)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_explained(name: str) -> None:
    rows = METHODS[name].config_type.explain()
    assert [row[0] for row in rows] == list(METHODS[name].config_type.make().as_dict())
    assert all(text for _, _, text in rows)


def test_every_preset_is_what_its_source_says() -> None:
    safe, ranpac, aper = (METHODS[n].config_type for n in ("safe", "ranpac", "aper"))
    paper: Any = safe.make("paper")
    assert (paper.tuning, paper.epochs, paper.follow_epochs, paper.follow_horizon) == ("adapter", 20, 15, 20)
    assert (paper.rate, paper.momentum, paper.weight_decay, paper.batch_size) == (0.01, 0.9, 5e-4, 48)
    assert (paper.lambda_cos, paper.cos_reduction, paper.lambda_cc, paper.gamma) == (24, "mean", 1, 1)
    assert (paper.new_rows, paper.statistics, paper.inference_scale) == ("imprint", "separate", "fixed")
    assert (paper.features, paper.sigma_init, paper.ridge.grid) == (10_000, 10, tuple(10.0**p for p in range(3, 9)))
    released: Any = safe.make("released")
    assert (released.lambda_cos, released.cos_reduction, released.decay) == (0.5, "sum", "all")
    assert (released.lambda_diag, released.lambda_rdn) == (5e-10, 5e-9)
    assert (released.new_rows, released.statistics, released.inference_scale) == ("zeros", "shared", "trained")
    assert not released.ridge.stratified
    imagenet: Any = safe.make("released-imagenet-a")
    assert (imagenet.tuning, imagenet.lambda_cos, imagenet.lambda_cc, imagenet.gamma) == ("ssf", 1, 0, 100)
    assert (imagenet.lambda_diag, imagenet.lambda_rdn) == (0.01, 10)
    assert safe.make("paper-imagenet-a").lambda_cos == 48  # type: ignore[attr-defined]
    assert ranpac.make("paper").ridge.grid == pytest.approx([10.0**p for p in range(-8, 9)])  # type: ignore[attr-defined]
    assert ranpac.make("paper").sigma_init == aper.make("paper").sigma_init == 1  # type: ignore[attr-defined]
    other: Any = aper.make("paper-imagenet-r")
    assert (other.epochs, other.rate, other.batch_size, other.weight_decay) == (10, 0.05, 16, 5e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papr"}, "'paper'"),
        ({"lambda_cs": 1}, "'lambda_cos'"),
        ({"gama": 1}, "'gamma'"),
        ({"statistics": "sharde"}, "'shared'"),
        ({"tuning": "adaptr"}, "'adapter'"),
        ({"tuning.rnk": 3}, "'rank'"),
        ({"rate": "fast"}, "rate='fast' is not a float"),
        ({"epochs": 1.5}, "epochs=1.5 must be a int"),
        ({"epochs": True}, "must be a int"),
        ({"tuning.rank": "four"}, "tuning.rank='four'"),
        ({"tuning_options": 3}, "must be a dict"),
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"sigma_init": 0}, "sigma_init=0"),
        ({"lambda_cos": -1}, "lambda_cos=-1"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"follow_epochs": -1}, "follow_epochs=-1"),
        ({"follow_horizon": 0}, "follow_horizon=0"),
        ({"follow_rate": 0}, "follow_rate=0"),
        ({"scale": -1}, "scale=-1"),
        ({"features": -1}, "features=-1"),
        ({"ridge_low": 5, "ridge_high": 3}, "ridge_low=5 is above ridge_high=3"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"select_best_on_test": True}, "select_best_on_test"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        METHODS["safe"].config_type.make(**options)


def test_a_method_without_tuning_says_so() -> None:
    with pytest.raises(ConfigError, match=r"trains no tuning: tuning\.rank"):
        METHODS["simple_cil"].config_type.make(**{"tuning.rank": 4})


def test_another_tuning_drops_the_preset_s_options() -> None:
    config: Any = METHODS["safe"].config_type.make("evertune", tuning="vpt", **{"tuning.prompts": "3"})
    assert config.tuning_options == {"prompts": 3, "deep": True, "init": "random"}


@pytest.mark.parametrize(("name", "preset"), [("s_prompt", "paper"), ("tuna", "paper"), ("safe", "evertune")])
def test_naming_the_preset_s_own_tuning_changes_nothing(name: str, preset: str) -> None:
    plain: Any = METHODS[name].config_type.make(preset)
    assert METHODS[name].config_type.make(preset, tuning=plain.tuning) == plain


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [("3", int, 3), ("1e-2", float, 0.01), (2, float, 2.0), ("Yes", bool, True), ("0", bool, False), ("x", str, "x"),
     (None, float | None, None), ("none", float | None, None), ("0.5", float | None, 0.5)],
)  # fmt: skip
def test_text_becomes_a_value(value: Any, kind: Any, wanted: Any) -> None:
    got = convert("name", value, kind)
    assert got == wanted and type(got) is type(wanted)


def test_names_of_methods(backbone: TimmViT) -> None:
    assert get_method("Simple-CIL") is METHODS["simple_cil"]
    with pytest.raises(ConfigError, match=r"'ranpack'.*'ranpac'"):
        get_method("ranpack")
    with pytest.raises(ConfigError, match="blocks"):
        make_method("safe", backbone, blocks="7")


def test_the_same_seed_draws_the_same_method(backbone: TimmViT) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (make_method("safe", backbone, seed=s, features=16).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["R"], other["R"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("horizon", [None, 20])
def test_the_cosine_schedule_is_torch_s(horizon: int | None) -> None:
    recipe = Recipe(epochs=15, batch_size=1, rate=0.01, horizon=horizon)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon or 15)
    for epoch in range(15):
        assert recipe.rate_at(epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_a_quarter_of_a_turn_ends_near_zero() -> None:
    """Rates at the first, the middle and the last epoch: 0.495 of half a turn, in equal steps."""
    recipe = Recipe(epochs=11, batch_size=1, rate=0.01, schedule="quarter")
    assert recipe.rate_at(0) == 0.01 and recipe.rate_at(10) == pytest.approx(1.5707e-4, rel=1e-3)
    assert recipe.rate_at(5) == pytest.approx(0.01 * math.cos(math.radians(44.55)))
    assert Recipe(epochs=1, batch_size=1, rate=0.01, schedule="quarter").rate_at(0) == 0.01


def test_a_constant_schedule() -> None:
    assert Recipe(epochs=3, batch_size=1, rate=0.2, schedule="constant").rate_at(2) == 0.2


@pytest.mark.parametrize("name", ["aper", "ranpac", "safe"])
def test_released_prompts_start_at_zero_whatever_the_kind_of_the_preset(name: str) -> None:
    """T9 is part of every released preset, but only means something to VPT."""
    make = get_method(name).config_type.make
    assert make("released", tuning="vpt").tuning_options["init"] == "zeros"
    assert make("released", tuning="vpt", **{"tuning.init": "random"}).tuning_options["init"] == "random"
    assert make("paper", tuning="vpt").tuning_options["init"] == "random"
    assert "init" not in make("released").tuning_options
