"""How every command behaves: grouped plain help, one line for an error, a short word after Ctrl-C."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

import evertune
from evertune.errors import EvertuneError

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes: something the user can put right; Ctrl-C, as shells report it."""


class Command(TyperCommand):
    """A command whose help lists its options under their panels, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                names, text = record
                record = names, re.sub(r"\[default: \((.*)\)\]", r"[default: \1]", text)  # a default told in words
                default = "Arguments" if parameter.param_type_name == "argument" else "Other"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for name, records in panels.items():
            with formatter.section(name):
                formatter.write_dl(records)


ORDER = (
    "demo", "run", "methods", "learn", "predict", "evaluate", "info", "calibrate", "rollback", "prune", "forget",
    "export", "push", "pull", "data", "protocol", "metrics", "compare", "bench", "diagnose", "cache",
)  # fmt: skip


class Group(TyperGroup):
    """All commands; what evertune raises on purpose becomes one line, everything else keeps its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer meets them."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _shown(warnings.showwarning)
            try:
                return super().invoke(ctx)
            except EvertuneError as error:
                note(str(error))
                raise typer.Exit(BAD_INPUT) from error
            except KeyboardInterrupt as error:
                note("stopped.")
                raise typer.Exit(INTERRUPTED) from error


@contextmanager
def stoppable(remedy: str | Callable[[], str]) -> Iterator[None]:
    """Ctrl-C within says ``remedy``: what is left and how to go on, which may be looked up then."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(err=True)
        note(f"stopped. {remedy if isinstance(remedy, str) else remedy()}")
        raise typer.Exit(INTERRUPTED) from error


def note(text: str) -> None:
    """A message on stderr, in our name; a list of files keeps its lines."""
    typer.echo(f"evertune: {text}", err=True)


def _shown(others: Any) -> Any:
    """A ``warnings.showwarning`` that prints what this package warns of as a note and leaves the rest to ``others``."""
    home = str(Path(evertune.__file__).parent) + os.sep

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and filename.startswith(home):
            note(str(message))
        else:
            others(message, category, filename, *rest)

    return show
