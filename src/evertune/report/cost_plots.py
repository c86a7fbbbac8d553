"""The picture of what accuracy costs: a disc for every method, over the passes that learning takes, as large as those
of an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError
from evertune.evaluation import Interval, interval
from evertune.report.placing import Box, place_beside
from evertune.report.plots import DASHES, FORMATS, GRID, INK, LINES, MUTED, _dress, _save

SIZE = (10.0, 7.2)
"""Of the page, in inches."""

PLACE = (0.06, 0.115, 0.91, 0.75)
"""Of the axes on it: left, bottom, width, height."""

AREA = 42.0
"""Of a disc in square points, for an answer of one pass."""

NEAR = 0.09
"""Inches between a disc and its name that need no line."""

FAR = 0.5
"""A method that is below all others by more than this share of their range is drawn at the lower edge."""


@dataclass(frozen=True, eq=False)
class Priced:
    """A method: its final accuracies in percent [n], and the passes of the plain backbone that learning from an example
    costs, over all epochs, and an answer. What is ``strong`` stands out."""

    name: str
    accuracies: NDArray[np.float64]
    learning: float
    answering: float
    strong: bool = False


def draw_costs(
    rows: Sequence[Priced],
    path: str | Path,
    title: str,
    marks: Mapping[str, float] | None = None,
    *,
    level: float = 0.95,
    note: str = "",
) -> None:
    """Write the picture of `rows` to `path`, a .png or .svg file.

    The height of a disc is the mean final accuracy, with Student's interval where there are several runs; `marks` are
    accuracies drawn as lines. A method far below all others stands at the lower edge, with its number.

    Raises ConfigError for another kind of file, DataError where there is nothing to draw, a cost is not positive or an
    accuracy no percentage, StorageError where the file cannot be written; an existing picture then stays as it was.
    """
    path, marks = Path(path), marks or {}
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture cannot be written to {path.name!r}; end its name in {' or '.join(FORMATS)}.")
    _check(rows, marks)
    figure = Figure(figsize=SIZE, dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes(PLACE)
    size = min(15.0, 100 * (SIZE[0] - 0.6) / max(1, len(title)))
    figure.text(0.03, 0.95, title, size=size, weight="bold", color=INK, va="center", parse_math=False)
    figure.text(0.97, 0.023, note, size=7.5, color=MUTED, ha="right", va="center", parse_math=False)
    _dress(axes, "final accuracy over all classes (%)")
    axes.set_xlabel(
        "learning: passes of the plain backbone for each training example, all epochs", size=9.5, color=MUTED
    )
    found = [interval(row.accuracies.tolist(), level) for row in rows]
    axes.set_ylim(*_limits(found, marks))
    _cost_axis(axes, [row.learning for row in rows])
    _name(axes, rows, found, _draw_marks(axes, marks) + _draw_key(axes, rows) + _draw_discs(axes, rows, found))
    _save(figure, path)


def _check(rows: Sequence[Priced], marks: Mapping[str, float]) -> None:
    if not rows:
        raise DataError("there is nothing to draw; give at least one row.")
    for row in rows:
        if not row.accuracies.size or not ((row.accuracies >= 0) & (row.accuracies <= 100)).all():
            raise DataError(f"the accuracies of {row.name!r} must be percentages, 0 to 100, one at least.")
        if not all(math.isfinite(cost) and cost > 0 for cost in (row.learning, row.answering)):
            raise DataError(f"{row.name!r} costs {row.learning} and {row.answering}: give positive numbers.")
    for name, value in marks.items():
        if not 0 <= value <= 100:
            raise DataError(f"the mark {name!r} is {value}; give accuracies in percent, 0 to 100.")


def _limits(found: Sequence[Interval], marks: Mapping[str, float]) -> tuple[float, float]:
    levels = sorted([one.mean for one in found] + list(marks.values()))
    while len(levels) > 2 and levels[1] - levels[0] > FAR * (levels[-1] - levels[1]):
        levels.pop(0)
    tops = [one.high for one in found if one.high is not None]
    high = min(100.0, 5 * math.ceil((max([*levels, *tops]) + 1) / 5))
    return max(0.0, min(high - 10, 5 * math.floor((levels[0] - 2) / 5))), high


def _cost_axis(axes: Axes, costs: Sequence[float]) -> None:
    least, most = min(costs) / 1.5, max(costs) * 1.5
    axes.set_xscale("log")
    axes.set_xlim(least, most)
    ticks = [n * 10.0**e for e in range(-3, 8) for n in (1, 2, 5) if least <= n * 10.0**e <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_marks(axes: Axes, marks: Mapping[str, float]) -> list[Box]:
    """The lines; the places of their names."""
    names = []
    for (name, value), dashes in zip(marks.items(), cycle(DASHES), strict=False):
        axes.axhline(value, color=MUTED, linewidth=1.2, linestyle=dashes, zorder=1)
        names.append(
            axes.annotate(
                f"{name}  {value:.1f}",
                xy=(1, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                size=9,
                parse_math=False,
            )
        )
    return [_box(name) for name in names]


def _draw_key(axes: Axes, rows: Sequence[Priced]) -> list[Box]:
    """What the size of a disc says, below the axes."""
    most = max(row.answering for row in rows)
    shown = [1.0, *(n * 10.0**e for e in range(4) for n in (2, 5, 10) if n * 10.0**e <= 1.1 * most)]
    shown = [size for size in shown if size in (1, 2, 10, 100, 1000) or size == shown[-1]]
    discs: list[Any] = [axes.scatter([], [], s=AREA * size, color=LINES[0], alpha=0.55, linewidth=0) for size in shown]
    key = axes.legend(
        discs,
        [f"{size:g}" for size in shown],
        title="passes for an answer",
        title_fontproperties={"size": 9},
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        bbox_transform=axes.figure.transFigure,
        ncols=len(shown),
        frameon=False,
        fontsize=9,
        labelcolor=MUTED,
        borderpad=0.6,
        handletextpad=0.6,
    )
    key.get_title().set_color(MUTED)
    return [_box(key)]


def _draw_discs(axes: Axes, rows: Sequence[Priced], found: Sequence[Interval]) -> list[Box]:
    """The discs, the small ones above, with their intervals; the places of the intervals."""
    taken = []
    for row, one in sorted(zip(rows, found, strict=True), key=lambda pair: -pair[0].answering):
        height = _height(axes, one)
        if one.low is not None and one.high is not None:
            line = axes.plot([row.learning] * 2, [one.low, one.high], color=_colour(row), linewidth=1.3, alpha=0.35)
            taken.append(_box(line[0]))
        axes.scatter(
            row.learning,
            height,
            s=AREA * row.answering,
            marker="o" if height == one.mean else "v",
            color=_colour(row),
            alpha=0.9 if row.strong else 0.55,
            edgecolor="white",
            linewidth=0.8,
            zorder=4,
            clip_on=False,
        )
    return taken


def _name(axes: Axes, rows: Sequence[Priced], found: Sequence[Interval], taken: Sequence[Box]) -> None:
    """Each name beside its disc, where nothing else is; with a line to it where that is not near."""
    texts, discs = [], []
    for row, one in zip(rows, found, strict=True):
        height = _height(axes, one)
        texts.append(
            axes.annotate(
                row.name if height == one.mean else f"{row.name}  {one.mean:.1f}",
                (row.learning, height),
                ha="center",
                va="center",
                color=_colour(row),
                weight="bold" if row.strong else "normal",
                size=9.5,
                parse_math=False,
            )
        )
        discs.append(_around(axes, row, height))
    within, there = Box(*axes.get_window_extent().extents), axes.transData.inverted()
    sizes = [_box(text) for text in texts]
    for text, disc, place in zip(texts, discs, place_beside(discs, sizes, taken, within), strict=True):
        text.set_position(tuple(there.transform(place.centre)))
        if place.distance(disc) > NEAR * axes.figure.dpi:
            ends = there.transform([disc.centre, place.nearest(disc.centre)])
            axes.plot(*ends.T, color=text.get_color(), linewidth=0.6, alpha=0.6, zorder=2)


def _height(axes: Axes, one: Interval) -> float:
    return max(one.mean, axes.get_ylim()[0])


def _around(axes: Axes, row: Priced, height: float) -> Box:
    """Of a disc, in pixels."""
    x, y = axes.transData.transform((row.learning, height))
    radius = math.sqrt(AREA * row.answering / math.pi) * axes.figure.dpi / 72
    return Box(x - radius, y - radius, x + radius, y + radius)


def _box(artist: Any) -> Box:
    return Box(*artist.get_window_extent().extents)


def _colour(row: Priced) -> str:
    return LINES[1] if row.strong else LINES[0]
