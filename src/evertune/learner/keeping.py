"""What of a learner its folder keeps, and a learner made of that again, whoever wrote it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import evertune
from evertune.backbones import Backbone, Passes, load_again
from evertune.backbones.passes import Branch, Chooser, Slots
from evertune.engine import Seeds
from evertune.engine.views import views_from, views_of
from evertune.errors import ConfigError, EvertuneError, StorageError, escaped
from evertune.learner.temperature import Temperature
from evertune.methods import make_method

if TYPE_CHECKING:
    from evertune.learner.learner import Learner

SPARE = 1 << 28
"""Bytes that a method may take when it is made, beside so many times those of its state:"""
TIMES = 16

SHOWN = 3


def described(learner: Learner) -> dict[str, Any]:
    """What learner.json says of it, but for what belongs to the folder."""
    return {
        "evertune": evertune.__version__,
        "method": learner.method.name,
        "preset": learner.preset,
        "options": learner.method.config.as_dict(),
        "backbone": learner.backbone.identity.as_dict(),
        "classes": list(learner.classes),
        "seeds": learner.seeds.as_dict(),
        "views": {"train": learner.train_view.describe(), "test": learner.test_view.describe()},
        "precision": learner.engine.runtime.precision,
        "history": copy.deepcopy(learner.history),
        "phases": copy.deepcopy(learner.phases),
        "temperature": None if learner.temperature is None else learner.temperature.as_dict(),
        "stored": [asdict(kept) for kept in learner.stored()],
    }


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """All else: the method's state and where its random numbers are. The tensors are the learner's own, no copies."""
    generators = learner.method.generators
    return {
        **learner.method.state_dict(),
        "random.init": generators.init.get_state(),
        "random.sampling": generators.sampling.get_state(),
    }


def restored(
    kind: type[Learner],
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    backbone: str | Backbone | None,
    settings: dict[str, Any],
    folder: Path,
) -> Learner:
    """The learner that ``content`` and ``tensors`` tell of; see :meth:`Learner.load`."""
    where = f"{folder} (version {content['version']})"
    backbone = _same_backbone(content["backbone"], backbone, where)
    settings = {"precision": content["precision"], **settings}
    truncate = settings.pop("truncate", None)
    with _readable(where):
        made = _arguments(content, backbone)
        _require_small(content["method"], backbone, made, tensors)
    if truncate is not None:
        made["train_view"], made["test_view"] = views_from(content["views"], backbone, truncate=truncate)
    if fixed := made.keys() & settings.keys():
        raise ConfigError(f"{', '.join(sorted(fixed))}: fixed when the learner was made, so not to be given again.")
    with _fitting(where):  # ours are about the settings, since what is made has been made once
        learner = kind(content["method"], backbone, **made, **settings)
    with _readable(where):
        _fill(learner, dict(tensors))
        learner.classes = tuple(content["classes"])
        learner.history = copy.deepcopy(content["history"])
        learner.phases = copy.deepcopy(content.get("phases", []))
        temperature = content.get("temperature")
        learner.temperature = None if temperature is None else Temperature(**temperature)
        _require_scores(learner)
    return learner


def _arguments(content: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """What a learner of ``content`` is made with, beside the method and the backbone."""
    train_view, test_view = views_of(backbone, *views_from(content["views"], backbone))
    options = dict(content["options"])
    tuning = {f"tuning.{name}": value for name, value in options.pop("tuning_options", {}).items()}
    seeds = Seeds(**content["seeds"])
    fixed = {"preset": content["preset"], "seeds": seeds, "train_view": train_view, "test_view": test_view}
    if both := fixed.keys() & {*options, *tuning}:
        raise StorageError(f"{', '.join(sorted(both))} is no option of a method.")
    return fixed | options | tuning


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Whatever is wrong in it is wrong with what was read."""
    try:
        with _fitting(where):
            yield
    except EvertuneError as error:
        told = str(error)
        if not told.startswith(where):
            told = f"{where} does not describe a learner: {escaped(told)}"
        raise StorageError(told) from error


