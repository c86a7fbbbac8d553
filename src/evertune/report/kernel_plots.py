"""The picture of a tangent kernel: how far tasks overlap in it, for one learner or for several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from evertune.errors import ConfigError, DataError
from evertune.report.plots import FORMATS, HEAT, INK, LETTER, MARGIN, MOST_NUMBERS, MUTED, _dress, _save, _some, _ticks

SMALLEST = 6.0  # points: numbers that would be smaller are left to the colour bar
EXCEED = 0.005  # share of a kernel's entries that may lie beyond the colour bar: single images of large gradient

# The page, in inches.
HEAD, COLUMN_HEAD, FOOT, BETWEEN, GAP = 1.3, 0.4, 0.95, 1.25, 0.3
BAR, BAR_GAP, BAR_LABELS = 0.13, 0.15, 0.75


@dataclass(frozen=True)
class KernelView:
    """What is drawn of one learner's kernel.

    Parameters
    ----------
    overlap
        ρ_ts [T, T] in [0, 1] (NTK-CL spec §3.4, D3).
    gram
        K [n·o, n·o], row = image · o + output.
    tasks
        The number of the task of each image, [n], from 0.
    names
        Of the tasks.

    Raises
    ------
    DataError
        Shapes that do not fit, an overlap outside [0, 1], or values that are not finite.
    """

    overlap: NDArray[np.float64]
    gram: NDArray[np.float64]
    tasks: NDArray[np.int64]
    names: Sequence[str]

    def __post_init__(self) -> None:
        count, rows, images = len(self.names), len(self.gram), len(self.tasks)
        if self.overlap.shape != (count, count):
            raise DataError(f"an overlap of shape {self.overlap.shape} does not fit {count} tasks.")
        if not ((self.overlap >= 0) & (self.overlap <= 1 + 1e-6)).all():
            raise DataError("an overlap of two tasks lies outside 0 to 1; give the normalised one.")
        if not images or rows % images or self.gram.shape != (rows, rows):
            raise DataError(f"a kernel of shape {self.gram.shape} does not fit {images} images.")
        if not np.isfinite(self.gram).all():
            raise DataError("the kernel holds NaN or infinity: the learner has diverged.")
        if sorted(set(self.tasks.tolist())) != list(range(count)):
            raise DataError(f"the images must be of tasks 0 to {count - 1}, some of each.")

    def between(self) -> float | None:
        """The mean overlap of two different tasks; None where there is only one."""
        count = len(self.names)
        return float(self.overlap[~np.eye(count, dtype=bool)].mean()) if count > 1 else None

    def magnitudes(self) -> NDArray[np.float64]:
        """‖K_ij‖_F over the outputs of images i and j, tasks together, in units of the mean of ‖K_ii‖_F; [n, n]."""
        images = len(self.tasks)
        outputs = len(self.gram) // images
        blocks = self.gram.reshape(images, outputs, images, outputs)
        size = np.sqrt(np.einsum("iajb,iajb->ij", blocks, blocks))
        order = np.argsort(self.tasks, kind="stable")
        mean = size.diagonal().mean()
        return np.asarray(size[np.ix_(order, order)] / (mean if mean > 0 else 1.0))

    def edges(self) -> list[int]:
        """Where the images of each task begin and end, tasks together; [T + 1]."""
        return [0, *np.cumsum(np.bincount(self.tasks)).tolist()]


def draw_kernel(views: Mapping[str, KernelView], path: str | Path, title: str, *, note: str = "") -> None:
    """Write the picture of one or several kernels, by the name of their learner, to `path`, a .png or .svg file.

    Of each learner the overlap of every two tasks, and the kernel itself by image. One learner has the two beside each
    other; several have a column each, with the same colours for the same values. `note` is a small line at the foot.

    Raises ConfigError for another kind of file, DataError where there is nothing to draw, StorageError where the file
    cannot be written; an existing picture then stays as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a picture cannot be written to {path.name!r}; end its name in {' or '.join(FORMATS)}.")
    if not views:
        raise DataError("there is no kernel to draw: give one at least.")

    several = len(views) > 1
    tasks = max(len(view.names) for view in views.values())
    side = float(np.clip(2.6 + 0.21 * tasks, 3.6, 6.0))
    ticks = [_ticks(view.names, side / len(view.names)) for view in views.values()]
    left = 0.35 + LETTER * max(len(tick) for words in ticks for tick in words)
    bar = BAR_GAP + BAR + BAR_LABELS
    # Several learners share the colour bars at the right of the page; one has a bar at each of its two panels.
    step = left + side + (GAP if several else bar)
    width = MARGIN + (len(views) * step - GAP + bar if several else 2 * step)
    height = HEAD + (COLUMN_HEAD + side + BETWEEN if several else 0) + side + FOOT
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, y: float, wide: float = side) -> Axes:
        return figure.add_axes((x / width, y / height, wide / width, side / height))

    def write(x: float, y: float, text: str, size: float, room: float, **style: Any) -> None:
        # A line too long for its room shrinks rather than runs over.
        size = min(size, 100 * room / max(1, len(text)))
        figure.text(x / width, y / height, text, va="center", parse_math=False, size=size, **style)

    page = width - 2 * MARGIN
    write(MARGIN, height - 0.36, title, 15.0, page, weight="bold", color=INK)
    write(MARGIN, height - 0.68, _headline(views), 9.5, page, color=MUTED)
    write(width - MARGIN, 0.17, note, 7.5, page, color=MUTED, ha="right")

    images = [view.magnitudes() for view in views.values()]
    overlaps, entries = Normalize(0.0, 1.0), _scale(images)
    for index, (name, view) in enumerate(views.items()):
        x = MARGIN + left + index * step
        first, second = ((x, FOOT + side + BETWEEN), (x, FOOT)) if several else ((x, FOOT), (x + step, FOOT))
        if several:
            write(x, first[1] + side + 0.52, name, 11.5, side, weight="bold", color=INK)
        upper = _draw_overlap(place(*first), view, ticks[index], overlaps, cell=side / len(view.names))
        lower = _draw_entries(place(*second), view, images[index], ticks[index], entries)
    # The scales are common, so the last learner's panels stand for all.
    beside = side + BAR_GAP
    _draw_bar(place(first[0] + beside, first[1], BAR), upper, "normalised overlap ρ, 0: orthogonal")
    unit = "‖K‖ over outputs, in units of the mean image with itself"
    _draw_bar(place(second[0] + beside, second[1], BAR), lower, unit, open_ended=True)
    _save(figure, path)


