"""What HiDe-PET costs, in forward equivalents, and how that grows with tasks; the companion of ``cost.py``.

    python benchmarks/cost_hide_pet.py --weights WEIGHTS

Exits with 1 if a limit is passed. Statistics are drawn at random: costs do not depend on their values.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cost import ratios, report
from evertune.backbones import Backbone, Passes, load_backbone
from evertune.cli.memory import keep_freed_memory
from evertune.engine.optimizer import make_optimizer
from evertune.methods import Batch, HiDePET, Optimise, TaskInfo, make_method
from evertune.tuning import make_tuning

CLASSES = 10
"""Per task."""
LIMITS = {"tuned step": 2.3, "LoRA, forward": 1.05, "inference": 2.15, "alignment": 1.0, "growth": 1.05}
PROMPTS = 20
"""Per tuned block, kept to the end: a pass of ``prompt`` is longer by what it keeps, and so are its limits."""


def learned(backbone: Backbone, tasks: int, **options: Any) -> HiDePET:
    """HiDe-PET as it stands after ``tasks`` tasks of ten classes, each with 20 random features a class."""
    method = make_method("hide_pet", backbone, preset="cifar100", batch_size=48, **options)
    assert isinstance(method, HiDePET)
    generator, width = torch.Generator().manual_seed(0), backbone.shape.width
    for task in range(tasks):
        present = tuple(range(task * CLASSES, (task + 1) * CLASSES))
        info = TaskInfo(task, present, present, task * CLASSES, 1000)
        with torch.no_grad():
            method._open(info)
            method._begin(info)
            for parameter in method.e[task].parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
            method._finish(task)
        labels = torch.tensor(present).repeat_interleave(20)
        for statistics in (method.uninstructed, method.instructed):
            statistics.fit(4 * torch.randn(len(labels), width, generator=generator), labels, task, generator)
    return method.eval()


def step(method: HiDePET, phase: str, task: int, backbone: Backbone, images: torch.Tensor) -> Callable[[], None]:
    """One optimisation step of a phase of the task that comes next, optimiser and clipping included."""
    present = tuple(range(task * CLASSES, (task + 1) * CLASSES))
    info = TaskInfo(task, present, present, task * CLASSES, 1000)
    with torch.no_grad():
        method._open(info)
        method._begin(info)
    found = next(p for p in method.phases(info) if isinstance(p, Optimise) and p.name == phase)
    parameters = [p for p in found.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, found.recipe, found.slowed())
    labels = torch.arange(len(images)) % CLASSES + task * CLASSES

    def run() -> None:
        method.train()
        terms = found.loss(Batch(Passes(backbone, images), labels, labels))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        method.eval()

    return run


def inference(method: HiDePET, backbone: Backbone, images: torch.Tensor) -> Callable[[], None]:
    """Router and instructed pass, the router's answers replaced by tasks that differ from image to image."""
    tasks = torch.randint(len(method.e), (len(images),), generator=torch.Generator().manual_seed(1))

    def run() -> None:
        with torch.no_grad():
            passes = Passes(backbone, images)
            method.identify(passes)
            method.told(passes, tasks)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    backbone = load_backbone(a.backbone, weights=a.weights, input_size=a.input_size, preprocessing="unit")
    images = torch.rand(a.batch, 3, a.input_size, a.input_size)

    def plain() -> None:
        with torch.inference_mode():
            backbone.vit(images)

    lora = make_tuning("lora", backbone.shape, torch.Generator(), blocks="0-4", rank=5, init="wide").freeze()

    def steered() -> None:
        with torch.inference_mode():
            backbone(images, lora)

    def feature() -> None:
        with torch.inference_mode():
            backbone(images)

    candidates: dict[str, Callable[[], object]] = {"timm forward": plain, "feature": feature, "LoRA feature": steered}
    limits: dict[str, float] = {}
    blocks, tokens = 5, backbone.shape.tokens
    kept = [min(i + 1, blocks) * PROMPTS for i in range(backbone.shape.depth)]
    longer = sum((tokens + k) / tokens for k in kept) / backbone.shape.depth
    for kind in ("lora", "sequential_adapter", "prefix", "prompt"):
        stretch = longer if kind == "prompt" else 1.0
        for phase in ("shared parameters", "task-specific parameters"):
            name = f"{kind}: {phase.split()[0]} step"
            candidates[name] = step(learned(backbone, 1, tuning=kind), phase, 1, backbone, images)
            limits[name] = LIMITS["tuned step"] * stretch
        for tasks in (10, 100):
            name = f"{kind}: inference, T = {tasks}"
            candidates[name] = inference(learned(backbone, tasks, tuning=kind), backbone, images)
            limits[name] = LIMITS["inference"] * stretch
    late = learned(backbone, 99)
    candidates["lora: task-specific step, T = 100"] = step(late, "task-specific parameters", 99, backbone, images)
    print(f"{a.backbone} at {a.input_size} px, batch {a.batch}, fp32, {a.threads} threads, {a.rounds} rounds")
    found = ratios(candidates, "timm forward", a.rounds)
    found["LoRA feature over feature"] = found["LoRA feature"] / found["feature"]
    limits["LoRA feature over feature"] = LIMITS["LoRA, forward"]
    found["task-specific step, T = 100 over T = 2"] = (
        found["lora: task-specific step, T = 100"] / found["lora: task-specific step"]
    )
    limits["task-specific step, T = 100 over T = 2"] = LIMITS["growth"]
    failed = report(found, limits)
    failed |= report(*alignment(backbone, plain, a.batch), unit="passes over 1000 images")
    for tasks in (10, 100):
        state = learned(backbone, tasks).describe()["bytes"]
        shown = ", ".join(f"{name} {size / tasks / 1024:.1f}" for name, size in state.items())
        print(f"state per task of ten classes in KB, T = {tasks}: {shown}")
    sys.exit(failed)


def alignment(backbone: Backbone, plain: Callable[[], None], batch: int) -> tuple[dict[str, float], dict[str, float]]:
    """Aligning ψ on n classes for 30 epochs, in plain passes over a task of 1000 images."""

    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return min(times)

    over = seconds(plain) * 1000 / batch
    found = {}
    for classes in (20, 100, 200, 1000):
        method = learned(backbone, classes // CLASSES)
        targets = method.instructed.entry_class

        def run(method: HiDePET = method, targets: torch.Tensor = targets, classes: int = classes) -> None:
            method._rehearse(method.psi, method.instructed, targets, 30, classes - CLASSES)

        found[f"alignment of {classes} classes"] = seconds(run) / over
    return found, {"alignment of 100 classes": LIMITS["alignment"]}


if __name__ == "__main__":
    main()
