"""Protocols in words: every field on a line of its own, and what two of them say differently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

ABSENT = "absent"


class Difference(NamedTuple):
    """A field that two sides say differently, and a remark where their values are too long to compare by eye."""

    field: str
    left: str
    right: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.field} ({self.left} / {self.right}{f'; {self.remark}' if self.remark else ''})"


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Every field, by dotted path, that one side lacks or that has another value there; sorted."""
    before, after = dict(_leaves(left)), dict(_leaves(right))
    found = []
    for field in sorted(before.keys() | after.keys()):
        if field in before and field in after:
            if _json(before[field]) != _json(after[field]):
                remark = _remark(before[field], after[field])
                found.append(Difference(field, brief(before[field]), brief(after[field]), remark))
        elif field in before:
            found.append(Difference(field, brief(before[field]), ABSENT))
        else:
            found.append(Difference(field, ABSENT, brief(after[field])))
    return found


def lines(fields: Mapping[str, Any]) -> list[str]:
    """Every field and its value, sorted by dotted path and aligned; long lists are shortened and counted."""
    leaves = sorted(_leaves(fields), key=lambda leaf: leaf[0])
    width = max((len(path) for path, _ in leaves), default=0)
    return [f"{path:<{width}}  {brief(value, 72)}" for path, value in leaves]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def brief(value: Any, width: int = 40) -> str:
    """A value in about ``width`` characters.

    >>> brief(list(range(100))), brief(None), brief("1993"), brief("unit")
    ('[0, 1, 2, 3, 4, 5, 6, 7, … 100 in all]', 'null', '"1993"', 'unit')
    """
    if isinstance(value, str) and not _reads_as_other(value):
        return value if len(value) <= width else value[: width - 1] + "…"
    text = _json(value)
    if len(text) <= width:
        return text
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        return f"{len(value)} entries of {', '.join(sorted({key for item in value for key in item}))}"
    if isinstance(value, (list, tuple)):
        shown = ""
        for item in value:
            longer = f"{shown}{_json(item)}, "
            if len(longer) > width - len(f"[… {len(value)} in all]"):
                break
            shown = longer
        return f"[{shown}… {len(value)} in all]"
    return text[: width - 1] + "…"


def _remark(left: Any, right: Any) -> str:
    """How two lists differ, where reading what is shown of them would not tell."""
    if not (isinstance(left, (list, tuple)) and isinstance(right, (list, tuple))):
        return ""
    a, b = [_json(item) for item in left], [_json(item) for item in right]
    pairs = [(i + 1, x, y) for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    if Counter(a) == Counter(b):
        return f"the same {len(a)} in another order, first difference at position {pairs[0][0]}"
    if brief(left) == _json(left) and brief(right) == _json(right):
        return ""
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} entries, {(Counter(a) & Counter(b)).total()} of them the same"
    if all(isinstance(item, Mapping) for item in (*left, *right)):
        fields = {one.field for _, x, y in pairs for one in differences(json.loads(x), json.loads(y))}
        return f"{len(pairs)} of {len(a)} differ, in {', '.join(sorted(fields))}"
    return f"{len(pairs)} of {len(a)} differ, first difference at position {pairs[0][0]}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by dotted path; a list is one leaf: a class order differs once and not a hundred times."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _json(value: Any) -> str:
    return json.dumps(_spelled(value), ensure_ascii=False, sort_keys=True)


def _spelled(value: Any) -> Any:
    """The value with 1.0 as 1, and tuples as lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _spelled(item) for key, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, (list, tuple)) else value


def _reads_as_other(text: str) -> bool:
    """Whether a string without its quotes would be taken for a number, a list, nothing ..."""
    try:
        json.loads(text)
    except ValueError:
        return not text or text == ABSENT
    return True
