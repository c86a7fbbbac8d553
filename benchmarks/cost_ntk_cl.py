"""What NTK-CL costs, in forward equivalents, beside its floor; the companion of ``cost.py``.

    python benchmarks/cost_ntk_cl.py
    python benchmarks/cost_ntk_cl.py --backbone vit_tiny_patch16_224 --input-size 96 --batch 48

The floor of a row is the floating-point work of its matrix products over that of a plain forward: what it would cost if
nothing else took time. The limits are meant for the paper's ViT-B/16 at 224 px; another backbone's are raised by what
its floors are above those (at 96 px ten prompts are 27 % more tokens, at 224 px 5 %). Weights are drawn at random, on
which no cost depends. Exits with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import timm
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cost import ratios, report
from evertune.backbones import Backbone, Passes, TimmViT
from evertune.cli.memory import keep_freed_memory
from evertune.engine.cache import FeatureCache
from evertune.engine.optimizer import make_optimizer
from evertune.methods import NTKCL, Batch, Optimise, TaskInfo, make_method

CLASSES = 10
LIMITS = {"step": 5.8, "step, frozen branches from a bank": 4.0}
"""At 224 px, with one frozen set."""
PAPER = "vit_base_patch16_224"


def learned(backbone: Backbone, tasks: int, preset: str = "reference", **options: object) -> tuple[NTKCL, TaskInfo]:
    """NTK-CL in the session after ``tasks`` tasks of ten classes, with random prototypes."""
    method = make_method("ntk_cl", backbone, preset=preset, **options)
    assert isinstance(method, NTKCL)
    generator, known = torch.Generator().manual_seed(0), tasks * CLASSES
    labels = torch.arange(known).repeat(2)
    for means in method.means.values():
        means.update(torch.randn(len(labels), method.head.weight.shape[1], generator=generator), labels)
    present = tuple(range(known, known + CLASSES))
    info = TaskInfo(tasks, present, present, known, 1000)
    with torch.no_grad():
        for tuning in method.branches:
            for parameter in () if tuning is None else tuning.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        method._begin(info)
    return method, info


def step(
    method: NTKCL, info: TaskInfo, backbone: Backbone, images: torch.Tensor, bank: FeatureCache | None = None
) -> Callable[[], None]:
    """One optimisation step, optimiser included; with a ``bank`` these images' frozen features are known in it."""
    found = next(p for p in method.phases(info) if isinstance(p, Optimise))
    optimizer = make_optimizer(list(found.parameters()), found.recipe)
    rows = torch.arange(len(images))
    labels = rows % CLASSES + info.known

    def run() -> None:
        method.train()
        memory = None if bank is None else bank.view("view", rows, len(rows))
        terms = found.loss(Batch(Passes(backbone, images, memory=memory), labels, rows))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        method.eval()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=PAPER)
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="these rows")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    backbone = TimmViT(timm.create_model(a.backbone), a.backbone, input_size=a.input_size, preprocessing="unit")
    images = torch.rand(a.batch, 3, a.input_size, a.input_size)

    def plain() -> None:
        with torch.inference_mode():
            backbone.vit(images)

    candidates: dict[str, Callable[[], object]] = {"timm forward": plain}
    candidates["step"] = step(*learned(backbone, 5), backbone, images)
    candidates["step, frozen branches from a bank"] = step(*learned(backbone, 5), backbone, images, FeatureCache())
    candidates["step with the plain section"] = step(*learned(backbone, 5, plain=True), backbone, images)
    candidates["step, two frozen sets"] = step(*learned(backbone, 5, frozen=2, segment=5), backbone, images)
    candidates["step, our preset"] = step(*learned(backbone, 5, "evertune"), backbone, images)
    for name in ("channel", "patch"):
        candidates[f"step, {name} alone"] = step(*learned(backbone, 5, branch=name), backbone, images)
    for tasks, preset in ((5, "reference"), (50, "reference"), (5, "evertune")):
        method, _ = learned(backbone, tasks, preset)

        def predict(method: NTKCL = method) -> None:
            with torch.no_grad():
                method.eval().scores(Passes(backbone, images))

        candidates[f"prediction after {tasks} tasks, {preset}"] = predict
    if a.only:
        candidates = {name: run for name, run in candidates.items() if name in ("timm forward", *a.only)}
    print(f"{a.backbone} at {a.input_size} px, batch {a.batch}, fp32, {a.threads} threads, {a.rounds} rounds")
    found = ratios(candidates, "timm forward", a.rounds)
    work = {name: flops(run) for name, run in candidates.items()}
    floors = {name: done / work["timm forward"] for name, done in work.items()}
    theirs = floors if (a.backbone, a.input_size) == (PAPER, 224) else paper_floors()
    failed = report(
        found, {name: limit * floors[name] / theirs[name] for name, limit in LIMITS.items() if name in floors}
    )
    for name, floor in floors.items():
        print(f"{name:36s} floor {floor:6.3f} F, {found[name] / floor:5.2f} of it")
    prototypes = 4 * torch.randn(990, 2 * backbone.shape.width)
    once = ratios({"plain": plain, "basis": lambda: torch.linalg.svd(F.normalize(prototypes))}, "plain", 3)["basis"]
    print(f"basis of 990 prototypes, once per session: {once:.2f} forwards of a batch")
    sys.exit(failed)


def flops(run: Callable[[], object]) -> int:
    """Of the matrix products of a call; fused attention is counted too."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def paper_floors() -> dict[str, float]:
    """What the limits are meant for, counted on one image."""
    backbone = TimmViT(timm.create_model(PAPER), PAPER)
    images, bank = torch.rand(1, 3, 224, 224), FeatureCache()
    plain = flops(lambda: backbone.vit(images))
    banked = step(*learned(backbone, 5), backbone, images, bank)
    banked()
    runs = {"step": step(*learned(backbone, 5), backbone, images), "step, frozen branches from a bank": banked}
    return {name: flops(run) / plain for name, run in runs.items()}


if __name__ == "__main__":
    main()
