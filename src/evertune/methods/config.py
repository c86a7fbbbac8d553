"""Typed, validated options of a method: unknown names, wrong types and contradictions are errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from evertune.errors import ConfigError, nearest
from evertune.tuning import tuning_options, validate_tuning

TUNING_PREFIX = "tuning."


def option(default: Any, text: str) -> Any:
    """A field of a configuration with its explanation, which ``evertune methods`` shows."""
    metadata = {"text": text, "default": default}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations. Subclasses name their presets; the first is the default."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}

    def __post_init__(self) -> None:
        """Subclasses check their own options here, after those of all that they descend from."""

    @classmethod
    def make(cls, preset: str | None = None, **options: Any) -> Self:
        """The configuration of a preset with some options replaced.

        Values may be text, as a command line gives them; options of the tuning are written ``tuning.rank=4``.

        Raises
        ------
        ConfigError
            Unknown preset or option (with the nearest name), or a value of the wrong type or range.
        """
        preset = preset or next(iter(cls.presets))
        if preset not in cls.presets:
            raise ConfigError(f"No preset is called {preset!r}. {nearest(preset, cls.presets)}")
        merged = dict(cls.presets[preset])
        by_kind = merged.pop("by_kind", {})  # what a preset says otherwise for some kinds of tuning
        tuning = {k.removeprefix(TUNING_PREFIX): v for k, v in options.items() if k.startswith(TUNING_PREFIX)}
        plain = {k: v for k, v in options.items() if not k.startswith(TUNING_PREFIX)}
        known = {f.name: f for f in dataclasses.fields(cls)}
        if "tuning" in known:
            own = merged.get("tuning", known["tuning"].default)
            kind = plain.get("tuning", own)
            if kind != own:
                merged.pop("tuning_options", None)  # they belong to the preset's kind of tuning
            merged |= by_kind.get(kind, {})
        merged.update(plain)
        if tuning and "tuning" not in known:
            raise ConfigError(f"This method trains no tuning: {TUNING_PREFIX}{next(iter(tuning))} means nothing to it.")
        hints = typing.get_type_hints(cls)
        for name, value in merged.items():
            if name not in known:
                raise ConfigError(f"No option is called {name!r}. {nearest(name, known)}")
            merged[name] = convert(name, value, hints[name])
        if "tuning" in known:
            chosen = {**merged.get("tuning_options", {}), **tuning}
            validate_tuning(kind, chosen)
            # All of them, defaults too: a kept configuration must mean the same under another preset or release.
            merged["tuning_options"] = {
                name: convert(TUNING_PREFIX + name, chosen.get(name, default), type(default))
                for name, default in tuning_options(kind).items()
            }
        return cls(**merged)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def explain(cls) -> list[tuple[str, Any, str]]:
        """(name, default, explanation) of every option, defaults after the first preset."""
        first = cls.make()
        return [(f.name, getattr(first, f.name), f.metadata.get("text", "")) for f in dataclasses.fields(cls)]


def convert(name: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind``; text is parsed, and numbers become floats where floats are meant.

    >>> convert("rate", "1e-2", float), convert("deep", "no", bool), convert("strength", "none", float | None)
    (0.01, False, None)
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{name}={value!r} does not exist. {nearest(str(value), map(str, choices))}")
        return value
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if kind is int and isinstance(value, str):
            return int(value)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{name}={value!r} is not a {kind.__name__}.") from error
    wanted = typing.get_origin(kind) or kind
    if not isinstance(value, wanted) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} must be a {wanted.__name__}, not a {type(value).__name__}.")
    return value


def require(condition: bool, message: str) -> None:
    """Raise :class:`ConfigError` with ``message`` unless ``condition``."""
    if not condition:
        raise ConfigError(message)