def _headline(views: Mapping[str, KernelView]) -> str:
    """The mean overlaps in words."""
    means = {name: view.between() for name, view in views.items()}
    words = {name: "none, it has one task" if mean is None else f"{mean:.2f}" for name, mean in means.items()}
    told = [f"{name} {word}" if len(views) > 1 else word for name, word in words.items()]
    return f"mean overlap of two different tasks: {'  ·  '.join(told)}"


def _scale(images: Sequence[NDArray[np.float64]]) -> PowerNorm:
    """The square root, so that weak blocks show beside strong ones, up to what few entries of any learner exceed."""
    top = max(float(np.quantile(image, 1 - EXCEED)) for image in images)
    return PowerNorm(0.5, 0.0, top if top > 0 else 1.0, clip=True)


def _draw_overlap(axes: Axes, view: KernelView, ticks: Sequence[str], norm: Normalize, cell: float) -> QuadMesh:
    count = len(view.names)
    mesh = axes.pcolormesh(view.overlap, cmap=HEAT, norm=norm, edgecolors="white", linewidth=min(1.2, 3 * cell))
    # The text size in points follows the cell's width in inches.
    size = min(10.0, 17.5 * cell)
    if size >= SMALLEST:
        for (row, column), value in np.ndenumerate(view.overlap):
            axes.text(
                column + 0.5,
                row + 0.5,
                "1" if value > 1 - 1e-9 else f"{value:.2f}",
                color="white" if norm(value) > 0.58 else INK,
                size=size,
                ha="center",
                va="center_baseline",
            )
    marked = _some(count, most=MOST_NUMBERS)
    _label(axes, [number - 0.5 for number in marked], [ticks[number - 1] for number in marked])
    _dress(axes, "overlap between tasks")
    return mesh


def _draw_entries(
    axes: Axes, view: KernelView, image: NDArray[np.float64], ticks: Sequence[str], norm: PowerNorm
) -> QuadMesh:
    edges = view.edges()
    mesh = axes.pcolormesh(image, cmap=HEAT, norm=norm, rasterized=True)
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", linewidth=0.9)
        axes.axvline(edge, color="white", linewidth=0.9)
    marked = _some(len(view.names), most=MOST_NUMBERS)
    _label(
        axes,
        [(edges[number - 1] + edges[number]) / 2 for number in marked],
        [ticks[number - 1] for number in marked],
    )
    _dress(axes, "kernel between every two images")
    return mesh


def _label(axes: Axes, centres: Sequence[float], words: Sequence[str]) -> None:
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks(centres, words, parse_math=False)
    axes.set_yticks(centres, words, parse_math=False)
    axes.set_xlabel("images of task", size=9.5, color=MUTED)
    axes.set_ylabel("images of task", size=9.5, color=MUTED)


def _draw_bar(axes: Axes, mesh: QuadMesh, label: str, *, open_ended: bool = False) -> None:
    bar = axes.figure.colorbar(mesh, cax=axes, extend="max" if open_ended else "neither", extendfrac=0.03)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    bar.set_label(label, size=8.5, color=MUTED)
