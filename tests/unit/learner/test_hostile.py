"""A folder made by an enemy who knows the format and its digests: refused, with nothing run, changed or waited for."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from evertune.backbones import TimmViT
from evertune.errors import ConfigError, EvertuneError, StorageError
from evertune.learner import Learner, LearnerFolder
from evertune.streams import ArraySource, Stream

Forge = Callable[..., None]


@pytest.fixture(scope="module")
def taught(tiny: TimmViT, blobs: tuple[ArraySource, ArraySource]) -> Learner:
    options = {"epochs": 1, "follow_epochs": 1, "batch_size": 8, "features": 40, "tuning.rank": 2}
    learner = Learner("safe", tiny, progress=False, device="cpu", **options)
    for task in Stream.class_incremental(*blobs, first=2, increment=2)[:2]:
        learner.learn(task)
    return learner


@pytest.fixture
def kept(taught: Learner, tmp_path: Path) -> Path:
    taught.save(tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture(autouse=True)
def _nothing_changes_and_little_is_taken(tmp_path: Path) -> Iterator[None]:
    """2 GiB of memory more than now is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(folder: Path, backbone: TimmViT, snapshot: Callable[[Path], Any]) -> str:
    """The message; nothing below the folder's parent has changed."""
    before = snapshot(folder.parent)
    with pytest.raises((StorageError, ConfigError)) as caught:
        Learner.load(folder, backbone, device="cpu", progress=False)
    assert snapshot(folder.parent) == before
    assert folder.name in str(caught.value)
    return str(caught.value)


