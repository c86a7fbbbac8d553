"""Cells made one after the other or a few at a time, each by an ``evertune run`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evertune.bench.cells import Cell, Flag

EVERTUNE = (sys.executable, "-m", "evertune.cli")
WORDS = 400
"""So many characters of a failed command's last line are told; its log has all."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a cell: ``error`` is empty, or the last that its process said."""

    cell: Cell
    seconds: float
    error: str = ""


def log_of(cell: Cell) -> Path:
    """Where what the process of ``cell`` says is kept: beside its folder, which holds nothing but the run."""
    return cell.folder.with_name(f"{cell.folder.name}.log")


def run_cells(
    cells: Sequence[Cell], flags: Mapping[str, Flag], *, jobs: int, on_end: Callable[[Outcome], None]
) -> list[Outcome]:
    """Make every cell, ``jobs`` at a time; one that fails does not keep the others. ``on_end`` hears of each.

    The memory of a cell is free when it ends, and nothing it does can reach another. Ctrl-C stops all that run: they go
    on after their last finished task when asked again.
    """
    running = _Running()
    outcomes = []
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        for future in as_completed([pool.submit(_run, cell, flags, running) for cell in cells]):
            outcomes.append(future.result())
            on_end(outcomes[-1])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        running.stop()
        raise
    finally:
        pool.shutdown()
    return outcomes


class _Running:
    """The processes that run now; none is added after a stop."""

    def __init__(self) -> None:
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def start(self, command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        with self.lock:
            if self.stopped:
                raise InterruptedError("the bench was stopped")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            self.processes.add(process)
            return process

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.send_signal(signal.SIGINT)  # nothing happens to one that has ended


def _run(cell: Cell, flags: Mapping[str, Flag], running: _Running) -> Outcome:
    started = time.perf_counter()
    log = log_of(cell)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            if not _mine(file):
                return Outcome(cell, time.perf_counter() - started, "another bench makes it now")
            file.truncate(0)
            process = running.start([*EVERTUNE, *cell.arguments(flags)], file)
            code = process.wait()
    except OSError as error:
        return Outcome(cell, time.perf_counter() - started, f"could not be started: {error}")
    return Outcome(cell, time.perf_counter() - started, "" if code == 0 else _last_words(log, code))


def _mine(log: BinaryIO) -> bool:
    """Lock the log of a cell: the process that writes it holds the lock until it ends, even if its bench ends first."""
    if sys.platform == "win32":  # it has no such lock
        return True
    import fcntl

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_words(log: Path, code: int) -> str:
    """The last line a failed process wrote, or how it ended."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"stopped by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {lines[-1].strip()[-WORDS:]}" if lines else ended
