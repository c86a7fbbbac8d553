"""What it costs to open a large table and cut it into tasks.

    python benchmarks/index.py --rows 1000000

A table of texts as .csv and .jsonl, and one of image paths as .csv (the files themselves are looked at when they are
loaded), 1000 classes, cut into 100 tasks of ten. Each in a process of its own; memory is the peak above what the
process held before it opened the table, and beside it what is held in the end.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = "the card has not arrived yet and my payment was declined at a shop abroad so please check it again"
CLASSES = 1000


def write(path: Path, rows: int) -> None:
    """A table of texts of 20 to 90 characters (or of paths), each unlike the others, and their classes."""
    rng = np.random.default_rng(0)
    lengths, labels = rng.integers(20, 91, rows), rng.integers(0, CLASSES, rows)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        files = path.stem == "paths"
        if path.suffix == ".csv":
            writer.writerow(["file" if files else "text", "label"])
        for row, (length, label) in enumerate(zip(lengths, labels, strict=True)):
            name = f"class {label}"
            text = f"photos/{label:04d}/{row:08d}.jpg" if files else f"{WORDS[:length]} {row}"
            if path.suffix == ".csv":
                writer.writerow([text, name])
            else:
                file.write(json.dumps({"text": text, "label": name}) + "\n")


def resident() -> float:
    """MB this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measure(path: Path) -> dict[str, float]:
    """Seconds to open the table and to make the stream, and megabytes."""
    from evertune import Stream, open_data

    open_data("digits")  # what is imported on first use is none of the table's cost
    gc.collect()
    before = resident()
    start = time.perf_counter()
    train, test = open_data(path, verify=False)
    opened = time.perf_counter()
    stream = Stream.class_incremental(train, test, first=10, increment=10)
    made = time.perf_counter()
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert sum(len(task.train) for task in stream) == len(train)
    return {"open": opened - start, "stream": made - opened, "peak": peak - before, "held": resident() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure)))
        return
    print(f"{a.rows} rows, {CLASSES} classes, 100 tasks")
    print(f"{'table':>12}  {'file MB':>8}  {'open s':>7}  {'stream s':>8}  {'peak MB':>8}  {'held MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("texts.csv", "texts.jsonl", "paths.csv"):
            path = Path(folder) / name
            write(path, a.rows)
            command = [sys.executable, __file__, "--measure", str(path)]
            m = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = path.stat().st_size / 1e6
            costs = f"{m['open']:>7.1f}  {m['stream']:>8.1f}  {m['peak']:>8.0f}  {m['held']:>8.0f}"
            print(f"{name:>12}  {size:>8.0f}  {costs}", flush=True)


if __name__ == "__main__":
    main()
