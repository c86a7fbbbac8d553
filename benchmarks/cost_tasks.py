"""What an answer costs after 5, 20 and 50 tasks of ten classes, of methods that keep something of every task.

    python benchmarks/cost_tasks.py --weights WEIGHTS

F is one plain pass, as evertune makes it. The counted F are exact. The time, of the processor and not of the clock, is
a median of ratios to a plain pass of the same round, all candidates in a new random order each round. Beside it stands
the time over that of the passes that cannot be avoided: one under an adapter times the branches there are; or the plain
one and one under the prompt or tuning of a single task. Nothing is trained: costs do not depend on values.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from cost import ratios
from evertune.backbones import Backbone, Passes, load_backbone
from evertune.cli.memory import keep_freed_memory
from evertune.engine import Meter
from evertune.methods import Batch, Collect, Method, Solve, TaskInfo, make_method

CLASSES, IMAGES = 10, 60
"""Of a task."""


class Kind(NamedTuple):
    """How a method answers: under every tuning, or that of the task an image is taken to be of; and the options that
    make a state of many tasks in a short time."""

    every: bool
    options: dict[str, Any]


METHODS = {
    "ease": Kind(True, {}),
    "tuna": Kind(True, {"align_epochs": 0}),
    "hide_pet": Kind(False, {"tii_epochs": 1, "tap_epochs": 1}),
    "s_prompt": Kind(False, {}),
    "dualprompt": Kind(False, {}),
}


class Drawn:
    """Passes of images that nobody has: the features of a class lie around a place of its own."""

    def __init__(self, labels: Tensor, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = 4 * torch.randn(CLASSES, width, generator=generator)
        self.features = centres[labels % CLASSES] + torch.randn(len(labels), width, generator=generator)

    def __call__(self, tuning: object = None) -> Tensor:
        return self.features

    def steered(self, pool: object, choice: Tensor) -> Tensor:
        return self.features


def learned(name: str, backbone: Backbone, tasks: int) -> Method:
    """The method as it stands after so many tasks, its tunings as they begin."""
    method = make_method(name, backbone, **METHODS[name].options)
    labels = torch.arange(IMAGES) % CLASSES
    for t in range(tasks):
        present = tuple(range(t * CLASSES, (t + 1) * CLASSES))
        drawn: Any = Drawn(labels, backbone.shape.width, seed=t)
        for phase in method.phases(TaskInfo(t, present, present, t * CLASSES, IMAGES)):
            with torch.no_grad():
                match phase:
                    case Collect():
                        phase.update(Batch(drawn, labels + t * CLASSES, torch.arange(IMAGES)))
                    case Solve():
                        phase.run()
        method.tasks_seen += 1
    return method.eval()


def answer(method: Method, tasks: int, passes: Passes) -> None:
    """Of every image; where its task is inferred, these are then spread over ``tasks``."""
    if METHODS[method.name].every:
        method.scores(passes)
        return
    method.identify(passes)
    method.told(passes, torch.randint(tasks, (len(passes.inputs),), generator=torch.Generator().manual_seed(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tasks", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    backbone = load_backbone(a.backbone, weights=a.weights, input_size=a.input_size, preprocessing="native")
    images = torch.rand(a.batch, 3, a.input_size, a.input_size)
    meter = Meter(backbone, nullcontext)
    candidates: dict[str, Callable[[], object]] = {}
    counted: dict[str, float] = {}
    floors: dict[str, int] = {}

    def add(name: str, ask: Callable[[Passes], object]) -> None:
        def run() -> None:
            with torch.no_grad():
                ask(Passes(backbone, images))

        with torch.no_grad(), meter.counting(passes := Passes(backbone, images), partial(counted.__setitem__, name)):
            ask(passes)
        candidates[name] = run

    add("plain", lambda passes: passes())
    for name in a.methods:
        for tasks in a.tasks:
            method = learned(name, backbone, tasks)
            add(f"{name}, T = {tasks}", partial(answer, method, tasks))
            floors[f"{name}, T = {tasks}"] = len(method.branches) if METHODS[name].every else 1
        least = learned(name, backbone, 1)
        if METHODS[name].every:
            tuned = next(tuning for tuning in least.branches if tuning is not None)
            add(name, lambda passes, tuned=tuned: passes(tuned))
        else:
            add(name, partial(answer, least, 1))
    found = ratios(candidates, "plain", a.rounds, time.process_time)
    print(f"{a.backbone} at {a.input_size} px, batch {a.batch}, fp32, {a.threads} threads, {a.rounds} rounds")
    print(f"{'':24s} {'counted F':>10s} {'time, F':>10s} {'over the passes it needs':>26s}")
    for name, times in floors.items():
        least = found[name.split(",")[0]] * times
        print(f"{name:24s} {counted[name]:10.2f} {found[name]:10.2f} {found[name] / least:26.2f}")


if __name__ == "__main__":
    main()
