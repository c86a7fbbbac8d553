"""What being able to go on after a crash costs: the share of a task's time that its checkpoints take.

A task is learned without a folder and then into one. The seconds spent on keeping its progress (looking whether it is
time, gathering, writing, reading what was there) are counted inside the second time, since two whole times differ by
more than that. Exits with 1 if they are more than 2 % of it.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --images 20000 --least 60 --backbone vit_tiny_patch16_224 --weights WEIGHTS
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from evertune import Learner, Task, load_backbone
from evertune.cli.memory import keep_freed_memory
from evertune.engine import Progress, progress
from evertune.learner.update import Update
from evertune.streams import ArraySource

LIMIT = 0.02
METHODS: dict[str, dict[str, Any]] = {"safe": {"features": 10_000}, "hide_pet": {}}


class Spent:
    """Seconds and calls of functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - started
                self.calls += 1

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--least", type=float, default=10, help="seconds between two checkpoints at least, else 60")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    backbone = load_backbone(a.backbone, weights=a.weights)
    size = backbone.identity.as_dict()["input_size"]
    images = np.random.default_rng(0).integers(0, 256, (a.images, size, size, 3), dtype=np.uint8)
    names = [f"class {i}" for i in range(a.classes)]
    task = Task(0, "noise", ArraySource(images, np.arange(a.images) % a.classes, names, name="noise"))
    progress.LEAST = a.least
    keeping, writing = Spent(), Spent()
    Update.write = writing.of(Update.write)  # type: ignore[method-assign]
    for owner, name in ((Progress, "_keep"), (Update, "find"), (Update, "drop")):
        setattr(owner, name, keeping.of(getattr(owner, name)))
    worst = 0.0
    for method, options in METHODS.items():
        times = []
        for kept in (False, True):
            keeping.seconds = writing.seconds = writing.calls = 0
            learner = Learner(method, backbone, progress=False, **options)
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                learner.learn(task, **({"folder": folder} if kept else {}))
                if not kept:
                    learner.save(folder)
                times.append(time.perf_counter() - started)
        share = keeping.seconds / times[1]
        worst = max(worst, share)
        print(
            f"{method:10} learned and saved in {times[0]:.1f} s, with checkpoints in {times[1]:.1f} s; of that "
            f"{keeping.seconds:.2f} s for {writing.calls} of them: {100 * share:.2f} %"
        )
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
