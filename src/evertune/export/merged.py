"""A learner's one tuning folded into the weights: a plain state of the timm model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

import evertune
from evertune.backbones import Passes, TimmViT
from evertune.engine.store import write_atomic
from evertune.errors import ExportError
from evertune.export.library import library_model, public_name, require_equal
from evertune.methods import Method
from evertune.tuning import SSF, Full, LowRank, Tuning
from evertune.tuning.full import FullBlock
from evertune.tuning.lora import LoRABlock
from evertune.tuning.ssf import ScaleShift, SSFBlock

if TYPE_CHECKING:
    from evertune.learner import Learner

State = dict[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """A written state: with how many ``classes`` as a head (0: none), and how far its features are off."""

    file: Path
    classes: int
    difference: float


def export_timm(learner: Learner, file: str | os.PathLike[str]) -> Merged:
    """The backbone's weights with the learner's tuning folded in, as safetensors for timm.

    ``timm.create_model(name, num_classes=…, img_size=…, checkpoint_path=file)`` loads them. Where the scores are a
    linear map of the feature (a linear head, ridge without random features), it is in the file as ``head.weight`` and
    ``head.bias``, and with ``num_classes=K`` the model gives the learner's scores (``forward_head(…, pre_logits=True)``
    its features). Otherwise the head stays behind, and with ``num_classes=0`` the model gives the features. The
    weights are loaded into the library's model and compared before the file is written. Its metadata say which model,
    input size, mean and standard deviation belong to it, and the names of the classes where there is a head.

    Raises
    ------
    ExportError
        The learner answers from several passes or the plain model, its tuning is no change of weights, or the backbone
        reads texts.
    StorageError
        The file cannot be written.
    """
    backbone = learner.backbone
    if not isinstance(backbone, TimmViT):
        raise ExportError(f"{public_name(backbone)} is no model of timm's: a LoRA of it can leave as a PEFT adapter.")
    if not learner.classes:
        raise ExportError("This learner has learned nothing yet: there is nothing to merge.")
    tuning = _only(learner.method)
    model = library_model(backbone)
    state = folded(model.state_dict(), tuning)
    model.load_state_dict(state, strict=True)
    difference = require_equal(backbone, tuning, model, "The merged model")
    head = linear_map(learner.method, tuning)
    known = backbone.identity
    about = {
        "format": "pt",
        "evertune": evertune.__version__,
        "architecture": public_name(backbone),
        "input_size": json.dumps(known.input_size),
        "mean": json.dumps(known.mean),
        "std": json.dumps(known.std),
    }
    if head is not None:
        state |= {"head.weight": head[0], "head.bias": head[1]}
        about["classes"] = json.dumps(learner.classes)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(Path(file), save(tensors, about))
    return Merged(Path(file), 0 if head is None else len(learner.classes), difference)


def _only(method: Method) -> Full | LowRank | SSF:
    """The one tuning that the method answers from, if it is a change of weights; else ExportError with the reason."""
    branches = {id(tuning): tuning for tuning in method.branches}
    tuning = next(iter(branches.values()))
    if len(branches) > 1:
        beside = "the plain model and " if None in branches.values() else ""
        count = sum(tuning is not None for tuning in branches.values())
        raise ExportError(
            f"{method.name} answers from {beside}{count} tuning{'s' * (count > 1)}, each in a pass of its own, and one "
            "set of weights serves one pass. LoRAs can leave one by one as PEFT adapters, or the learner as a whole as "
            "ONNX or torch.export."
        )
    if tuning is None:
        raise ExportError(f"This learner ({method.name}) answers from the plain model: there is nothing to merge.")
    if not isinstance(tuning, Full | LowRank | SSF):
        raise ExportError(
            f"This learner's tuning ({tuning.kind}) is no change of weights that the plain model has, so it cannot be "
            "merged into them; full, lora and ssf can. As ONNX or torch.export the learner can leave as a whole."
        )
    return tuning


def folded(state: State, tuning: Full | LowRank | SSF) -> State:
    """The state of a timm transformer, changed so that its plain pass is the pass under ``tuning``.

    Raises
    ------
    ExportError
        SSF or full tuning shifts where the model has no bias, or scales where it has no layer.
    """
    state = dict(state)
    with torch.no_grad():
        for i in tuning.indices:
            block = tuning.block(i)
            if isinstance(block, LoRABlock):
                _add(state, f"blocks.{i}.attn.qkv.weight", block)
            elif isinstance(block, FullBlock):
                _move_block(state, f"blocks.{i}", block)
            else:
                _scale_block(state, f"blocks.{i}", cast(SSFBlock, block))
        if isinstance(tuning, SSF):
            if "patch_embed" in tuning.ends:
                last = "norm" if "patch_embed.norm.weight" in state else "proj"
                _scale(state, f"patch_embed.{last}", tuning.ends["patch_embed"])
            _scale(state, "norm", tuning.ends["norm"])
    return state


def _add(state: State, name: str, block: LoRABlock) -> None:
    """W + ΔW for the rows of query, key and value in timm's one layer."""
    weight = state[name].clone()
    for q, delta in block.delta().items():
        weight.view(3, -1, weight.shape[1])["qkv".index(q)].add_(delta)
    state[name] = weight


