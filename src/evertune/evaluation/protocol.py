"""What a number depends on, and the short hash that stands beside it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from evertune.errors import ConfigError, RunError, StorageError
from evertune.evaluation.protocol_presets import ProtocolPreset, get_preset
from evertune.evaluation.protocol_text import Difference, differences, lines

REQUIRED = ("stream", "backbone", "preprocessing", "views", "seeds", "metric")
"""Fields every protocol has: a number without them cannot be compared with anything."""

HASH_DIGITS = 12
DIFFERENCES_SHOWN = 8


class Protocol(Mapping[str, Any]):
    """All that a number depends on besides the method: an immutable mapping of plain values.

    `fields` must name ``stream`` (data digests, split, class order), ``backbone`` (identity with weight digest),
    ``preprocessing``, ``views``, ``seeds`` and ``metric``; further fields are welcome. Values are what JSON can say:
    None, booleans, finite numbers, strings, lists, mappings with string keys (tuples and numpy values become those).

    The hash depends on values only: not on the order of keys, and 1 and 1.0 are the same number.

    Raises ConfigError naming the field that is missing or cannot be said in JSON.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        missing = [name for name in REQUIRED if name not in fields]
        if missing:
            raise ConfigError(
                f"the protocol lacks {', '.join(missing)}; a number depends on all of {', '.join(REQUIRED)}."
            )
        # Kept as text: nobody can change it, and what is read is what was hashed.
        self._text = json.dumps(_plain(fields, "protocol"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON (sorted keys, no spaces, ASCII)."""
        return hashlib.sha256(self._text.encode("ascii")).hexdigest()[:HASH_DIGITS]

    def to_json(self) -> str:
        """The fields and their hash as indented JSON, for people and for `from_json`."""
        return json.dumps({"hash": self.hash, "fields": dict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """The protocol that `to_json` wrote; StorageError where it is damaged or its fields were edited."""
        try:
            content = json.loads(text)
            protocol, noted = cls(content["fields"]), content["hash"]
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise StorageError(f"this is no whole protocol: {reason}. Use an intact copy, or run again.") from error
        if noted != protocol.hash:
            raise StorageError(
                f"the protocol says its hash is {noted}, but its fields hash to {protocol.hash}: it was edited or "
                "damaged. Use an intact copy, or run again."
            )
        return protocol

    @staticmethod
    def preset(name: str) -> ProtocolPreset:
        """The protocol of a paper or peer, ready to be turned into settings; ConfigError for an unknown name.

        >>> Protocol.preset("pilot-1993").learner_options(96)["test_view"]
        {'size': 96, 'resize': 109, 'interpolation': 'bicubic'}
        """
        return get_preset(name)

    def show(self) -> str:
        """Every field on a line, sorted, long lists shortened and counted."""
        return "\n".join([f"protocol {self.hash}", *(f"  {line}" for line in lines(json.loads(self._text)))])

    def diff(self, other: Protocol) -> list[Difference]:
        """What the two say differently, field by field: ours left, the other's right."""
        return differences(json.loads(self._text), json.loads(other._text))

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._text)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protocol) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Protocol({self.hash})"


def require_same(protocols: Mapping[str, Protocol]) -> None:
    """Refuse to put numbers of different protocols side by side.

    `protocols` maps the name of each result to its protocol. Raises RunError naming the fields that differ from the
    first one's.
    """
    if not protocols:
        return
    (first, reference), *others = protocols.items()
    for name, protocol in others:
        if protocol == reference:
            continue
        differing = [str(one) for one in reference.diff(protocol)]
        hidden = len(differing) - DIFFERENCES_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise RunError(
            f"{first!r} and {name!r} were measured under different protocols: they differ in "
            f"{', '.join(differing[:DIFFERENCES_SHOWN])}{more}. Compare runs of one protocol, or allow different ones "
            "(--allow-different, allow_different=True)."
        )


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's own terms, equal values in equal form."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; a protocol holds finite numbers only.")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where} has the key {key!r}; keys of a protocol are strings.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{position}]") for position, item in enumerate(value)]
    raise ConfigError(f"{where} is a {type(value).__name__}, which has no one spelling; describe it by plain values.")
