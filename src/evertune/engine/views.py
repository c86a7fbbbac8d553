"""The views that go with a backbone: of images by its input size, of texts by its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evertune.backbones import Backbone, HFEncoder
from evertune.errors import ConfigError
from evertune.streams import TestView, TextView, TrainView, View


def views_of(
    backbone: Backbone, train: View | None = None, test: View | None = None, *, truncate: bool = False
) -> tuple[View, View]:
    """The training and the test view, by default the backbone's own; ``truncate`` cuts texts that are too long.

    Raises
    ------
    ConfigError
        A view that was given does not fit the backbone.
    """
    if isinstance(backbone, HFEncoder):
        own = TextView(backbone.tokenizer, backbone.identity.max_length, truncate)
        return _text(train or own, backbone), _text(test or own, backbone)
    if truncate:
        raise ConfigError(f"truncate=True cuts texts, and {backbone.identity.name} reads images: drop it.")
    size = backbone.identity.as_dict()["input_size"]
    return _image(train or TrainView(size), size), _image(test or TestView(size), size)


def views_from(
    described: Mapping[str, Mapping[str, Any]], backbone: Backbone, *, truncate: bool | None = None
) -> tuple[View, View]:
    """The two views that :meth:`View.describe` told of; ``truncate`` overrules what it says of texts."""
    train, test = (_arguments(described[part]) for part in ("train", "test"))
    if not isinstance(backbone, HFEncoder):
        if truncate is not None:
            raise ConfigError(f"truncate is for texts, and {backbone.identity.name} reads images: drop it.")
        return TrainView(**train), TestView(**test)
    if truncate is not None:
        train["truncate"] = test["truncate"] = truncate
    first = TextView(backbone.tokenizer, **train)
    return first, first if test == train else TextView(backbone.tokenizer, **test)


def _arguments(described: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "view"}


def _text(view: View, backbone: HFEncoder) -> View:
    name, longest = backbone.identity.name, backbone.identity.max_length
    if not isinstance(view, TextView):
        raise ConfigError(
            f"{type(view).__name__} crops, mirrors and resizes images, and {name} reads texts: give a TextView or none."
        )
    if view.max_length > longest:
        raise ConfigError(f"The view gives up to {view.max_length} tokens, {name} reads {longest}.")
    return view


def _image(view: View, size: int) -> View:
    if isinstance(view, TextView):
        raise ConfigError("A TextView shows texts, and the backbone reads images: give a TrainView and a TestView.")
    made = view.describe()["size"]
    if made != size:
        raise ConfigError(f"{type(view).__name__} makes {made} px images, the backbone takes {size} px.")
    return view
