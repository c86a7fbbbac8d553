"""Files are whole or not there."""

from __future__ import annotations

import json
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
