"""Any folder at all either loads as a learner that predicts, or is refused in words; and it is only read.

The digests are made right after each change, so that what lies behind them is reached.
"""

from __future__ import annotations

import hashlib
import json
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from evertune.backbones import TimmViT
from evertune.errors import EvertuneError
from evertune.learner import Learner
from evertune.learner.format import seal
from evertune.streams import ArraySource, Stream

METHODS: dict[str, dict[str, Any]] = {
    "simple_cil": {},
    "safe": {"epochs": 1, "follow_epochs": 1, "batch_size": 8, "features": 12, "tuning.rank": 1, "blocks": "1"},
    "hide_pet": {"epochs": 1, "shared_epochs": 1, "tii_epochs": 1, "tap_epochs": 1, "tuning.rank": 1, "blocks": "1"}
    | {"warmup": 0, "shared_epochs": 1, "centroids": 2},
}
IMAGE = np.zeros((1, 32, 32), np.uint8)
NUMBERS = st.one_of(st.integers(-3, 70), st.sampled_from([2**31, 2**63, 10**9, 10**12, -(10**30)]), st.floats())
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["../x", "/etc/passwd", "safe", "lora", "none", "\x00", "nan"]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


class Base:
    """The bytes of a whole folder, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.described = (folder / "learner.json").read_bytes()
        self.state = (folder / "state-1.safetensors").read_bytes()
        self.content = json.loads(self.described)
        self.places = list(places(self.content))
        self.names = sorted(load(self.state))


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Every path into a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def bent(data: st.DataObject, content: bytes) -> bytes:
    """With a few bytes changed, put in or left out, or cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)) | st.integers(0, 300))
        how = data.draw(st.sampled_from(["flip", "insert", "remove", "cut"]))
        if how == "cut":
            del changed[at:]
        elif how == "insert":
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "remove":
            del changed[at : at + data.draw(st.integers(1, 9))]
        elif at < len(changed):
            changed[at] ^= data.draw(st.integers(1, 255))
    return bytes(changed)


def retold(data: st.DataObject, content: Any, where: list[tuple[Any, ...]]) -> None:
    """With some values replaced, keys dropped or added, in place."""
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(where))
        try:
            for key in path:
                content = content[key]
            how = data.draw(st.sampled_from(["replace", "drop", "add", "near"]))
            if how == "drop":
                del content[last]
            elif how == "add":
                content[data.draw(TEXTS)] = data.draw(VALUES)
            elif how == "near" and isinstance(content[last], int | float):
                content[last] = data.draw(NUMBERS)
            else:
                content[last] = data.draw(VALUES)
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            return


def recast(data: st.DataObject, base: Base) -> bytes:
    """Tensors renamed, dropped, added, of other shapes, types and values."""
    tensors = load(base.state)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(base.names))
        tensor = tensors.pop(name, None)
        if tensor is None:
            continue
        how = data.draw(st.sampled_from(["drop", "rename", "type", "shape", "size", "value", "twice"]))
        if how == "rename":
            name = data.draw(
                st.sampled_from([*base.names, f"{name}.x", name.replace("0", "7"), "e.slots.99.x"]) | TEXTS
            )
        elif how == "type":
            tensor = tensor.to(data.draw(st.sampled_from(TYPES)))
        elif how == "shape":
            tensor = data.draw(st.sampled_from([tensor[None], tensor.flatten(), tensor.flatten()[:, None], tensor.mT]
                if tensor.ndim > 1 else [tensor[None], tensor.flatten()]))  # fmt: skip
        elif how == "size" and tensor.ndim and len(tensor):
            keep = data.draw(st.integers(0, tensor.shape[0] + 3))
            tensor = torch.cat([tensor, tensor[:1].expand(3, *tensor.shape[1:])])[:keep]
        elif how == "value" and tensor.numel():
            odd = [float("nan"), float("inf"), torch.finfo(tensor.dtype).max] if tensor.is_floating_point() else [100]
            tensor = torch.full_like(tensor, data.draw(st.sampled_from([0, 1, *odd])))
        elif how == "twice":
            tensors[f"{name}.again"] = tensor.clone()
        if how != "drop":
            tensors[name.replace("\x00", "0")] = tensor.contiguous()
    return save({name: tensor.clone() for name, tensor in tensors.items()})


