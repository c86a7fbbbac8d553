"""Whose protocol a number already has: a measured protocol beside the presets, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evertune.evaluation.protocol_presets import OWN_ORDER, PRESETS, ProtocolPreset
from evertune.evaluation.protocol_text import Difference, differences

NO_JITTER = (0, 0, 0, 0)
ARRANGED = ("order", "groups", "group_by")
"""Settings of a stream that take the place of a class order."""
JOINT = "all at once"
"""The tasks of a joint stream, which no preset has."""


def likeness(
    protocol: Mapping[str, Any], train_view: Mapping[str, Any] | None = None
) -> list[tuple[ProtocolPreset, list[Difference]]]:
    """Every preset with what it says differently (its values left), the nearest first.

    ``protocol`` says nothing of the training pixels: ``train_view``, that view's description, does. Values of presets
    are scaled to the input size. What one side leaves open is not compared: training pixels without a train view, the
    class order of a stream of domains, pixels where the examples are text, the number of tasks of most presets. A run
    in the order of a given list has no order seed, like one in the data's own order, and is taken for that.
    """
    found = [(preset, differs(preset, protocol, train_view)) for preset in PRESETS.values()]
    return sorted(found, key=lambda one: len(one[1]))


def differs(
    preset: ProtocolPreset, protocol: Mapping[str, Any], train_view: Mapping[str, Any] | None = None
) -> list[Difference]:
    """What one preset says differently from a measured protocol: its values left."""
    here = measured_fields(protocol, train_view)
    there = preset.fields(protocol["preprocessing"].get("input_size", 224))
    there["tasks"] = preset.tasks or "one after the other"
    if here.get("class order") in [f"seed {seed}" for seed in preset.order_seeds]:
        here["class order"] = there["class order"]  # one of its repetitions
    if preset.tasks is None and here.get("tasks") != JOINT:
        here.pop("tasks", None)
    return differences({name: there[name] for name in here}, here)


def measured_fields(protocol: Mapping[str, Any], train_view: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a measured protocol says of the fields of a preset."""
    stream, test, seed = protocol["stream"], protocol["views"].get("test", {}), protocol["seeds"].get("order")
    found: dict[str, Any] = {}
    arranged = any(stream.get(name) is not None for name in ARRANGED) or isinstance(seed, Mapping)
    if stream.get("kind") == "class" and not arranged:
        found["class order"] = OWN_ORDER if seed is None else f"seed {seed}"
        found["tasks"] = len(stream["tasks"])
    if stream.get("joint"):
        found["tasks"] = JOINT
    if test.get("view") == "test":
        found["preprocessing"] = protocol["preprocessing"].get("preprocessing")
        found |= {f"test.{name}": test.get(name) for name in ("resize", "interpolation")}
    if train_view is not None and train_view.get("view") == "train":
        said = {"jitter": NO_JITTER, **train_view}
        found |= {f"train.{name}": said[name] for name in ("scale", "ratio", "flip", "interpolation", "jitter")}
    return found
