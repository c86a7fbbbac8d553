"""The picture of accuracy over cost, and that its names cover nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evertune.errors import ConfigError, DataError
from evertune.report import Priced, draw_costs
from evertune.report.placing import Box, place_beside


def rows(count: int = 20) -> list[Priced]:
    """A crowd at one cost, one far below, one of its own."""
    rng = np.random.default_rng(0)
    crowd = [Priced(f"method {i}", rng.uniform(58, 66, 3), 20 + 0.3 * (i % 3), 1 + i / 2) for i in range(count)]
    low, ours = (
        Priced("low", np.array([9.0]), 20.0, 1.0),
        Priced("<b> & $ours$", np.array([64.0]), 2.0, 2.0, strong=True),
    )
    return [*crowd, low, ours]


def test_a_picture_is_written(tmp_path: Path) -> None:
    draw_costs(rows(4), tmp_path / "a.svg", "what $ costs & <more>", {"floor": 36.0, "mark": 71.0}, note="a note")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for said in ("method 3", "low  9.0", "floor  36.0", "mark  71.0", "a note", "passes for an answer"):
        assert said in text, said
    draw_costs(rows(1)[:1], tmp_path / "one.png", "one")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_names_cover_nothing() -> None:
    rng = np.random.default_rng(1)
    things = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in rng.uniform((300, 100), (500, 500), (20, 2))]
    names = [Box(0, 0, wide, 18) for wide in rng.uniform(30, 120, 20)]
    taken, within = [Box(0, 290, 1000, 292)], Box(0, 0, 1000, 600)
    placed = place_beside(things, names, taken, within)
    for (i, box), (j, other) in itertools.combinations(enumerate(placed), 2):
        assert not box.meets(other), (i, j)
    for box, name in zip(placed, names, strict=True):
        assert box.size == pytest.approx(name.size) and within.holds(box)
        assert not any(box.meets(other) for other in [*things, *taken])
    near = place_beside(things[:1], names[:1], [], within)[0]
    assert near.x0 == pytest.approx(things[0].x1 + 3) and near.centre[1] == pytest.approx(things[0].centre[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": []}, "nothing to draw"),
        ({"rows": [Priced("a", np.array([101.0]), 1, 1)]}, "'a' must be percentages"),
        ({"rows": [Priced("a", np.array([]), 1, 1)]}, "one at least"),
        ({"rows": [Priced("a", np.array([1.0]), 0, 1)]}, "'a' costs 0 and 1: give positive"),
        ({"rows": [Priced("a", np.array([1.0]), 1, float("nan"))]}, "give positive"),
        ({"marks": {"m": -1.0}}, "the mark 'm' is -1.0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_costs(**{"rows": rows(1), "path": tmp_path / "a.png", "title": "a"} | given)
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        draw_costs(rows(1), tmp_path / "a.pdf", "a")
