"""Protocols of papers and peers: orders and pixels as their sources have them, and whose protocol a number has."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from evertune.errors import ConfigError
from evertune.evaluation import CONVENTIONS, PRESETS, Protocol, likeness

NAMES = {"native", "pilot", "ranpac", "safe", "ntk-cl", "hide-pet", "coda", "mammoth", "libcontinual"}
SEED_1993 = {"native", "pilot", "ranpac", "ranpac-photos", "safe", "safe-photos", "libcontinual"}


def measured(preset: str = "ranpac", size: int = 224, **stream: Any) -> tuple[Protocol, dict[str, Any]]:
    """A protocol as a run under this preset has it, and its training view."""
    named = Protocol.preset(preset)
    views = named.learner_options(size)
    order = named.stream_settings()["order_seed"]
    fields = {
        "stream": {"kind": "class", "tasks": [{}] * 10, "order_seed": order, **stream},
        "backbone": {"name": "tiny"},
        "preprocessing": {"preprocessing": named.preprocessing, "input_size": size},
        "views": {"test": {"view": "test", **views["test_view"]}},
        "seeds": {"order": stream.get("order_seed", order)},
        "metric": "top-1",
    }
    train = {"view": "train", **{k: list(v) if isinstance(v, tuple) else v for k, v in views["train_view"].items()}}
    if not any(train["jitter"]):
        del train["jitter"]
    return Protocol(fields), train


def unlike(preset: str, protocol: Protocol, train: dict[str, Any] | None = None) -> dict[str, tuple[str, str]]:
    found = {one.name: differing for one, differing in likeness(protocol, train)}
    return {one.field: (one.left, one.right) for one in found[preset]}


def test_all_of_the_field_are_there() -> None:
    assert set(PRESETS) >= NAMES
    assert all(name == preset.name and preset.sources and preset.about for name, preset in PRESETS.items())


@pytest.mark.parametrize(
    ("classes", "begins", "md5"),
    [
        (100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76], "32de23bb0f063e34fa616d59f955b028"),
        (200, [168, 136, 51, 9, 183, 101, 171, 99, 42, 159], "8e9be79d124393712d334a08c7cf183d"),
        (300, [169, 221, 146, 296, 92, 229, 49, 70, 126, 77], "5051d5b976f82b9fb674de21fcb7ea5d"),
    ],
)
def test_the_fields_class_order(classes: int, begins: list[int], md5: str) -> None:
    """The check values of the published code's ``numpy.random.seed(1993); numpy.random.permutation(n)``."""
    for name in SEED_1993:
        order = PRESETS[name].order(classes)
        assert order[:10] == begins
        assert hashlib.md5(",".join(map(str, order)).encode()).hexdigest() == md5


def test_the_other_class_orders() -> None:
    np.random.seed(0)
    assert PRESETS["ntk-cl"].order(100) == PRESETS["pilot-coda"].order(100) == np.random.permutation(100).tolist()
    assert PRESETS["ntk-cl"].order_seeds == (0, 1, 2, 3, 4)
    natural = {name for name, preset in PRESETS.items() if preset.order(7) == list(range(7))}
    assert natural == {"hide-pet", "hide-pet-photos", "coda", "mammoth", "mammoth-unit"}


def test_aliases_and_spelling() -> None:
    assert Protocol.preset("pilot-1993") is Protocol.preset("Pilot") is PRESETS["pilot"]
    assert Protocol.preset("hide_pet") is PRESETS["hide-pet"]
    every = [name for preset in PRESETS.values() for name in (preset.name, *preset.aliases)]
    assert len(every) == len(set(every))


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"No protocol is called 'ranpack'. Did you mean 'ranpac'\?"):
        Protocol.preset("ranpack")


@pytest.mark.parametrize("size", [32, 96, 112, 160, 224, 384])
def test_the_resize_follows_the_input_size_by_the_repositories_rule(size: int) -> None:
    assert PRESETS["pilot"].resize(size) == int((256 / 224) * size)
    assert PRESETS["ranpac"].resize(size) is None


