"""LoRA tunings as adapters of Hugging Face PEFT, on the plain timm or transformers model."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evertune.errors import ExportError
from evertune.export.folders import new_folder
from evertune.export.library import attention_maps, building_lines, library_model, public_name, require_equal
from evertune.export.tunings import tunings_of
from evertune.tuning import LowRank
from evertune.tuning.lora import LoRABlock

if TYPE_CHECKING:
    from evertune.backbones import Backbone
    from evertune.learner import Learner


@dataclass(frozen=True)
class Adapter:
    """One exported adapter: its folder, its rank in every layer it changes, and how far its features are off."""

    name: str
    folder: Path
    rank: int
    difference: float


def export_peft(learner: Learner, folder: str | os.PathLike[str], task: str | int | None = None) -> list[Adapter]:
    """Every LoRA of the learner as an adapter for :meth:`peft.PeftModel.from_pretrained`.

    A single adapter is ``folder`` itself; several are folders in it, named after the parts of the method: ``slow`` and
    ``fast`` (SAFE), ``g-0`` and ``e-0``, ``e-1`` … (HiDe-PET: shared, and of each task). Heads and statistics stay
    behind, so what is exported gives the learner's features, not its answers. Each adapter is loaded back by peft and
    compared before anything takes its place.

    timm keeps query, key and value in one layer: LoRA of rank r on k of them is one adapter of rank k·r there, whose B
    is zero outside of its own rows.

    Parameters
    ----------
    folder
        A new or an empty one.
    task
        The name or number of a task: only what answers once that task is told.

    Raises
    ------
    ExportError
        There is no LoRA, peft is missing, or what it loads gives other features.
    StreamError
        There is no such task.
    StorageError
        The folder holds something, or cannot be written.
    """
    peft = _peft()
    tunings = _loras(learner, task)
    model = library_model(learner.backbone)
    made = []
    with new_folder(Path(folder)) as temporary:
        for name, lora in tunings.items():
            part = "" if len(tunings) == 1 else name
            rank = _write(peft, learner.backbone, model, lora, temporary / part)
            loaded = peft.PeftModel.from_pretrained(model, str(temporary / part))
            difference = require_equal(learner.backbone, lora, loaded, f"The adapter {name}")
            model = loaded.unload()
            (temporary / part / "README.md").write_text(_readme(learner, name, difference), encoding="utf-8")
            made.append(Adapter(name, Path(folder) / part, rank, difference))
    return made


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise ExportError(
            f"PEFT adapters need the package {error.name or 'peft'}, which is missing: pip install 'evertune[export]'."
        ) from error


def _loras(learner: Learner, task: str | int | None) -> dict[str, LowRank]:
    """The tunings to export; an ExportError that says why if there is none."""
    tunings = tunings_of(learner, task)
    if not learner.classes or not tunings:
        why = "has learned nothing yet" if not learner.classes else "answers from the plain model and has no tuning"
        raise ExportError(f"This learner ({learner.method.name}) {why}: there is no adapter to export.")
    loras = {name: tuning for name, tuning in tunings.items() if isinstance(tuning, LowRank)}
    others = [f"{name} ({tuning.kind})" for name, tuning in tunings.items() if name not in loras]
    if not loras:
        raise ExportError(
            f"Only lora has the form of a PEFT adapter on these models, and this learner has {', '.join(others)}, "
            "which acts where peft does not reach. As ONNX or torch.export the learner can leave as a whole."
        )
    if others:
        warnings.warn(f"left out what is no lora: {', '.join(others)}", stacklevel=2)
    return loras


def _write(peft: Any, backbone: Backbone, model: nn.Module, lora: LowRank, folder: Path) -> int:
    """Write one adapter with peft's own classes; ``model`` is as before afterwards. Gives the adapter's rank."""
    layers = _by_layer(backbone, model, lora)
    rank = sum(a.shape[1] for a, _, _ in next(iter(layers.values())))
    alpha = next(_blocks(lora)).scale * rank
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=round(alpha) if alpha == round(alpha) else alpha,
        target_modules=list(layers),
        lora_dropout=0.0,
        bias="none",
        use_rslora=False,
    )
    wrapped = peft.get_peft_model(model, config)
    # Only now: peft has put in what the model says of itself, and made a set of the names, whose order would vary.
    config.base_model_name_or_path, config.target_modules = public_name(backbone), list(layers)
    with torch.no_grad():
        for name, parts in layers.items():
            layer: Any = model.get_submodule(name)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            down.copy_(torch.cat([a for a, _, _ in parts], dim=1).T)
            up.zero_()
            first = 0
            for a, b, row in parts:
                up[row : row + b.shape[1], first : first + a.shape[1]] = b.T
                first += a.shape[1]
    folder.mkdir(parents=True, exist_ok=True)
    # Asked about embeddings, peft would look for the base model on the hub.
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    mode = (folder / "adapter_config.json").stat().st_mode
    (folder / "adapter_model.safetensors").chmod(mode)  # which safetensors shuts out all other users
    wrapped.unload()
    return rank


def _by_layer(backbone: Backbone, model: nn.Module, lora: LowRank) -> dict[str, list[tuple[Tensor, Tensor, int]]]:
    """For each linear layer of ``model`` the factors A [in, r] and B [r, out] that act there, and B's first row."""
    places = attention_maps(backbone, model)
    layers = defaultdict(list)
    for i, block in zip(lora.indices, _blocks(lora), strict=True):
        for q in sorted(block.a, key="qkv".index):
            name, row = places[i, q]
            layers[name].append((block.a[q], block.b[q], row))
    return dict(layers)


def _blocks(lora: LowRank) -> Iterator[LoRABlock]:
    return (lora.factored(i) for i in lora.indices)


def _readme(learner: Learner, name: str, difference: float) -> str:
    known = learner.backbone.identity.as_dict()
    shown = ("input_size", "mean", "std", "pooling", "max_length")
    inputs = "\n".join(f"- {key}: {known[key]}" for key in shown if key in known)
    return f"""---
library_name: peft
tags:
- lora
- evertune
---

The tuning `{name}` of an evertune learner ({learner.method.name}) as a PEFT adapter on {public_name(learner.backbone)}.

```python
{building_lines(learner.backbone)}

from peft import PeftModel

model = PeftModel.from_pretrained(model, "FOLDER")  # the folder of this file
```

It gives the learner's features, not its answers: heads and statistics stayed behind. Loaded back by peft, the largest
difference from the learner's features was {difference:.1e} on random inputs.

The weights beneath must have the sha256 `{known["weights"]}`, which evertune takes
over names, shapes and float32 values without the classifier. Inputs are prepared as the learner does:

{inputs}
"""
