"""The picture of a run: its accuracy matrix beside its accuracy over the stages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError, StorageError
from evertune.evaluation import AccuracyMatrix, accuracy_curve, summary

INK, MUTED, GRID = "#1b2733", "#66727f", "#e3e7eb"
# One hue from pale to deep: lightness alone carries the value, so it reads in grey and with any colour vision.
HEAT = LinearSegmentedColormap.from_list("accuracy", ["#eef3f8", "#bdd5ea", "#7fb0d6", "#3f83b8", "#1a568a", "#0c2f55"])
# After Okabe and Ito: told apart with any colour vision, and by their markers without any.
LINES = ("#0c4a80", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P")
DASHES = ((0, (5, 2.5)), (0, (1.5, 2)), (0, (7, 2, 1.5, 2)))
FORMATS = (".png", ".svg")
MOST_NUMBERS = 24  # with more tasks a cell is too small for its number, and a colour bar has to say it
MOST_DECIMALS = 12

# The page, in inches.
MARGIN, HEAD, FOOT, GAP = 0.3, 1.3, 0.85, 0.95
LETTER = 0.08  # a letter's width at the size of tick labels


def draw_run(
    matrix: AccuracyMatrix,
    path: str | Path,
    title: str,
    baselines: Mapping[str, float] | None = None,
    *,
    note: str = "",
) -> None:
    """Write the picture of a run to `path`, a .png or .svg file.

    On the left the primary part's accuracy on each group after each stage; on the right the accuracy over all test
    examples seen so far, one line per part. `baselines` are final accuracies in percent, drawn as dashed lines. `note`
    is a small line at the foot: the protocol's hash, say.

    Raises ConfigError for another kind of file, DataError for an incomplete matrix or an impossible baseline,
    StorageError where the file cannot be written; an existing picture then stays as it was.
    """
    path, baselines = Path(path), baselines or {}
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture cannot be written to {path.name!r}; end its name in {' or '.join(FORMATS)}.")
    for name, value in baselines.items():
        if not 0 <= value <= 100:
            raise DataError(f"the baseline {name!r} is {value}; give accuracies in percent, 0 to 100.")
    headline = _headline(matrix)

    side = float(np.clip(3.0 + 0.21 * matrix.stages, 4.0, 7.2))
    ticks = _ticks(matrix.names, side / matrix.stages)
    left = MARGIN + 0.35 + LETTER * max(map(len, ticks))
    across = 0.6 + 0.85 * side
    labels = 1.0 + LETTER * max(map(len, [*matrix.parts, *baselines]))
    width, height = left + side + GAP + across + labels, HEAD + side + FOOT
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, wide: float) -> Axes:
        return figure.add_axes((x / width, FOOT / height, wide / width, side / height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, y / height, text, va="center", parse_math=False, **style)

    # A long title shrinks rather than runs off the page.
    size = min(15.0, 100 * (width - 2 * MARGIN) / max(1, len(title)))
    write(MARGIN, height - 0.36, title, size=size, weight="bold", color=INK)
    write(MARGIN, height - 0.68, headline, size=9.5, color=MUTED)
    write(width - MARGIN, 0.17, note, size=7.5, color=MUTED, ha="right")
    _draw_matrix(place(left, side), matrix, ticks, cell=side / matrix.stages)
    _draw_curves(place(left + side + GAP, across), matrix, baselines, tall=side)
    _save(figure, path)


def _headline(matrix: AccuracyMatrix) -> str:
    """The final numbers in words, each with its convention."""
    numbers = summary(matrix)[matrix.primary]
    return (
        f"final accuracy {numbers['final_accuracy_sample']:.1f} % over test examples, "
        f"{numbers['final_accuracy_task']:.1f} % as mean of tasks  ·  "
        f"average over stages {numbers['average_accuracy_sample']:.1f} %  ·  "
        f"forgetting {numbers['forgetting_with_last_stage']:.1f} (last stage included)"
    )


def _ticks(names: Sequence[str], cell: float) -> list[str]:
    """The groups' names where all fit into cells of this width in inches, else their numbers."""
    short = [name.removeprefix("task ") for name in names]
    fits = all(LETTER * len(name) <= cell for name in short)
    return short if fits else [str(number + 1) for number in range(len(names))]


