"""``evertune demo``: SAFE learns ten handwritten digits, two at a time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evertune import Learner, Stream, TrainView, open_data, run
from evertune.cli.narrate import Narrator
from evertune.cli.origin import keep_origin
from evertune.engine import write_atomic
from evertune.errors import RunError

OPTIONS: dict[str, Any] = {"lambda_cos": 24.0, "epochs": 5, "follow_epochs": 2, "follow_horizon": 2}
"""Digits are easy: the frozen features nearly suffice, and what a freer fast learner forgets would cost more than it
learns. So the demo trains for half as long as the preset and holds the fast learner by the paper's alignment weight."""

MARK = "demo.txt"
FILES = {
    MARK, "config.json", "data.json", "protocol.json", "matrix.json", "log.jsonl", "learner", "summary.json",
    "report.txt", "accuracy.png", "diagnosis",
}  # fmt: skip


def run_demo(folder: Path, say: Callable[[str], None], *, device: str = "auto", progress: bool = True) -> None:
    """Learn and evaluate in ``folder``, which may hold an earlier demo, but nothing else.

    Raises
    ------
    RunError
        The folder holds something else.
    """
    started = time.perf_counter()
    if clear(folder):
        say(f"replacing the earlier demo in {folder}")
    train, test = open_data("digits")
    stream = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None)
    # A mirrored or half-hidden digit is another digit: no flips, gentle crops.
    view = TrainView(32, scale=(0.6, 1.0), flip=0.0)
    learner = Learner(
        "safe", "embedded", preset="evertune", train_view=view, device=device, progress=progress, **OPTIONS
    )
    narrator = Narrator(stream, learner, say)

    def mark(stage: int, report: object) -> None:
        if learner.engine.runtime.main and not (folder / MARK).exists():
            write_atomic(folder / MARK, b"Made by 'evertune demo', which replaces this folder when it runs again.\n")
            keep_origin(folder, "digits")

    narrator.begin()
    result = run(stream, learner, folder, on_phase=mark, on_stage=narrator.on_stage)
    for line in narrator.end(result, folder, time.perf_counter() - started):
        say(line)


def clear(folder: Path) -> bool:
    """Remove an earlier demo; whether there was one. An empty folder is as good as none.

    Raises
    ------
    RunError
        The folder holds anything that no demo wrote; it is left as it is.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: name a folder with --out.")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return False
    if MARK not in names:
        raise RunError(
            f"{folder} holds something that is no demo, so it is left alone: name another folder with --out."
        )
    if names - FILES:
        raise RunError(
            f"{folder} holds an earlier demo and other files ({', '.join(sorted(names - FILES)[:5])}), so it is left "
            "alone: move them away, or name another folder with --out."
        )
    shutil.rmtree(folder)
    return True
