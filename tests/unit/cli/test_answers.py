"""Where answers are written to."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from evertune.cli.answers import output
from evertune.errors import StorageError


def test_a_dash_is_the_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for file in (None, Path("-")):
        with output(file) as write:
            write("é\n")
    assert capfdbinary.readouterr().out == "é\né\n".encode()


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, StorageError), (errno.EPIPE, BrokenPipeError)])
def test_answers_that_cannot_be_written_are_told_but_for_a_closed_pipe(
    number: int, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr("evertune.cli.answers.typer.echo", full)
    with pytest.raises(expected), output(None) as write:
        write("a")
