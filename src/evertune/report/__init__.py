"""What a run achieved, for the eye: pictures and plain-text tables."""

from __future__ import annotations

from evertune.report.kernel_plots import KernelView, draw_kernel
from evertune.report.plots import draw_run
from evertune.report.tables import kernel_table, matrix_table, summary_table

__all__ = ["KernelView", "draw_kernel", "draw_run", "kernel_table", "matrix_table", "summary_table"]
