"""All that a feature of the plain backbone depends on besides the example: what it is kept under."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

import evertune
from evertune.backbones import Backbone, digest
from evertune.engine.runtime import Runtime
from evertune.streams.views import View

LIBRARIES = ("torch", "timm", "torchvision", "pillow", "transformers", "tokenizers")
"""Whose releases may compute other last bits, in the forward pass or in the view."""


class Conditions:
    """How a backbone computes features here and now, ready for JSON.

    The weights are those in memory, not those once loaded: a backbone that was changed in place is another one.
    """

    def __init__(self, backbone: Backbone, view: View, runtime: Runtime) -> None:
        self.backbone, self.view, self.runtime = backbone, view, runtime
        self._weights: tuple[list[tuple[int, int]], str] | None = None

    def describe(self) -> dict[str, Any]:
        return {
            "backbone": {
                **self.backbone.identity.as_dict(),
                "weights": self._digest(),
                "architecture": architecture(self.backbone),
            },
            "view": self.view.describe(),
            "precision": self.runtime.precision,
            "machine": machine(self.runtime.device),
            "software": {"evertune": evertune.__version__, **{name: _version(name) for name in LIBRARIES}},
        }

    def _digest(self) -> str:
        """Made anew only when a tensor was changed in place or replaced."""
        tensors = dict(self.backbone.named_parameters()) | dict(self.backbone.named_buffers())
        versions = [(tensor.data_ptr(), tensor._version) for tensor in tensors.values()]
        if self._weights is None or self._weights[0] != versions:
            self._weights = versions, digest(tensors)
        return self._weights[1]


def architecture(model: nn.Module) -> str:
    """sha256 over what no tensor shows: the kinds of all modules and their settings (heads, pooling, epsilons …)."""
    total = hashlib.sha256()
    for name, module in model.named_modules():
        settings = {
            k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, bool | int | float | str | tuple)
        }
        total.update(f"{name} {type(module).__qualname__} {sorted(settings.items())}\n".encode())
    return total.hexdigest()


def machine(device: torch.device) -> str:
    """What computes, as far as it decides about the last bit; the number of threads is left out."""
    if device.type == "cuda":
        tf32 = f"{torch.get_float32_matmul_precision()}, {torch.backends.cudnn.allow_tf32}"
        return f"{torch.cuda.get_device_name(device)}, tf32 {tf32}"
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
