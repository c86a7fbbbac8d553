"""The picture of a comparison: final accuracies with their intervals beside the accuracy over the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError
from evertune.evaluation import interval
from evertune.report.plots import FORMATS, GRID, INK, LINES, MARKERS, MUTED, _dress, _save, _some

Curves = Mapping[str, NDArray[np.float64]]

# The page, in inches.
MARGIN, HEAD, FOOT, GAP = 0.3, 1.05, 0.85, 0.75
LETTER = 0.085
BAR, ACROSS = 0.42, 4.4
LONGEST = 48
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # where colours come again


def draw_comparison(curves: Curves, path: str | Path, title: str, *, level: float = 0.95, note: str = "") -> None:
    """Write the picture of several rows to `path`, a .png or .svg file.

    `curves` holds for each row the accuracy in percent [n, T] of its n runs after each of T stages, T of its own. On
    the left the final accuracy of every row, its mean as a bar with Student's interval, and every run as a point; on
    the right the mean over the stages, with the interval as a band. One run has neither.

    Raises ConfigError for another kind of file, DataError where there is nothing to draw or a number is no percentage,
    StorageError where the file cannot be written; an existing picture then stays as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture cannot be written to {path.name!r}; end its name in {' or '.join(FORMATS)}.")
    if not curves:
        raise DataError("there is no row to draw; give the curves of one at least.")
    for name, values in curves.items():
        if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= 100)).all():
            raise DataError(f"the curves of {name!r} must be percentages [runs, stages], 0 to 100, none missing.")

    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in curves]
    tall = max(3.4, BAR * len(curves) + 0.3)
    left = MARGIN + 0.2 + LETTER * max(map(len, names))
    width, height = left + 2 * ACROSS + GAP + 0.5, HEAD + tall + FOOT
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float) -> Axes:
        return figure.add_axes((x / width, FOOT / height, ACROSS / width, tall / height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, y / height, text, va="center", parse_math=False, **style)

    size = min(15.0, 100 * (width - 2 * MARGIN) / max(1, len(title)))
    write(MARGIN, height - 0.36, title, size=size, weight="bold", color=INK)
    write(width - MARGIN, 0.17, note, size=7.5, color=MUTED, ha="right")
    rows = list(curves.values())
    _draw_bars(place(left), names, rows, level)
    _draw_curves(place(left + ACROSS + GAP), rows, level)
    _save(figure, path)


def _draw_bars(axes: Axes, names: Sequence[str], rows: Sequence[NDArray[np.float64]], level: float) -> None:
    for position, values in enumerate(rows):
        final = values[:, -1]
        found = interval(final.tolist(), level)
        colour = LINES[position % len(LINES)]
        axes.barh(position, found.mean, height=0.62, color=colour, alpha=0.28, zorder=2)
        end = found.mean
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [position] * 2, color=colour, linewidth=2.2, zorder=3, clip_on=True)
            end = max(end, found.high)
        axes.scatter(
            final,
            np.full(len(final), position),
            s=26,
            marker=MARKERS[position % len(MARKERS)],
            color=colour,
            edgecolor="white",
            linewidth=0.7,
            zorder=4,
        )
        half = "" if found.high is None else f" ± {found.high - found.mean:.1f}"
        axes.annotate(
            f"{found.mean:.1f}{half}",
            xy=(min(100.0, max(end, float(final.max()))), position),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            weight="bold",
            size=9.5,
            va="center",
            annotation_clip=False,
        )
    highest = max(float(values[:, -1].max()) for values in rows)
    axes.set_xlim(0, min(100, 10 * math.ceil((highest + 12) / 10)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(names), parse_math=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _dress(axes, f"final accuracy over test examples (%), {100 * level:g} % interval")


def _draw_curves(axes: Axes, rows: Sequence[NDArray[np.float64]], level: float) -> None:
    lowest, highest = 100.0, 0.0
    for position, values in enumerate(rows):
        stages = np.arange(1, values.shape[1] + 1)
        found = [interval(values[:, stage].tolist(), level) for stage in range(values.shape[1])]
        mean = np.array([one.mean for one in found])
        colour = LINES[position % len(LINES)]
        if len(values) > 1:
            low, high = (np.array([getattr(one, end) for one in found]).clip(0, 100) for end in ("low", "high"))
            axes.fill_between(stages, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
            lowest, highest = min(lowest, float(low.min())), max(highest, float(high.max()))
        axes.plot(
            stages,
            mean,
            color=colour,
            linewidth=2.0,
            linestyle=DASHES[position // len(LINES) % len(DASHES)],
            marker=MARKERS[position % len(MARKERS)],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
            clip_on=False,
        )
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    longest = max(values.shape[1] for values in rows)
    top = max(10.0, min(100.0, 5 * math.ceil((highest + 1) / 5)))
    axes.set_ylim(max(0.0, min(top - 10, 5 * math.floor((lowest - 1) / 5))), top)
    axes.set_xlim(1 - 0.04 * longest, longest + 0.04 * longest)
    axes.set_xticks(_some(longest, most=10))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _dress(axes, "accuracy on all tasks so far, over test examples (%)")
    axes.set_xlabel("tasks learned", size=9.5, color=MUTED)
