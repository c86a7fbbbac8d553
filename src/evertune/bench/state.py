"""How far a cell has come: whether its folder holds the run that the file asks for, and whether that is finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evertune.bench.cells import OPTIONS, REFERENCES, Cell
from evertune.comparison import KeptRun, completed_options, is_run
from evertune.errors import EvertuneError
from evertune.evaluation import Protocol
from evertune.streams.make import default_settings, settings_of

Progress = Literal["finished", "begun", "missing", "different"]


@dataclass(frozen=True, eq=False)
class State:
    """``run`` where there is one; ``reason`` says why a folder is of no use, or how far the run has come."""

    progress: Progress
    reason: str = ""
    run: KeptRun | None = None


def state_of(cell: Cell) -> State:
    """Looks at the folder of ``cell``. What a run noted is compared with what the file asks for, value by value."""
    if not is_run(cell.folder):
        if cell.folder.exists() and (not cell.folder.is_dir() or any(cell.folder.iterdir())):
            return State("different", "it holds other files and no run")
        return State("missing")
    try:
        run = KeptRun.read(cell.folder)
    except EvertuneError as error:
        return State("different", str(error))
    differing = list(differences(cell, run))
    if differing:
        return State("different", "; ".join(differing[:5]), run)
    missing = lacking(cell, run)
    return State("begun", missing, run) if missing else State("finished", run=run)


def lacking(cell: Cell, run: KeptRun) -> str:
    """What the run of ``cell`` lacks; empty where it is finished."""
    if not run.finished:
        return f"{run.stages} of {run.tasks} tasks"
    return "the references are missing" if cell.settings[REFERENCES] and not run.references else ""


def finished_run(cell: Cell, records: Mapping[str, KeptRun]) -> KeptRun | None:
    """The run of ``cell``: that of its folder where it is finished, or what was recorded of the same run."""
    state = state_of(cell)
    if state.progress == "finished":
        return state.run
    recorded = records.get(cell.label)
    same = recorded is not None and not lacking(cell, recorded) and not any(differences(cell, recorded))
    return recorded if same else None


def differences(cell: Cell, run: KeptRun) -> Iterator[str]:
    """Where the run in the folder of ``cell`` is not the one that its settings ask for: "seed: 1 there, 0 here".

    An option that the run does not know, because it came later, has its default, which is what was done before; one
    that is no more is not looked at. The data itself is not opened.
    """
    for name, there, here in _compared(cell, run):
        if there != here:
            yield f"{name}: {there} there, {here} here"


def _compared(cell: Cell, run: KeptRun) -> Iterator[tuple[str, Any, Any]]:
    from evertune.methods import get_method

    asked = cell.settings
    method = get_method(asked["method"])
    preset = asked.get("preset") or next(iter(method.config_type.presets))
    yield "method", run.config["method"], method.name
    yield "preset", run.config["preset"], preset
    if run.config["method"] == method.name:
        chosen = dict(asked[OPTIONS]) | ({"batch_size": asked["batch"]} if "batch" in asked else {})
        wanted = method.config_type.make(preset, **chosen)
        options = completed_options(run)
        for name, value in json.loads(json.dumps(wanted.as_dict())).items():
            yield name, options.get(name), value
    for name, seed in run.config["seeds"].items():
        yield f"seed of {name}", seed, asked["seed"]
    yield "precision", run.config["precision"], asked.get("precision", "fp32")
    yield from _views(cell, run)
    yield from _protocol(cell, run)


def _views(cell: Cell, run: KeptRun) -> Iterator[tuple[str, Any, Any]]:
    asked, train, test = cell.settings, run.config.get("train_view", {}), run.protocol["views"].get("test", {})
    if train.get("view") != "train" or test.get("view") != "test":  # texts have no pixels
        return
    size = run.protocol["preprocessing"]["input_size"]
    habits: Mapping[str, Any] = {"train_view": {}, "test_view": {}}
    if "protocol" in asked:
        habits = Protocol.preset(asked["protocol"]).learner_options(size)
    usual = {"scale": [0.05, 1.0], "flip": 0.5, **habits["train_view"]}
    flip = (0.5 if asked["flip"] else 0.0) if "flip" in asked else usual["flip"]
    yield "crop scale", train["scale"], list(asked.get("crop_scale", usual["scale"]))
    yield "flip", train["flip"], flip
    yield "test resize", test["resize"], asked.get("test_resize", habits["test_view"].get("resize"))


def _protocol(cell: Cell, run: KeptRun) -> Iterator[tuple[str, Any, Any]]:
    asked = cell.settings
    yield "backbone", run.protocol["backbone"]["name"], asked.get("backbone", "embedded")
    for name in ("preprocessing", "input_size"):
        if name in asked:
            yield name, run.protocol["preprocessing"].get(name), asked[name]
    yield "order", run.order, cell.order
    yield from _stream(asked, run.protocol["stream"])


def _stream(asked: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    kind = asked.get("kind", "class")
    yield "kind", described["kind"], kind
    if described["kind"] != kind:
        return
    groups = {name: asked[name] for name in ("first", "increment") if name in asked}
    if len(groups) == 1:  # either stands for both
        groups = dict.fromkeys(("first", "increment"), *groups.values())
    there = settings_of(described)
    for name, default in default_settings(kind).items():
        if name in ("first", "increment") and not groups:  # cut by the data's own rule
            continue
        if name == "order_seed" or (name == "order" and name not in asked):  # the order has its own line
            continue
        yield name, there.get(name, default), {**asked, **groups}.get(name, default)