def reheaded(data: st.DataObject, state: bytes) -> bytes:
    """With another header: shapes, types and offsets that need not be those of the bytes behind."""
    (length,) = struct.unpack("<Q", state[:8])
    header, rest = json.loads(state[8 : 8 + length]), state[8 + length :]
    retold(data, header, list(places(header)))
    written = json.dumps(header).encode()
    size = data.draw(st.just(len(written)) | st.sampled_from([0, 1, len(written) + 8, 2**40, 2**60, 2**64 - 1]))
    return struct.pack("<Q", size) + written + rest


def mutated(data: st.DataObject, base: Base) -> tuple[bytes, bytes]:
    """learner.json and its state file; right digests, but where learner.json itself is no more than bytes."""
    kind = data.draw(st.sampled_from(["bytes of the json", "bytes of the state", "json", "tensors", "header", "both"]))
    if kind == "bytes of the json":
        return bent(data, base.described), base.state
    content, state = json.loads(base.described), base.state
    if kind == "bytes of the state":
        state = bent(data, state)
    elif kind == "header":
        state = reheaded(data, state)
    if kind in ("tensors", "both"):
        state = recast(data, base)
    if isinstance(content.get("state"), dict):
        content["state"] |= {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}
    if kind in ("json", "both"):
        retold(data, content, base.places)
    with suppress(ValueError, TypeError):  # NaN, or half a character
        content = seal(content)
    return json.dumps(content, indent=2).encode(), state


class Target:
    """Folders to be changed, one of each method, and the loader under test."""

    def __init__(self, root: Path, backbone: TimmViT, bases: dict[str, Base]) -> None:
        self.root, self.backbone, self.bases = root, backbone, bases
        self.loaded = self.refused = 0

    def meet(self, data: st.DataObject) -> None:
        base = self.bases[data.draw(st.sampled_from(sorted(self.bases)))]
        described, state = mutated(data, base)
        folder = self.root / "kept"
        (folder / "learner.json").write_bytes(described)
        (folder / "state-1.safetensors").write_bytes(state)
        try:
            learner = Learner.load(folder, self.backbone, device="cpu", progress=False)
            answers = learner.predict(IMAGE) if learner.classes else []
            assert set(answers) <= set(learner.classes) and len(answers) == bool(learner.classes)
            self.loaded += 1
        except EvertuneError as error:
            self.told(str(error))
        there = {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
        assert there == {"kept", "outside", "kept/learner.json", "kept/state-1.safetensors"}
        assert (folder / "learner.json").read_bytes() == described
        assert (folder / "state-1.safetensors").read_bytes() == state
        assert (self.root / "outside").read_bytes() == b"precious"

    def told(self, message: str) -> None:
        assert message.isprintable() and "allocate" not in message and "MemoryError" not in message
        self.refused += 1


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """A GiB more than now is all there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def target(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource], tmp_path_factory: pytest.TempPathFactory) -> Target:
    bases = {}
    tasks = Stream.class_incremental(*blobs, first=2, increment=2)[:2]
    for method, options in METHODS.items():
        learner = Learner(method, tiny, progress=False, device="cpu", **options)
        for task in tasks:
            learner.learn(task)
        folder = tmp_path_factory.mktemp(method)
        learner.save(folder)
        bases[method] = Base(folder)
    root = tmp_path_factory.mktemp("fuzz")
    (root / "kept").mkdir()
    (root / "outside").write_bytes(b"precious")
    return Target(root, tiny, bases)


def fuzz(target: Target, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        target.meet(data)

    run()


def test_what_any_folder_does(target: Target) -> None:
    fuzz(target, 150)
    assert target.refused > 50


@pytest.mark.slow
def test_what_any_folder_does_ten_thousand_times(target: Target) -> None:
    fuzz(target, 10_000)
    assert target.loaded > 100 and target.refused > 5000
