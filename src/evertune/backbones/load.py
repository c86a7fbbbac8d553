"""Backbones by name: the embedded one, timm's pre-trained tags, or an architecture with a local weight file."""

from __future__ import annotations

import pickle
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from evertune.backbones.backbone import Backbone
from evertune.backbones.timm_vit import TimmViT
from evertune.errors import BackboneError, nearest

EMBEDDED = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}


def load_backbone(
    name: str = "embedded",
    *,
    weights: str | Path | None = None,
    input_size: int | None = None,
    preprocessing: str = "native",
) -> Backbone:
    """A frozen backbone.

    Parameters
    ----------
    name
        ``"embedded"`` (ships with the package, 32 px), or a timm model, with its tag: ``vit_base_patch16_224.augreg_in21k``.
    weights
        A local ``.safetensors`` or ``.pth`` file. Without it timm's pre-trained weights are used, from its cache or hub.
    input_size
        Pixels, if not the native size.
    preprocessing
        ``"native"`` (the checkpoint's mean and std) or ``"unit"`` (inputs stay in [0, 1]).

    Raises
    ------
    BackboneError
        Unknown name, an architecture without sites, weights that are missing, damaged, unsafe or of other shapes.
    """
    if name == "embedded":
        if weights is not None:
            raise BackboneError("The embedded backbone brings its own weights: drop weights=, or name an architecture.")
        return TimmViT(_embedded(), name, input_size=input_size, preprocessing=preprocessing)
    name = name.removeprefix("timm:")
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise BackboneError(f"No backbone is called {name!r}. {_nearest_model(name, known)}")
    if weights is None:
        return TimmViT(_pretrained(name), name, input_size=input_size, preprocessing=preprocessing)
    model = timm.create_model(name, pretrained=False)
    if isinstance(model, VisionTransformer):  # another model is refused by TimmViT, with the reason
        _fill(model, read_weights(weights), name, Path(weights))
    return TimmViT(model, name, input_size=input_size, preprocessing=preprocessing)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file; nothing in the file is executed.

    Raises
    ------
    BackboneError
        The file is missing, truncated, of no known format, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"Weight file {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BackboneError(f"Weight file {path} is not a whole safetensors file ({error}): copy it again.") from error
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"Weight file {path} holds more than tensors and could run code when read, so it is refused: save the "
            f"state_dict alone, best as safetensors. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BackboneError(f"Weight file {path} cannot be read ({str(error).splitlines()[0]}): copy it again.") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_ema", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()) or not content:
        raise BackboneError(f"Weight file {path} holds no dictionary of tensors: save a state_dict.")
    return {str(k): v for k, v in content.items()}


def _fill(model: VisionTransformer, weights: dict[str, Tensor], name: str, path: Path) -> None:
    """Load ``weights`` into ``model`` through timm's own conversion; the classifier may be absent or of another size."""
    model.reset_classifier(0, model.global_pool)
    try:
        weights = checkpoint_filter_fn(weights, model)
    except (RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise BackboneError(f"{path} does not hold the weights of {name}: timm cannot convert it ({error}).") from error
    weights = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist.", "fc."))}
    own = model.state_dict()
    wrong = [f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}" for k in own if k in weights and weights[k].shape != own[k].shape]
    missing = [f"{k} is missing" for k in own if k not in weights]
    unknown = [f"{k} is not part of it" for k in weights if k not in own]
    problems = wrong + missing + unknown
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise BackboneError(f"{path} does not hold the weights of {name}: {shown}. Is it another architecture?")
    model.load_state_dict(weights)


def _pretrained(name: str) -> torch.nn.Module:
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub client raises many kinds, among them bare RuntimeError and OSError
        raise BackboneError(
            f"The pre-trained weights of {name} could not be had ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            "Check the tag and the network, or give a local file with weights=."
        ) from error


def _nearest_model(name: str, known: list[str]) -> str:
    return nearest(name, ["embedded", *(k for k in known if k.startswith(("vit_", "deit")))]).split(" Known")[0] + (
        " timm.list_models('vit_*') lists them."
    )


def _embedded() -> VisionTransformer:
    file = resources.files("evertune.backbones") / "embedded.safetensors"
    model = VisionTransformer(**EMBEDDED, num_classes=0)
    with resources.as_file(file) as path:
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return model
