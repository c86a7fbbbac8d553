"""Methods by name."""

from __future__ import annotations

from typing import Any

import torch

from evertune.backbones import Backbone
from evertune.errors import ConfigError, nearest
from evertune.methods.method import METHODS, Generators, Method


def get_method(name: str) -> type[Method]:
    """The class registered under ``name``; dashes count as underscores."""
    key = name.replace("-", "_").lower()
    if key not in METHODS:
        raise ConfigError(f"No method is called {name!r}. {nearest(key, METHODS)}")
    return METHODS[key]


def make_method(name: str, backbone: Backbone, *, preset: str | None = None, seed: int = 0, **options: Any) -> Method:
    """A fresh method for ``backbone``; ``seed`` draws what it initialises and samples.

    Raises
    ------
    ConfigError
        Unknown method, preset or option, or options that contradict each other.
    """
    method = get_method(name)
    config = method.config_type.make(preset, **options)
    generators = Generators(torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1))
    return method(config, backbone.shape, backbone.shape.width, generators)
