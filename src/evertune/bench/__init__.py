"""Benches: methods × streams × seeds from one file, each cell a run, and tables of what is finished."""

from __future__ import annotations

from evertune.bench.cells import Cell, Flag
from evertune.bench.file import Bench, read_bench
from evertune.bench.picture import draw_table
from evertune.bench.running import Outcome, log_of, run_cells
from evertune.bench.state import State, finished_run, state_of
from evertune.bench.tables import Table

__all__ = [
    "Bench",
    "Cell",
    "Flag",
    "Outcome",
    "State",
    "Table",
    "draw_table",
    "finished_run",
    "log_of",
    "read_bench",
    "run_cells",
    "state_of",
]