def _move_block(state: State, prefix: str, block: FullBlock) -> None:
    """W + ΔW and b + Δb; of a norm (1 + γ) times its scale and shift, and β."""
    for layer, names in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", ("fc1",)), ("mlp.fc2", ("fc2",))):
        for kind, parts in (("weight", block.weight), ("bias", block.bias)):
            place = f"{prefix}.{layer}.{kind}"
            if place not in state:
                raise ExportError(f"Full tuning cannot be merged into this model: {prefix}.{layer} has no {kind}.")
            state[place] = state[place] + torch.cat([parts[name] for name in names])
    for name in block.gain:
        for kind in ("weight", "bias"):
            state[f"{prefix}.{name}.{kind}"] = (1 + block.gain[name]) * state[f"{prefix}.{name}.{kind}"]
        state[f"{prefix}.{name}.bias"] += block.shift[name]


def _scale_block(state: State, prefix: str, block: SSFBlock) -> None:
    at = cast(dict[str, ScaleShift], block.at)
    _scale(state, f"{prefix}.attn.qkv", at["q"], at["k"], at["v"])
    for name, layer in (("norm1",) * 2, ("norm2",) * 2, ("o", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
        _scale(state, f"{prefix}.{layer}", at[name])


def _scale(state: State, layer: str, *parts: nn.Module) -> None:
    """γ ⊙ (W x + b) + β as a layer: its weight is γ W, its bias γ b + β, by row. Norms and convolutions alike."""
    weight, bias = state.get(f"{layer}.weight"), state.get(f"{layer}.bias")
    if weight is None or bias is None:
        lacking = "weight" if weight is None else "bias"
        raise ExportError(f"SSF cannot be merged into this model: {layer} has no {lacking} to take it up.")
    gamma = torch.cat([cast(ScaleShift, part).gamma for part in parts])
    beta = torch.cat([cast(ScaleShift, part).beta for part in parts])
    state[f"{layer}.weight"] = gamma.view(-1, *[1] * (weight.ndim - 1)) * weight
    state[f"{layer}.bias"] = torch.addcmul(beta, gamma, bias)


def linear_map(method: Method, tuning: Tuning) -> tuple[Tensor, Tensor] | None:
    """W [K, L] and b [K] if the method's scores are W x + b of the feature x under ``tuning``; None if they are not.

    Found by asking: W is the Jacobian, b the scores of zero, and both must explain the scores of a random feature.
    """

    def scores(x: Tensor) -> Tensor:
        return next(iter(method.scores(cast(Passes, lambda asked=None: x[None])).values()))[0].float()

    device = method.tasks_seen.device
    zero = torch.zeros(method.width, device=device)
    other = torch.randn(method.width, generator=torch.Generator().manual_seed(0)).to(device)
    weight, again = (cast(Tensor, jacobian(scores, x)) for x in (zero, other))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        bias, expected = scores(zero), scores(other)
    size = float(expected.abs().max())
    if torch.equal(weight, again) and torch.allclose(F.linear(other, weight, bias), expected, atol=1e-5 * size):
        return weight, bias
    return None
