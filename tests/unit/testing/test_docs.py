"""The page about the contract is true: its method is checked, its tables are those of the checks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evertune.methods import METHODS
from evertune.testing import checks

PAGE = Path(__file__).parents[3] / "docs" / "contract.md"


@pytest.fixture
def example() -> Iterator[list[str]]:
    """The page's code; the method it registers is gone afterwards."""
    yield re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    METHODS.pop("nearest", None)


def test_the_method_on_the_page_keeps_every_promise(example: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for code in example:
        exec(compile(code, PAGE.name, "exec"), names)
    names["test_nearest"]("it_learns")


def test_the_tables_are_those_of_the_checks() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.M))
    assert rows == checks()
