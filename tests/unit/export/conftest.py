"""Learners of two tasks, to be exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from evertune import ArraySource, Learner, Stream, TextSource
from evertune.backbones import Backbone, HFEncoder, TimmViT
from evertune.methods import get_method

QUICK = {
    "epochs": 1, "follow_epochs": 1, "batch_size": 8, "features": 48, "blocks": "0-2", "shared_epochs": 1,
    "shared_follow_epochs": 1, "warmup": 0, "shared_warmup": 0, "tii_epochs": 5, "tap_epochs": 5,
}  # fmt: skip
"""Of these, the options that a method has."""

Taught = Callable[..., Learner]


@pytest.fixture(scope="session")
def taught(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> Taught:
    """Makes a learner of three classes and then three more: ``taught("safe", rank=2)``."""

    def make(method: str, **options: object) -> Learner:
        stream = Stream.class_incremental(*blobs, first=3, increment=3, order=None, train_per_class=8)
        return _learned(method, tiny, stream, options)

    return make


@pytest.fixture(scope="session")
def read(encoder: Callable[..., HFEncoder]) -> Taught:
    """Makes one of texts: ``read("safe", family="roberta", pooling="cls")``."""

    def make(method: str, family: str = "bert", pooling: str = "mean", **options: object) -> Learner:
        texts = [" ".join(f"w{20 + 10 * (i % 4) + j % (i % 3 + 1)}" for j in range(2 + i % 7)) for i in range(32)]
        source = TextSource(texts, [i % 4 for i in range(32)], list("abcd"), name="texts")
        stream = Stream.class_incremental(source, source, first=2, increment=2, order=None)
        return _learned(method, encoder(family, pooling), stream, options)

    return make


def _learned(method: str, backbone: Backbone, stream: Stream, options: dict[str, object]) -> Learner:
    known = {field.name for field in fields(get_method(method).config_type)}
    quick = {name: value for name, value in QUICK.items() if name in known}
    learner = Learner(method, backbone, device="cpu", progress=False, **quick | options)  # type: ignore[arg-type]
    for task in stream:
        learner.learn(task)
    return learner
