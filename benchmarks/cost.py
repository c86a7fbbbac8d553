"""What things cost, in forward equivalents: time over that of one plain timm forward of the same images.

All candidates are timed in turn, in a new random order each round, in one process, and each round's times are divided
by that round's plain forward; the table shows the median ratio beside its limit. Exits with 1 if a limit is passed.

    python benchmarks/cost.py --weights WEIGHTS
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from evertune.backbones import Passes, load_backbone
from evertune.cli.memory import keep_freed_memory
from evertune.engine.optimizer import make_optimizer
from evertune.heads import project, random_projection
from evertune.methods import Batch, Optimise, TaskInfo, make_method
from evertune.methods.safe import SAFE
from evertune.statistics import Gram, holdout, select_ridge

PAPER = {"preset": "paper", "features": 2000}


def ratios(
    candidates: dict[str, Callable[[], object]],
    unit: str,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median over rounds of each candidate's time over the unit's, all timed in random order within a round."""
    for run in candidates.values():
        run()
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        times = {}
        for name in random.sample(list(candidates), len(candidates)):
            started = clock()
            candidates[name]()
            times[name] = clock() - started
        for name in candidates:
            seen[name].append(times[name] / times[unit])
    return {name: median(values) for name, values in seen.items()}


def step(method: SAFE, phase: str, task: TaskInfo, backbone, images, labels) -> Callable[[], None]:  # type: ignore[no-untyped-def]
    """One optimisation step of a phase, optimiser included."""
    found = next(p for p in method.phases(task) if isinstance(p, Optimise) and p.name == phase)
    optimizer = make_optimizer(list(found.parameters()), found.recipe)

    def run() -> None:
        method.train()
        terms = found.loss(Batch(Passes(backbone, images), labels, labels))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        method.eval()

    return run


def learned(backbone, tuning: str, **options) -> SAFE:  # type: ignore[no-untyped-def]
    """SAFE as it stands after a first task of ten classes, with random statistics."""
    method = make_method("safe", backbone, **PAPER, tuning=tuning, **options)
    assert isinstance(method, SAFE)
    width = backbone.shape.width
    method.head_slow.draw(10, method.generators.init)
    method.head_fast.draw(10, method.generators.init)
    method.slow.freeze()
    method.head_slow.requires_grad_(False)
    method.tasks_seen.fill_(2)
    method.known.fill_(5)
    for head in (method.ridge_slow, method.ridge_fast):
        head.A = torch.randn(2000, 100)
    assert method.R.shape[0] == width
    return method.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="more cores help the matrix products most")
    parser.add_argument("--skip-ridge", action="store_true", help="leave out the M = 10 000 solve (needs 3 GB)")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    backbone = load_backbone(a.backbone, weights=a.weights, input_size=a.input_size, preprocessing="unit")
    images = torch.rand(a.batch, 3, a.input_size, a.input_size)
    first, later = torch.arange(a.batch) % 10, torch.arange(a.batch) % 5 + 5
    now = TaskInfo(0, tuple(range(10)), tuple(range(10)), 0, 1000)
    then = TaskInfo(1, tuple(range(5, 10)), tuple(range(5, 10)), 5, 1000)

    def plain() -> None:
        with torch.inference_mode():
            backbone.vit(images)

    def feature() -> None:
        with torch.inference_mode():
            backbone(images)

    candidates: dict[str, Callable[[], object]] = {"timm forward": plain, "plain feature": feature}
    limits = {"plain feature": 0.96}
    for tuning in ("adapter", "ssf", "vpt", "lora"):
        fresh = make_method("safe", backbone, **PAPER, tuning=tuning)
        fresh.head_slow.draw(10, fresh.generators.init)
        transfer = make_method("safe", backbone, **PAPER, tuning=tuning, lambda_diag=0.01, lambda_rdn=10)
        transfer.head_slow.draw(10, transfer.generators.init)
        grown = learned(backbone, tuning)
        candidates[f"{tuning}: first step"] = step(fresh, "slow learner", now, backbone, images, first)
        candidates[f"{tuning}: first step, transfer"] = step(transfer, "slow learner", now, backbone, images, first)
        candidates[f"{tuning}: later step"] = step(grown, "fast learner", then, backbone, images, later)

        def evaluate(grown: SAFE = grown) -> None:
            with torch.no_grad():
                grown.scores(Passes(backbone, images))

        candidates[f"{tuning}: evaluation"] = evaluate
        limits |= {
            f"{tuning}: first step": 2.3,
            f"{tuning}: first step, transfer": 3.3,
            f"{tuning}: later step": 3.3,
            f"{tuning}: evaluation": 2.1,
        }
    collected = learned(backbone, "adapter")

    def statistics() -> None:
        """The pass of one learner over a batch, and its part of the Gram matrix."""
        with torch.no_grad():
            features = Passes(backbone, images)(collected.slow)
            gram.update(project(features, collected.R), first)

    gram = Gram()
    candidates["statistics, one learner"] = statistics
    limits["statistics, one learner"] = 1.1

    print(f"{a.backbone} at {a.input_size} px, batch {a.batch}, fp32, {a.threads} threads, {a.rounds} rounds")
    found = ratios(candidates, "timm forward", a.rounds)
    failed = report(found, limits)
    if not a.skip_ridge:
        failed |= report(ridge(rounds=3), {"λ selection, M = 10 000, N = 500": 0.1}, unit="of one dense solve")
    sys.exit(failed)


def ridge(rounds: int) -> dict[str, float]:
    """λ selection on 500 samples against one dense solve of the size M = 10 000, both float64."""
    generator = torch.Generator().manual_seed(0)
    phi, labels = torch.randn(500, 192, generator=generator), torch.arange(500) % 10
    projection = random_projection(192, 10_000, generator)
    h = project(phi, projection).double()
    matrix = h.T @ h
    matrix.diagonal().add_(1e4)
    right = torch.randn(10_000, 10, dtype=torch.float64)
    fit, held = holdout(labels, 0.2, generator)
    grid = [10.0**p for p in range(3, 9)]
    candidates: dict[str, Callable[[], object]] = {
        "dense solve": lambda: torch.linalg.solve(matrix, right),
        "Cholesky solve": lambda: torch.cholesky_solve(right, torch.linalg.cholesky(matrix)),
        "λ selection, M = 10 000, N = 500": lambda: select_ridge(
            phi, labels, grid, fit, held, lambda f: project(f, projection)
        ),
    }
    return ratios(candidates, "dense solve", rounds)


def report(found: dict[str, float], limits: dict[str, float], unit: str = "F") -> int:
    for name, value in found.items():
        limit = limits.get(name)
        verdict = "" if limit is None else f"  limit {limit:.2f}  {'ok' if value <= limit else 'TOO SLOW'}"
        print(f"{name:36s} {value:7.3f} {unit}{verdict}")
    return int(any(found[name] > limit for name, limit in limits.items()))


if __name__ == "__main__":
    main()
