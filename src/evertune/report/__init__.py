"""What a run achieved, for the eye: a picture and plain-text tables."""

from __future__ import annotations

from evertune.report.plots import draw_run
from evertune.report.tables import matrix_table, summary_table

__all__ = ["draw_run", "matrix_table", "summary_table"]
