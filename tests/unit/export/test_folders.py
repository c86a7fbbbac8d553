"""Folders that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from evertune.errors import StorageError
from evertune.export.folders import new_folder


def test_a_link_stays_and_what_it_points_to_is_filled(tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    with new_folder(link) as inside:
        (inside / "file").write_text("new")
    assert link.is_symlink() and (there / "file").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link"}


def test_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="the folder you are in"), new_folder(Path(".")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(StorageError, match="holds something already"), new_folder(folder):
            pass
    assert (tmp_path / "file").read_text() == "old"
