"""The tool itself: names, wrong use, and that every check is shown to fail."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import evertune.testing
from evertune.errors import ConfigError
from evertune.methods import METHODS, Method, SimpleCIL
from evertune.testing import CHECKS, check_method, checks


def test_every_check_is_shown_to_fail() -> None:
    files = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    assert not [name for name in CHECKS if not any(f'"{name}"' in text for text in files)]


def test_every_check_says_in_a_line_what_it_promises() -> None:
    assert list(checks()) == list(CHECKS)
    assert all(30 < len(line) < 130 and line.endswith(".") for line in checks().values())
    assert set(checks()) - set(checks(texts=True)) == {"a_damaged_file_is_named"}


def test_a_class_is_registered_only_meanwhile() -> None:
    class Mine(SimpleCIL):
        name = "mine"

    class Other(SimpleCIL):
        pass

    check_method(Mine, only=["it_learns"])
    check_method(Other, only=["it_learns"])
    assert "mine" not in METHODS and METHODS["simple_cil"] is SimpleCIL


def test_checks_can_be_left_out() -> None:
    class Broken(SimpleCIL):
        def scores(self, passes, task=None):  # type: ignore[no-untyped-def, override]
            return super().scores(passes)

    check_method(Broken, only=["no_task_is_identified"], skip=["no_task_is_identified"])
    with pytest.raises(AssertionError):
        check_method(Broken, only=["no_task_is_identified"])


def test_wrong_use_is_told() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'it_learns'"):
        check_method("simple_cil", only=["it_learn"])
    with pytest.raises(ConfigError, match="Did you mean 'simple_cil'"):
        check_method("simple_cli")
    with pytest.raises(ConfigError, match="No preset is called 'papers'"):
        check_method("simple_cil", preset="papers")
    with pytest.raises(ConfigError, match="No option is called 'rank'"):
        check_method("simple_cil", options={"rank": 1})
    with pytest.raises(ConfigError, match="is no method"):
        check_method(dict)  # type: ignore[arg-type]

    class Unfinished(Method):
        name = "unfinished"

    with pytest.raises(ConfigError, match="Unfinished has no config_type, branches, phases, scores"):
        check_method(Unfinished)


def test_texts_without_transformers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(SimpleCIL):
        pass

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"evertune\[text\]"):
        check_method(Own, texts=True)


def test_it_needs_no_test_runner() -> None:
    """Nor transformers, which is imported only where texts are made."""
    asked = set()
    for file in Path(evertune.testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                asked |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                asked.add(str(node.module).split(".")[0])
    assert asked - set(sys.stdlib_module_names) == {"PIL", "evertune", "numpy", "safetensors", "timm", "torch"}