def set_to(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def test_what_is_forged_well_loads(kept: Path, forge: Forge, tiny: TimmViT) -> None:
    """So that the refusals below are for what they say."""
    forge(kept, set_to("precision", value="bf16"), (kept / "state-1.safetensors").read_bytes())
    learner = Learner.load(kept, tiny, device="cpu")
    assert learner.engine.runtime.precision == "bf16" and learner.predict(np.zeros((1, 32, 32), np.uint8))


JSON = {
    "format as text": (set_to("format", value="2"), "does not tell its format"),
    "format 0": (set_to("format", value=0), "does not tell its format"),
    "format 10^30": (set_to("format", value=10**30), "update evertune"),
    "no object": (lambda content: {"format": 2}, "Field required"),
    "extra key": (set_to("__reduce__", value="os.system"), "not permitted"),
    "extra key below": (set_to("state", "url", value="http://"), "not permitted"),
    "path up": (set_to("state", "file", value="../../etc/passwd"), "no other file"),
    "path down": (set_to("state", "file", value="a/state-1.safetensors"), "no other file"),
    "absolute path": (set_to("state", "file", value="/etc/passwd"), "no other file"),
    "other name": (set_to("state", "file", value="state-9.safetensors"), "no other file"),
    "version -1": (set_to("version", value=-1), "version: "),
    "version 10^400": (set_to("version", value=10**400), "version: "),
    "version true": (set_to("version", value=True), "version: "),
    "digest": (set_to("state", "sha256", value="x" * 64), "state.sha256: "),
    "classes as text": (set_to("classes", value="ab"), "classes: "),
    "class as number": (set_to("classes", 0, value=3), "classes.0: "),
    "class twice": (set_to("classes", 1, value="spot 0"), "twice"),
    "class with a bell": (set_to("classes", 0, value="a\x07"), r"'a\x07' holds control characters"),
    "task with an escape": (set_to("history", 0, "task", value="\x1b[2J"), r"'\x1b[2J' holds control characters"),
    "other classes": (set_to("classes", value=["a", "b", "c", "d"]), "has classes that the learner has not"),
    "history as number": (set_to("history", value=3), "history: "),
    "seed 2^64": (set_to("seeds", "init", value=2**64), "seeds.init: "),
    "seed -1": (set_to("seeds", "init", value=-1), "seeds.init: "),
    "seed missing": (lambda c: c | {"seeds": {"init": 0, "sampling": 0}}, "seeds.augmentation: "),
    "temperature 0": (set_to("temperature", value={"value": 0.0, "tasks": 1, "examples": 1}), "temperature.value: "),
    "method": (set_to("method", value="os"), "No method is called 'os'"),
    "method with dots": (set_to("method", value="evertune.methods.safe"), "No method is called"),
    "preset": (set_to("preset", value="x"), "No preset is called"),
    "precision": (set_to("precision", value="int8"), "precision: "),
    "option": (set_to("options", "x", value=1), "No option is called 'x'"),
    "option's type": (set_to("options", "epochs", value=[1]), "must be a int"),
    "option named like an argument": (set_to("options", "device", value="cuda"), "does not"),
    "tuning option": (set_to("options", "tuning_options", "x", value=1), "has no option 'x'"),
    "tuning options as list": (set_to("options", "tuning_options", value=[1]), "options.tuning_options: "),
    "tuning": (set_to("options", "tuning", value="x"), "does not exist|No tuning"),
    "blocks": (set_to("options", "blocks", value="0-999999999999"), "blocks"),
    "10^9 features": (set_to("options", "features", value=10**9), "far more tensors than it has"),
    "10^18 features": (set_to("options", "features", value=10**18), "does not|far more"),
    "10^30 features": (set_to("options", "features", value=10**30), "does not"),
    "rank 10^8": (set_to("options", "tuning_options", "rank", value=10**8), "far more tensors than it has"),
    "features of another number": (set_to("options", "features", value=41), "size mismatch for R"),
    "another method": (lambda c: c.update(method="simple_cil", options={}, preset="evertune"), "Unexpected key"),
    "a method of more tensors": (lambda c: c["options"].update(tuning="ssf", tuning_options={}), "Missing key"),
    "view": (set_to("views", "train", "x", value=1), "does not fit together"),
    "view's value": (set_to("views", "test", "interpolation", value="x"), "Unknown interpolation"),
    "view's type": (set_to("views", "train", "flip", value="often"), "does not fit together"),
    "view of 10^6 pixels": (set_to("views", "test", "resize", value=10**6), "views.test.resize"),
    "view of another size": (set_to("views", "test", "size", value=64), "64 px"),
    "no view": (set_to("views", "test", value={}), "does not fit together"),
    "backbone of 10^6 pixels": (set_to("backbone", "input_size", value=10**6), "backbone.input_size"),
    "backbone with a secret": (set_to("backbone", "secret", value=1), "another backbone"),
    "backbone without mean": (set_to("backbone", "mean", value=None), "another backbone"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_what_learner_json_says(
    name: str, kept: Path, forge: Forge, tiny: TimmViT, snapshot: Callable[[Path], Any]
) -> None:
    change, told = JSON[name]
    forge(kept, change)
    message = refused(kept, tiny, snapshot)
    assert any(one in message for one in told.split("|")), message
    assert message.isprintable()


TEXTS = {
    "deep": '{"format": 2, "a": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "not a number": '{"format": 2, "a": NaN}',
    "infinite": '{"format": 2, "a": -Infinity}',
    "beyond floats": '{"format": 2, "a": 1e999}',
    "5000 digits": '{"format": ' + "9" * 5000 + "}",
    "key twice": '{"format": 3, "format": 2}',
    "list": "[]",
    "null": "null",
    "nothing": "",
    "half a character": '{"format": 2, "a": "\\ud800"}',
    "other encoding": '{"format": 2, "a": "\xe4"}'.encode("latin-1"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_learner_json(name: str, kept: Path, tiny: TimmViT, snapshot: Callable[[Path], Any]) -> None:
    text = TEXTS[name]
    (kept / "learner.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "damaged" in refused(kept, tiny, snapshot)


def changed(kept: Path, change: Callable[[dict[str, Tensor]], Any]) -> bytes:
    tensors = load((kept / "state-1.safetensors").read_bytes())
    change(tensors)
    return save({name: t.contiguous() for name, t in tensors.items()})


STATES = {
    "missing": (lambda t: t.pop("R") is None, "Missing key"),
    "missing generator": (lambda t: t.pop("random.init") is None, "random.init"),
    "extra": (lambda t: t.update(evil=torch.zeros(2)), "Unexpected key"),
    "wrong shape": (lambda t: t.update(R=t["R"].T), "size mismatch"),
    "wrong type": (lambda t: t.update(R=t["R"].to(torch.int8)), "torch.int8"),
    "half": (lambda t: t.update({"ridge_fast.A": t["ridge_fast.A"].half()}), "float16"),
    "generator's type": (lambda t: t.update({"random.init": torch.zeros(3)}), "does not fit together"),
    "generator's size": (lambda t: t.update({"random.init": t["random.init"][:-1]}), "does not fit together"),
    "generator's content": (lambda t: t.update({"random.init": t["random.init"] * 0 + 255}), "does not fit together"),
    "a class fewer": (lambda t: t.update({"ridge_fast.A": t["ridge_fast.A"][:, :-1]}), "[1, 3] at entry 0"),
    "no classes": (lambda t: t.update({k: t[k][:, :0] for k in ("ridge_fast.A", "ridge_slow.A")}), "4 classes"),
    "empty and long": (lambda t: t.update({"gram_fast.Q": torch.zeros(0, 10**12)}), "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_what_the_tensors_are(
    name: str, kept: Path, forge: Forge, tiny: TimmViT, snapshot: Callable[[Path], Any]
) -> None:
    change, told = STATES[name]
    forge(kept, state=changed(kept, change))
    message = refused(kept, tiny, snapshot)
    assert any(one in message for one in told.split("|")), message


@pytest.mark.parametrize(
    "state",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**63 - 1) + b"{}",
        struct.pack("<Q", 4) + b"{{{{",
        b'\x42\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}    ',
        b'\x44\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1099511627776]}}    ',
        b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
        b"PK\x03\x04" + bytes(100),
    ],
    ids=["empty", "2^60", "2^63", "no json", "shape", "offset", "pickle", "zip"],
)
def test_what_is_no_safetensors_file(
    state: bytes, kept: Path, forge: Forge, tiny: TimmViT, snapshot: Callable[[Path], Any]
) -> None:
    forge(kept, state=state)
    assert "is not a safetensors file" in refused(kept, tiny, snapshot)


@pytest.mark.parametrize("file", ["learner.json", "state-1.safetensors", "learner-1.json"])
@pytest.mark.parametrize("kind", ["link", "broken link", "link to itself", "folder", "pipe", "device"])
def test_what_is_no_plain_file(
    file: str, kind: str, kept: Path, tiny: TimmViT, snapshot: Callable[[Path], Any]
) -> None:
    path, other = kept / file, kept.parent / "elsewhere"
    os.replace(path, other)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": other, "broken link": "nowhere", "link to itself": path, "device": "/dev/zero"}[kind])
    before = snapshot(kept.parent)
    with pytest.raises(StorageError, match=rf"{file} cannot be read \((it is a link|it is no plain file)\)"):
        LearnerFolder(kept).read(1 if file == "learner-1.json" else None)
    assert snapshot(kept.parent) == before


def test_links_are_never_written_through(kept: Path, taught: Learner) -> None:
    target = kept.parent / "precious"
    target.write_text("precious")
    (kept / "learner.json").unlink()
    for name in ("learner.json", "state-2.safetensors", "learner-2.json", "learner-7.json", "state-7.safetensors"):
        (kept / name).symlink_to(target)
    taught.save(kept, keep=1)
    assert target.read_text() == "precious"
    assert LearnerFolder(kept).content()["version"] == 8 and not (kept / "learner.json").is_symlink()
    assert sorted(path.name for path in kept.iterdir()) == [
        ".lock",
        "learner-8.json",
        "learner.json",
        "state-8.safetensors",
    ]


def test_the_folder_itself_may_be_a_link(kept: Path, tiny: TimmViT, taught: Learner) -> None:
    link = kept.parent / "link"
    link.symlink_to(kept)
    assert Learner.load(link, tiny, device="cpu").classes == taught.classes
    taught.save(link)
    assert LearnerFolder(kept).content()["version"] == 2


def test_other_files_are_left_alone(kept: Path, tiny: TimmViT, taught: Learner) -> None:
    others = ["learner.py", "state-1.pkl", "state-01.safetensors", "learner--1.json", "state-٣.safetensors", "x.part"]
    for name in others:
        (kept / name).write_bytes(b"\x80\x04.")
    (kept / "state-5").mkdir()
    taught.save(kept, keep=1)
    LearnerFolder(kept).prune(1)
    assert Learner.load(kept, tiny, device="cpu").classes == taught.classes
    assert {*others, "state-5"} < {path.name for path in kept.iterdir()}


def test_a_learner_json_of_a_terabyte(kept: Path, tiny: TimmViT) -> None:
    with (kept / "learner.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="longer than any learner's"):
        LearnerFolder(kept).content()


def test_names_in_messages_are_escaped(kept: Path, forge: Forge, tiny: TimmViT) -> None:
    forge(kept, set_to("\x1b[31m", value=1))
    with pytest.raises(EvertuneError) as caught:
        Learner.load(kept, tiny)
    assert str(caught.value).isprintable() and "x1b" in str(caught.value)