@contextmanager
def _fitting(where: str) -> Iterator[None]:
    """What is foreign meets classes that take it for their own; what Python and torch say then is told as ours."""
    try:
        yield
    except EvertuneError:
        raise
    except Exception as error:
        problems = [escaped(line.strip()) for line in str(error).splitlines() if line.strip()]
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise StorageError(
            f"{where} does not fit together ({type(error).__name__}: {'; '.join(problems[:SHOWN])}{more}): restore it "
            "from a copy, or go back to another version."
        ) from error


def _same_backbone(identity: Mapping[str, Any], backbone: str | Backbone | None, where: str) -> Backbone:
    """The backbone that was asked for, if it is the one of that ``identity``."""
    if not isinstance(backbone, Backbone):
        backbone = load_again(identity, backbone)
    mine = {k: list(v) if isinstance(v, tuple) else v for k, v in backbone.identity.as_dict().items()}
    differing = [k for k, value in identity.items() if mine.get(k) != value and k != "name"]
    if differing:
        shown = escaped("; ".join(f"{k}: {identity[k]} there, {mine.get(k)} here" for k in differing))
        raise ConfigError(f"The learner in {where} was trained on another backbone ({shown}). Load that one.")
    return backbone


class _Made(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch says nothing of its types
    """Counts the bytes of all results."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            self.left -= one.nbytes if isinstance(one, Tensor) else 0
        if self.left < 0:
            raise StorageError("its options make far more tensors than it has; restore it from a copy.")
        return result


def _require_small(method: str, backbone: Backbone, made: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make the method where tensors have shapes and no memory: options may ask for more than any computer holds."""
    options = {name: value for name, value in made.items() if name not in ("seeds", "train_view", "test_view")}
    limit = SPARE + TIMES * sum(t.nbytes for t in tensors.values())
    try:
        with torch.device("meta"), _Made(limit):
            make_method(method, backbone, **options)
    except EvertuneError:
        raise
    except Exception:  # a method that must see values when it is made; what else is wrong will show then
        return


def _fill(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Put the tensors where they belong; each is there, none is left, and all have the type they had."""
    generators, method = learner.method.generators, learner.method
    try:
        states = tensors.pop("random.init"), tensors.pop("random.sampling")
    except KeyError as error:
        raise StorageError(f"the tensor {error} is missing.") from error
    for generator, state in zip((generators.init, generators.sampling), states, strict=True):
        generator.set_state(state)
    for name, tensor in tensors.items():
        if not tensor.numel() and max(tensor.shape) > SPARE >> 12:  # it grows with what it is multiplied by
            raise StorageError(f"the tensor {name} is empty and has the shape {list(tensor.shape)}.")
    method.load_state_dict(tensors)
    for name, own in method.state_dict().items():
        if own.dtype != tensors[name].dtype or own.shape != tensors[name].shape:
            there = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise StorageError(f"the tensor {name} is {there}, not {own.dtype} {list(own.shape)}.")
    method.restored()
    method.eval()


class _Blank(Passes):
    """The passes of one input whose feature is 1 everywhere, whatever the tuning: the backbone is not run."""

    def __init__(self, learner: Learner) -> None:
        backbone, device = learner.backbone, learner.engine.runtime.device
        size = backbone.identity.as_dict().get("input_size")
        text = torch.zeros(1, 8, dtype=torch.long, device=device)
        super().__init__(
            backbone,
            lambda: text if size is None else torch.zeros(1, 3, size, size, device=device),
            rows=torch.zeros(1, dtype=torch.long),
        )
        self._feature = torch.ones(1, backbone.shape.width, device=device)

    def __call__(self, tuning: Branch | None = None) -> Tensor:
        return self._feature

    def routed(self, slots: Slots, ids: Tensor) -> Tensor:
        slots.select(ids.cpu())
        return self._feature

    def steered(self, pool: Chooser, choice: Tensor) -> Tensor:
        pool.select(choice)
        return self._feature


@torch.no_grad()
def _require_scores(learner: Learner) -> None:
    """What was learned gives a score for each class: heads and statistics are as large as the classes are many."""
    for name, scores in learner.method.scores(_Blank(learner)).items() if learner.classes else ():
        if scores.shape != (1, len(learner.classes)):
            raise StorageError(
                f"it has {len(learner.classes)} classes, and {name} scores {list(scores.shape[1:])} of them."
            )
