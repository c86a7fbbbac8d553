"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from evertune.engine import read_json, read_tensors, write_atomic, write_json, write_tensors
from evertune.errors import StorageError


def test_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"größe": [1, 2]}
    tensors = {"x": torch.arange(3), "y": torch.zeros(0, 4)}
    sha = write_tensors(tmp_path / "t.safetensors", tensors)
    back = read_tensors(tmp_path / "t.safetensors", sha)
    assert set(back) == {"x", "y"} and torch.equal(back["x"], tensors["x"]) and back["y"].shape == (0, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "t.safetensors"]


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    """Without elements or dimensions, in one another's memory, turned, part of a larger one, and of any type."""
    whole = torch.arange(24.0).reshape(4, 6)
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    tensors = {
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0), "also empty": torch.zeros(0, 5, dtype=torch.long),
        "whole": whole, "again": whole, "rows": whole[1:3], "turned": whole.T, "every other": whole[:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)), **{str(kind): whole.to(kind) for kind in types},
    }  # fmt: skip
    back = read_tensors(tmp_path / "t", write_tensors(tmp_path / "t", tensors))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    assert write_tensors(tmp_path / "none", {}) and torch.equal(whole, torch.arange(24.0).reshape(4, 6))


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "t", {"x": torch.ones(100_000)})
    assert digest == hashlib.sha256((tmp_path / "t").read_bytes()).hexdigest()
    assert read_tensors(tmp_path / "t", digest)["x"].sum() == 100_000


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "t", {"x": torch.ones(2)})
    (tmp_path / "link").symlink_to(tmp_path / "t")
    os.mkfifo(tmp_path / "pipe")
    for name, told in (("link", "it is a link"), ("pipe", "no plain file"), (".", "no plain file")):
        with pytest.raises(StorageError, match=told):
            read_tensors(tmp_path / name, digest)


def test_damage_is_noticed(tmp_path: Path) -> None:
    sha = write_tensors(tmp_path / "t.safetensors", {"x": torch.ones(8)})
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:-4])
    with pytest.raises(StorageError, match="sha256 differs"):
        read_tensors(tmp_path / "t.safetensors", sha)
    with pytest.raises(StorageError, match="cannot be read"):
        read_tensors(tmp_path / "none.safetensors", sha)
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(StorageError, match="damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StorageError, match="missing"):
        read_json(tmp_path / "b.json")


def test_a_full_disk_leaves_the_former_file(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, as a full disk would; Python ignores the signal that says so."""
    write_atomic(tmp_path / "file", b"former")
    digest = write_tensors(tmp_path / "state", {"x": torch.ones(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="file could not be written"):
            write_atomic(tmp_path / "file", b"x" * 100_000)
        with pytest.raises(StorageError, match="state could not be written"):
            write_tensors(tmp_path / "state", {"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == b"former"
    assert read_tensors(tmp_path / "state", digest)["x"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "state"]


def test_who_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        write_tensors(tmp_path / "state", {"x": torch.ones(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(former)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / "state", tmp_path / "a.json")] == [0o640, 0o640]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="a device or a pipe"):
        write_atomic(tmp_path / "pipe", b"new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_missing_right_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_json_is_plain(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None}
