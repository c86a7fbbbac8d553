"""The picture of a table: accuracy over what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evertune.bench.tables import Table
from evertune.comparison import KeptRun
from evertune.costs import ANSWERING, LEARNING
from evertune.errors import ConfigError
from evertune.report import Priced, draw_costs


def draw_table(table: Table, finished: Mapping[str, Sequence[KeptRun]], path: str | Path) -> list[str]:
    """Write the picture of a table's rows: its first column over the counted cost. Gives the rows that are left out.

    Rows with ``mark = true`` are lines; a label in bold type stands out.

    Raises
    ------
    ConfigError
        No run of the table noted its cost, or the picture is of another kind.
    """
    rows, marks, missing = [], {}, []
    for row in table.rows:
        cell = {**table.columns[0], **row}
        values = table.values(finished, cell)
        costs = [table.values(finished, {**cell, "cost": name}) for name in (LEARNING, ANSWERING)]
        name = str(row["label"]).replace("*", "").replace("`", "")
        if row.get("mark") and values:
            marks[name] = float(np.mean(values))
        elif values and all(costs):
            learning, answering = (float(np.mean(cost)) for cost in costs)
            rows.append(Priced(name, np.array(values), learning, answering, strong="**" in str(row["label"])))
        else:
            missing.append(name)
    if not rows:
        raise ConfigError(f"{table.where}: no finished run of it noted its cost. Run them with count = true.")
    several = any(len(row.accuracies) > 1 for row in rows)
    note = "intervals of 95 % over class orders" if several else "one class order"
    draw_costs(rows, path, table.caption or table.title, marks, note=note)
    return missing
