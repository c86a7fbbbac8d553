"""What a run achieved, for the eye: pictures and plain-text tables."""

from __future__ import annotations

from evertune.report.compare_plots import draw_comparison
from evertune.report.compare_tables import comparison_csv, comparison_markdown, comparison_table
from evertune.report.cost_plots import Priced, draw_costs
from evertune.report.kernel_plots import KernelView, draw_kernel
from evertune.report.plots import draw_run
from evertune.report.tables import (
    assessment_table,
    conventions_table,
    formulas_text,
    kernel_table,
    matrix_table,
    summary_table,
)

__all__ = [
    "KernelView",
    "Priced",
    "assessment_table",
    "comparison_csv",
    "comparison_markdown",
    "comparison_table",
    "conventions_table",
    "draw_comparison",
    "draw_costs",
    "draw_kernel",
    "draw_run",
    "formulas_text",
    "kernel_table",
    "matrix_table",
    "summary_table",
]
