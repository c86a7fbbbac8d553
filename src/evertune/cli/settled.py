"""What was settled when a learner was new, against what is asked for now: the same may be said again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evertune.errors import ConfigError


def require_same(folder: Path, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """ConfigError if an option (by its name on the command line; None where it was not given) differs from ``kept``,
    the content of learner.json."""
    _require(folder, _settled(kept), {name: value for name, value in asked.items() if value is not None})


def require_same_settings(folder: Path, kept: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """The same for those of --set, as text."""
    from evertune.methods import get_method

    made = get_method(kept["method"]).config_type.make(kept["preset"], **settings).as_dict()
    there, asked = ({f"--set {name}": _option(of, name) for name in settings} for of in (kept["options"], made))
    _require(folder, there, asked)


def _require(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differing = [name for name, value in asked.items() if _plain(value) != there.get(name)]
    if differing:
        shown = "; ".join(f"{name} is {_told(there.get(name))} there, not {_told(asked[name])}" for name in differing)
        raise ConfigError(
            f"{folder} holds a learner, for which this was settled when it was new: {shown}. Leave that out, or name "
            "another folder for a new learner."
        )


def _settled(kept: Mapping[str, Any]) -> dict[str, Any]:
    """By the names of the options; what the kind of backbone knows nothing of is absent."""
    backbone, train, test = kept["backbone"], kept["views"]["train"], kept["views"]["test"]
    return {
        "--method": kept["method"],
        "--preset": kept["preset"],
        "--backbone": backbone["name"],
        "--input-size": backbone.get("input_size"),
        "--preprocessing": backbone.get("preprocessing"),
        "--max-length": backbone.get("max_length"),
        "--pooling": backbone.get("pooling"),
        "--truncate": train.get("truncate"),
        "--crop-scale": train.get("scale"),
        "--flip": train["flip"] > 0 if "flip" in train else None,
        "--test-resize": test.get("resize"),
        "--seed": kept["seeds"]["init"],
    }


def _option(options: Mapping[str, Any], name: str) -> Any:
    if name.startswith("tuning."):
        return options.get("tuning_options", {}).get(name.removeprefix("tuning."))
    return options.get(name)


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value))


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "unset" if value is None else str(value)
