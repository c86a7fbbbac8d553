"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
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


def test_a_full_disk_leaves_the_former_tensors(tmp_path: Path) -> None:
    path = tmp_path / "state"
    digest = write_tensors(path, {"x": torch.ones(2)})
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from evertune.engine.store import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_tensors(Path(sys.argv[1]), {'x': torch.ones(100_000)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "could not be written" in done.stderr and "StorageError" in done.stderr
    assert read_tensors(path, digest)["x"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


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
    """The kernel refuses to let the file grow, as a full disk would."""
    path = tmp_path / "state"
    write_atomic(path, b"former")
    code = (
        "import resource, signal, sys; from pathlib import Path; from evertune.engine.store import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(Path(sys.argv[1]), b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "could not be written" in done.stderr and "StorageError" in done.stderr
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_missing_right_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_json_is_plain(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None}