def test_hide_pet_as_its_code_does() -> None:
    """Its own scale (0.05, 1) is defined and never used, and only CIFAR is normalised and jittered."""
    preset = Protocol.preset("hide-pet")
    assert preset.learner_options(224) == {
        "train_view": {
            "size": 224,
            "scale": (0.08, 1.0),
            "ratio": (3 / 4, 4 / 3),
            "flip": 0.5,
            "interpolation": "bicubic",
            "jitter": (63 / 255, 0.0, 0.0, 0.0),
        },
        "test_view": {"size": 224, "resize": 256, "interpolation": "bicubic"},
    }
    assert preset.backbone_options() == {"preprocessing": "cifar"}
    assert preset.stream_settings(196) == {"order_seed": None, "first": 20, "increment": 20}  # nine of 20, one of 16
    assert preset.stream_settings(5)["increment"] == 2
    assert preset.headline == "final_accuracy_task"
    photos = Protocol.preset("hide-pet-photos")
    assert photos.preprocessing == "unit" and not any(photos.train_jitter) and photos.test_interpolation == "bilinear"


def test_conventions_are_those_of_the_metrics() -> None:
    assert {preset.convention for preset in PRESETS.values()} - {None} <= set(CONVENTIONS)


def test_sample_or_task_mean() -> None:
    tasks = {"ranpac", "ranpac-photos", "hide-pet", "hide-pet-photos", "coda", "mammoth", "mammoth-unit"}
    assert {name for name, preset in PRESETS.items() if preset.weight == "task"} == tasks


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("size", [96, 224])
def test_a_run_under_a_preset_is_recognised(name: str, size: int) -> None:
    protocol, train = measured(name, size)
    assert unlike(name, protocol, train) == {}
    (_, least), *_ = likeness(protocol, train)
    assert least == []


def test_presets_that_differ_in_their_average_alone_are_equal_so_far() -> None:
    same = {preset.name for preset, differing in likeness(*measured("ranpac")) if not differing}
    assert same == {"ranpac", "safe"}


def test_what_differs_is_said_field_by_field() -> None:
    protocol, train = measured("pilot", 96, order_seed=7)
    assert unlike("pilot", protocol, train) == {"class order": ("seed 1993", "seed 7")}
    assert unlike("ranpac", protocol, train) == {
        "class order": ("seed 1993", "seed 7"),
        "test.resize": ("null", "109"),
    }
    assert unlike("hide-pet", protocol, train) == {
        "class order": ("the data's own", "seed 7"),
        "preprocessing": ("cifar", "unit"),
        "train.interpolation": ("bicubic", "bilinear"),
        "train.jitter": ("[0.24705882352941178, 0, 0, 0]", "[0, 0, 0, 0]"),
        "train.scale": ("[0.08, 1]", "[0.05, 1]"),
    }


def test_any_of_the_five_orders_is_ntk_cls() -> None:
    for seed, expected in ((0, {}), (4, {}), (5, {"class order": ("seed 0 or 1 or 2 or 3 or 4", "seed 5")})):
        assert unlike("ntk-cl", *measured("ntk-cl", order_seed=seed)) == expected


def test_the_number_of_tasks_counts_where_it_is_fixed() -> None:
    assert unlike("hide-pet", *measured("hide-pet", tasks=[{}] * 5)) == {"tasks": ("10", "5")}
    assert unlike("ranpac", *measured("ranpac", tasks=[{}] * 5)) == {}


def test_what_is_not_said_is_not_compared() -> None:
    protocol, _ = measured("hide-pet")
    assert unlike("hide-pet", protocol) == {}
    assert "train.scale" not in unlike("pilot", protocol)
    domains, train = measured("hide-pet", kind="domain")
    assert "class order" not in unlike("pilot", domains, train)
    listed, train = measured("hide-pet", order=["b", "a"])
    assert "class order" not in unlike("hide-pet", listed, train)
    text = Protocol(
        {**measured("hide-pet")[0], "views": {"test": {"view": "text"}}, "preprocessing": {"pooling": "cls"}}
    )
    assert set(unlike("pilot", text)) == {"class order"}


@pytest.mark.parametrize("preset", ["ranpac", "hide-pet"])
def test_no_preset_learns_all_tasks_at_once(preset: str) -> None:
    """Whether or not it fixes the number of tasks."""
    protocol, train = measured(preset, joint=True)
    said = {"ranpac": "one after the other", "hide-pet": "10"}[preset]
    assert unlike(preset, protocol, train) == {"tasks": (said, "all at once")}
    assert all(unlike(name, protocol, train) for name in PRESETS)
