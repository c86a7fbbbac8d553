"""An exported file takes its place whole, with what belongs to it, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from evertune.errors import StorageError
from evertune.export.files import replacing


def test_the_file_and_its_data_take_their_place(tmp_path: Path) -> None:
    with replacing(tmp_path / "new" / "model.onnx") as place:
        place.write_text("graph")
        Path(f"{place}.data").write_text("weights")
        assert not (tmp_path / "new" / "model.onnx").exists()
    found = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert found == {"model.onnx": "graph", "model.onnx.data": "weights"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("other"), KeyboardInterrupt()])
def test_after_an_error_all_is_as_before(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("before")
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        _half_written(tmp_path / "model.onnx", error)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def _half_written(file: Path, error: BaseException) -> None:
    with replacing(file) as place:
        place.write_text("half")
        raise error