def _some(stages: int, most: int) -> list[int]:
    """The stages, counted from 1, that get a tick: all, or the first and every fifth, tenth, …"""
    step = 1 if stages <= most else 5 * -(-stages // (5 * most))
    return sorted({1, *range(step, stages + 1, step)})


def _draw_matrix(axes: Axes, matrix: AccuracyMatrix, ticks: Sequence[str], cell: float) -> None:
    stages = matrix.stages
    values = np.full((stages, stages), np.nan)
    for stage in range(stages):
        for group in range(stage + 1):
            values[stage, group] = matrix.accuracy(stage, group)
    # From the lowest accuracy, so that small differences show; over at least 20 points, so that noise does not.
    norm = Normalize(min(80.0, np.floor(np.nanmin(values) / 10) * 10), 100.0)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=HEAT, norm=norm, edgecolors="white", linewidth=min(1.2, 3 * cell)
    )
    if stages <= MOST_NUMBERS:
        # The text size in points follows the cell's width in inches.
        places, size = (1, min(10.0, 17.5 * cell)) if stages <= MOST_DECIMALS else (0, min(9.5, 24 * cell))
        for stage, group in np.argwhere(np.tri(stages)).tolist():
            value = values[stage, group]
            axes.text(
                group + 0.5,
                stage + 0.5,
                "–" if np.isnan(value) else f"{value:.{places}f}",
                color="white" if norm(value) > 0.58 else INK,
                size=size,
                ha="center",
                va="center_baseline",
            )
    else:
        bar = axes.figure.colorbar(mesh, cax=axes.inset_axes((0.93, 0.55, 0.03, 0.43)))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8, labelcolor=MUTED)
        bar.ax.yaxis.set_ticks_position("left")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    marked = _some(stages, most=MOST_NUMBERS)
    centres, words = [number - 0.5 for number in marked], [ticks[number - 1] for number in marked]
    axes.set_xticks(centres, words, parse_math=False)
    axes.set_yticks(centres, words, parse_math=False)
    _dress(
        axes, f"accuracy on each task, {matrix.primary} (%)" if len(matrix.parts) > 1 else "accuracy on each task (%)"
    )
    axes.set_xlabel("test data of task", size=9.5, color=MUTED)
    axes.set_ylabel("after learning task", size=9.5, color=MUTED)


def _draw_curves(axes: Axes, matrix: AccuracyMatrix, baselines: Mapping[str, float], tall: float) -> None:
    stages = np.arange(1, matrix.stages + 1)
    ends: list[tuple[float, str, str, str]] = []
    lowest, highest = 100.0, 0.0
    for index, part in enumerate(matrix.parts):
        curve = accuracy_curve(*matrix.counts(part), weight="sample")
        colour, primary = LINES[index % len(LINES)], part == matrix.primary
        axes.plot(
            stages,
            curve,
            color=colour,
            linewidth=2.6 if primary else 1.6,
            marker=MARKERS[index % len(MARKERS)],
            markersize=6 if primary else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=4 if primary else 3,
            clip_on=False,
        )
        ends.append((curve[-1], part, colour, "bold" if primary else "normal"))
        lowest, highest = min(lowest, np.nanmin(curve)), max(highest, np.nanmax(curve))
    for (name, value), dashes in zip(baselines.items(), cycle(DASHES)):
        axes.axhline(value, color=MUTED, linewidth=1.3, linestyle=dashes, zorder=2)
        ends.append((value, name, MUTED, "normal"))
        lowest, highest = min(lowest, value), max(highest, value)

    # At least ten points tall, so that noise does not look like a slope.
    high = max(10.0, min(100.0, 5 * np.ceil((highest + 1) / 5)))
    low = max(0.0, min(high - 10, 5 * np.floor((lowest - 1) / 5)))
    axes.set_ylim(low, high)
    axes.set_xlim(1 - 0.04 * len(stages), len(stages) + 0.02 * len(stages))
    axes.set_xticks(_some(len(stages), most=10))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _dress(axes, "accuracy on all tasks so far, over test examples (%)")
    axes.set_xlabel("tasks learned", size=9.5, color=MUTED)

    inch = (high - low) / tall
    heights = _spread(np.array([end[0] for end in ends]), gap=0.2 * inch, low=low, high=high)
    crowded = any(abs(y - end[0]) > 0.02 * inch for y, end in zip(heights, ends, strict=True))
    for (value, name, colour, weight), y in zip(ends, heights, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
        axes.annotate(
            f"{name}  {value:.1f}",
            xy=(1, value),
            xytext=(18 if crowded else 8, 72 * (y - value) / inch),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=colour,
            weight=weight,
            size=9.5,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops=leader if crowded else None,
        )


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, size=10.5, color=INK, loc="left", pad=9, parse_math=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _spread(wanted: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Heights near the wanted ones, in their order, at least a gap apart, within low … high where they fit.

    Less a gap per rank the heights only have to be ascending: isotonic regression, by pooling adjacent violators.
    """
    order = np.argsort(wanted, kind="stable")
    shift = gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for height in wanted[order] - shift:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    heights = np.empty_like(wanted)
    heights[order] = np.clip(flat, low, max(low, high - shift[-1])) + shift
    return heights


def _save(figure: Figure, path: Path) -> None:
    kind = path.suffix.lower()[1:]
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"the picture {path} could not be written: {error.strerror}. Free space or choose another place."
        ) from error
