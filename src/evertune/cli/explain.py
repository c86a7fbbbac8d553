"""The text of ``evertune methods``."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from evertune.methods import METHODS, Config, Method, get_method
from evertune.tuning import TUNINGS, tuning_options

WIDEST = 110


def list_methods() -> str:
    """Every method in a line or two, and where to read on."""
    rows = [(name, _about(method), ", ".join(method.config_type.presets)) for name, method in sorted(METHODS.items())]
    lines = []
    for name, about, presets in rows:
        lines += [name, _wrap(about, "    "), _wrap(f"presets: {presets}", "    "), ""]
    lines += ["evertune methods NAME   every option of a method, its presets and tunings"]
    return "\n".join(lines)


def explain_method(name: str) -> str:
    """Options, presets and tunings of one method.

    Raises
    ------
    ConfigError
        No method is called so.
    """
    method = get_method(name)
    config = method.config_type
    first = next(iter(config.presets))
    lines = [_wrap(f"{method.name}: {_about(method)}", ""), "", _wrap(inspect.getdoc(method) or "", ""), ""]
    rows = [row for row in config.explain() if row[0] != "tuning_options"]
    if rows:
        kinds = typing.get_type_hints(config)
        lines += [f"Options (--set KEY=VALUE), with their values in the preset '{first}':", ""]
        lines += [_table([(key, as_setting(value), _kind(kinds[key]), text) for key, value, text in rows]), ""]
    else:
        lines += ["It has no options.", ""]
    lines += ["Presets (--preset NAME):", "", *_presets(config), ""]
    if "tuning" in {key for key, _, _ in rows}:
        lines += ["Tunings (--set tuning=KIND), with their own options (--set tuning.KEY=VALUE):", "", *_tunings()]
    return "\n".join(lines).rstrip()


def _about(method: type[Method]) -> str:
    """The first paragraph of the file that holds the method: its name in full, paper and idea."""
    doc = inspect.cleandoc(sys.modules[method.__module__].__doc__ or "")
    return " ".join(doc.split("\n\n")[0].split())


def _presets(config: type[Config]) -> list[str]:
    first, *others = config.presets
    base = flat_options(config.make(first))
    lines = [_wrap(f"{first} (the default): " + (_settings(base) or "nothing to set"), "  ", hang=4)]
    for name in others:
        other = flat_options(config.make(name))
        changed = {key: value for key, value in other.items() if base.get(key, ...) != value}
        said = f"as '{first}' but " + _settings(changed) if changed else f"the same as '{first}'"
        lines.append(_wrap(f"{name}: {said}", "  ", hang=4))
    return lines


def _tunings() -> list[str]:
    lines = []
    for kind, tuning in TUNINGS.items():
        summary, *rest = (inspect.getdoc(tuning) or "").split("\n\n")
        lines.append(_wrap(f"{kind}: {summary}", "  ", hang=4))
        lines += [_wrap(_settings(tuning_options(kind), "tuning."), "      ")]
        for paragraph in rest:
            lines.append(
                textwrap.indent(paragraph.removeprefix("Parameters\n----------\n").replace("``", ""), "      ")
            )
        lines.append("")
    return lines


def flat_options(config: Config) -> dict[str, Any]:
    values = config.as_dict()
    return values | {f"tuning.{key}": value for key, value in values.pop("tuning_options", {}).items()}


def _settings(values: Mapping[str, Any], prefix: str = "") -> str:
    return " ".join(f"{prefix}{key}={as_setting(value)}" for key, value in values.items())


def as_setting(value: Any) -> str:
    """A value as ``--set`` takes it.

    >>> as_setting(True), as_setting(None), as_setting(5e-10), as_setting("0-2")
    ('yes', 'none', '5e-10', '0-2')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(kind: Any) -> str:
    """What may be given for an annotation.

    >>> _kind(bool), _kind(float | None), _kind(typing.Literal["sgd", "adam"])
    ('yes|no', 'number|none', 'sgd|adam')
    """
    if isinstance(kind, types.UnionType):
        return "|".join(_kind(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {bool: "yes|no", int: "whole", float: "number", str: "text", type(None): "none"}.get(kind, str(kind))


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Columns as wide as their widest cell; the last one is wrapped."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for *cells, text in rows:
        start = "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + "  "
        lines.append(_fill(text, start, " " * len(start)))
    return "\n".join(lines)


def _wrap(text: str, indent: str, hang: int = 0) -> str:
    return _fill(" ".join(text.split()), indent, indent + " " * hang)


def _fill(text: str, first: str, others: str) -> str:
    """Wrapped between words alone, so that what is copied or searched for stays whole."""
    return textwrap.fill(
        text, _width(), initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=False
    )


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
