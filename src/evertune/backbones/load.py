"""Backbones by name: the embedded one, timm's pre-trained tags or an architecture with a weight file, text encoders."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from evertune.backbones.backbone import Backbone
from evertune.backbones.load_text import MINILM, is_text, load_text
from evertune.backbones.timm_vit import TimmViT, servable
from evertune.errors import BackboneError, nearest

EMBEDDED: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}


def load_backbone(
    name: str = "embedded",
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    preprocessing: str = "native",
    max_length: int | None = None,
    pooling: str | None = None,
) -> Backbone:
    """A frozen backbone.

    Parameters
    ----------
    name
        ``"embedded"`` (ships with the package, 32 px), or a timm model with its tag, like
        ``"vit_base_patch16_224.augreg_in21k"``. The tag also says with which mean and std the checkpoint was trained.
        For texts, ``"minilm"`` (all-MiniLM-L6-v2, in the extra ``text-demo``), or ``"hf:"`` and a folder or hub name of
        a BERT, DistilBERT, RoBERTa or XLM-R for Hugging Face transformers (the extra ``text``).
    weights
        A local ``.safetensors`` or ``.pth`` file. Without it timm's pre-trained weights are used, from its cache or
        hub.
    input_size
        Pixels, if not the native size.
    preprocessing
        ``"native"`` (the checkpoint's mean and std), ``"unit"`` (inputs stay in [0, 1]), ``"imagenet"`` or ``"cifar"``
        (the mean and std of that data set).
    max_length, pooling
        Of a text encoder: tokens read at most, and how they become one feature, ``"mean"`` or ``"cls"``; by default as
        the model was made.

    Raises
    ------
    BackboneError
        Unknown name, an architecture without sites, weights that are missing, damaged, unsafe or of other shapes.
    """
    if is_text(name):
        _require_unset(name, "images", weights=weights, input_size=input_size)
        if preprocessing != "native":
            raise BackboneError(f"{name} reads texts, and preprocessing={preprocessing!r} is for images: drop it.")
        return load_text(name, max_length=max_length, pooling=pooling)
    _require_unset(name, "texts", max_length=max_length, pooling=pooling)
    with torch.random.fork_rng(devices=()):  # timm draws the weights that are then replaced
        return _load_images(name.removeprefix("timm:"), weights, input_size, preprocessing)


def _load_images(name: str, weights: str | Path | None, input_size: int | None, preprocessing: str) -> TimmViT:
    """A vision transformer; ``name`` is "embedded" or timm's."""
    if name == "embedded":
        if weights is not None:
            raise BackboneError("The embedded backbone brings its own weights: drop weights=, or name an architecture.")
        return TimmViT(_embedded(), name, input_size=input_size, preprocessing=preprocessing)
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise BackboneError(f"No backbone is called {name!r}. {_nearest_model(name, known)}")
    with torch.device("meta"):
        servable(_build(name), name)  # another model is refused before anything is fetched or read
    model = _pretrained(name) if weights is None else _filled(name, Path(weights))
    return TimmViT(model, name, input_size=input_size, preprocessing=preprocessing)


def load_again(identity: Mapping[str, Any], name: str | None = None, *, weights: str | Path | None = None) -> Backbone:
    """The backbone that an identity, as kept in JSON, tells of; ``name`` and ``weights`` say where to look instead.

    Whether it is the same is for the caller to see, by its identity.
    """
    options = {k: identity[k] for k in ("input_size", "preprocessing", "max_length", "pooling") if k in identity}
    return load_backbone(name or identity["name"], weights=weights, **options)


def _require_unset(name: str, modality: str, **options: Any) -> None:
    given = [f"{key}=" for key, value in options.items() if value is not None]
    if given:
        raise BackboneError(
            f"{name} does not read {modality}, and {' and '.join(given)} are options of these: drop them."
        )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file; nothing in the file is executed.

    Raises
    ------
    BackboneError
        The file is missing, truncated, of no known format, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"There is no weight file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise BackboneError(
                f"Weight file {path} asks for {code[1]}, which is no tensor and could run code when read, so it is "
                "refused: save the state_dict alone, best as safetensors."
            ) from error
        # PyTorch's own words for a refused pickle advise to read it unsafely: not repeated.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "not tensors alone" if refused else f"{type(error).__name__}: {_first_line(error)}"
        raise BackboneError(
            f"Weight file {path} cannot be read ({reason}): it is truncated, damaged or not a file of weights. "
            "Copy it again."
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in what a file held, freed of its wrappers and of the prefixes that training wrappers leave."""
    for key in ("state_dict", "model", "model_ema", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise BackboneError(f"Weight file {path} holds no dictionary of tensors: save a state_dict.")
    return clean_state_dict({str(k): v for k, v in content.items()})


def _filled(name: str, path: Path) -> nn.Module:
    """The model with the weights of a file, through timm's own conversion; a classifier is not looked at."""
    weights = read_weights(path)
    model = servable(_build(name), name)
    model.reset_classifier(0, model.global_pool)
    try:
        weights = checkpoint_filter_fn(weights, model)
    except Exception as error:  # timm's conversions meet foreign tensors unguarded
        raise BackboneError(
            f"{path} does not hold the weights of {name}: timm cannot convert it ({_first_line(error)})."
        ) from error
    weights = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist.", "fc."))}
    own = model.state_dict()
    wrong = [k for k in own if k in weights and weights[k].shape != own[k].shape]
    problems = [f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}" for k in wrong]
    problems += [f"{k} is missing" for k in own if k not in weights]
    problems += [f"{k} is not part of it" for k in weights if k not in own]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise BackboneError(f"{path} does not hold the weights of {name}: {shown}. Is it another architecture?")
    model.load_state_dict(weights)
    return model


def _pretrained(name: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub client raises many kinds, among them bare RuntimeError and OSError
        raise BackboneError(
            f"The pre-trained weights of {name} could not be had ({type(error).__name__}: {_first_line(error)}). "
            "Check the tag and the network, or give a local file with weights=."
        ) from error


def _build(name: str) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False)
    except Exception as error:  # an unknown tag, or an architecture that asks for what is not installed
        raise BackboneError(f"timm cannot build {name}: {_first_line(error)}") from error


def _nearest_model(name: str, known: list[str]) -> str:
    served = ["embedded", MINILM, *(k for k in known if k.startswith(("vit_", "deit")))]
    hint, _, _ = nearest(name, served).partition("Known:")  # all of them would be hundreds
    return f"{hint}timm.list_models('vit_*') lists them; text encoders are hf:NAME or hf:FOLDER."


def _first_line(error: Exception) -> str:
    """The first line of a message that may have none."""
    return next(iter(str(error).splitlines()), "")


def _embedded() -> VisionTransformer:
    file = resources.files("evertune.backbones") / "embedded.safetensors"
    model = VisionTransformer(**EMBEDDED, num_classes=0)
    with resources.as_file(file) as path:
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model
