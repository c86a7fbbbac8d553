"""What images cost before a backbone sees them: views a second, and the share of a training step spent waiting.

Three ways to the same pixels: ``exact`` decodes an image whenever it is shown and leaves its view to Pillow; ``fast``
keeps what was decoded, and leaves the view to Pillow on a CPU, to products of matrices elsewhere; ``matrices`` are
those on any device. All are run in turn, in a new random order each round, and medians are shown. Their pixels are
compared beforehand: exits with 1 if one differs.

    python benchmarks/pixels.py --arrays DATA.npz --photos DATA.zip --weights WEIGHTS
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from evertune.backbones import Passes, load_backbone
from evertune.cli.memory import keep_freed_memory
from evertune.engine.optimizer import make_optimizer
from evertune.methods import Batch, Optimise, TaskInfo, make_method
from evertune.streams import Batches, Source, TestView, TrainView, open_data
from evertune.streams.pixels import Pixels

Way = Callable[[int], Iterator[torch.Tensor]]
WAYS = ("exact", "fast", "matrices")


def ways(source: Source, view: TrainView | TestView, batch: int, device: torch.device) -> dict[str, Way]:
    """Each gives the views of an epoch on the device."""
    rows = [list(range(start, min(start + batch, len(source)))) for start in range(0, len(source), batch)]
    fast, matrices = Pixels(source, device), Pixels(source, device, batched=True)

    def exact(epoch: int) -> Iterator[torch.Tensor]:
        for _, images, _ in Batches(source, view, batch, shuffle=False, seed=(0,), epoch=epoch):
            yield images.to(device)

    return {
        "exact": exact,
        "fast": lambda epoch: fast.batches(view, rows, (0, epoch)),
        "matrices": lambda epoch: matrices.batches(view, rows, (0, epoch)),
    }


def differing(candidates: dict[str, Way]) -> int:
    """Pixels of an epoch that are not those of the exact way. Afterwards all that is kept is there."""
    shown = {name: torch.cat(list(way(1))) for name, way in candidates.items()}
    return sum(int((images != shown["exact"]).sum()) for images in shown.values())


def wait(device: torch.device) -> float:
    """The time when the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def rates(candidates: dict[str, Way], images: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Images a second of each way."""
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for epoch in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            started = wait(device)
            for _ in candidates[name](epoch):
                pass
            seen[name].append(images / (wait(device) - started))
    return {name: median(values) for name, values in seen.items()}


def shares(
    candidates: dict[str, Way], learn: Callable[[torch.Tensor], None], rounds: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Of each way, the share of a step until its images are there, and the seconds of a step."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for epoch in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            began, waited, steps = wait(device), 0.0, 0
            asked = began
            for images in candidates[name](epoch):
                waited += wait(device) - asked
                learn(images)
                asked = wait(device)
                steps += 1
            whole = asked - began
            seen[name].append((waited / whole, whole / steps))
    return {name: (median(w for w, _ in found), median(s for _, s in found)) for name, found in seen.items()}


def training(weights: Path, size: int, batch: int, device: torch.device) -> Callable[[torch.Tensor], None]:
    """A step of SAFE's first session with LoRA on ViT-Ti."""
    backbone = load_backbone("vit_tiny_patch16_224", weights=weights, input_size=size).to(device)
    method = make_method("safe", backbone, preset="paper", features=2000, tuning="lora").to(device)
    method.head_slow.draw(10, method.generators.init)
    task = TaskInfo(0, tuple(range(10)), tuple(range(10)), 0, 1000)
    phase = next(p for p in method.phases(task) if isinstance(p, Optimise))
    optimizer = make_optimizer(list(phase.parameters()), phase.recipe)
    labels = torch.arange(batch, device=device) % 10

    def learn(images: torch.Tensor) -> None:
        here = labels[: len(images)]
        terms = phase.loss(Batch(Passes(backbone, images.float() / 255), here, here))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    method.train()
    return learn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrays", type=Path, required=True, help="an .npz of small images")
    parser.add_argument("--photos", type=Path, required=True, help="a folder or .zip of photographs")
    parser.add_argument("--weights", type=Path, required=True, help="of vit_tiny_patch16_224")
    parser.add_argument("--images", type=int, default=480, help="of each, an epoch")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    device, wrong = torch.device(a.device), 0
    data = {"arrays": open_data(a.arrays)[0], "photos": open_data(a.photos)[0]}
    data = {name: source.select(range(min(a.images, len(source)))) for name, source in data.items()}
    print(f"{a.device}, {a.threads} threads, {a.images} images in batches of {a.batch}, {a.rounds} rounds\n")
    print(f"{'images a second':26s}" + "".join(f"{name:>10s}" for name in WAYS) + "  pixels that differ")
    cases = [("arrays", 96), ("photos", 96), ("photos", 224)]
    for name, size in cases:
        for view in (TrainView(size), TestView(size)):
            candidates = ways(data[name], view, a.batch, device)
            bad = differing(candidates)
            found = rates(candidates, len(data[name]), a.rounds, device)
            kind = view.describe()["view"]
            print(f"{name} to {size}, {kind:9s}".ljust(26) + "".join(f"{found[w]:10.0f}" for w in WAYS) + f"  {bad}")
            wrong += bad
    print(f"\n{'share of a step waiting':26s}" + "".join(f"{name:>10s}" for name in WAYS) + "  ms a step")
    for name, size in cases[:2]:
        part = data[name].select(range(4 * a.batch))
        candidates = ways(part, TrainView(size), a.batch, device)
        wrong += differing(candidates)
        seen = shares(candidates, training(a.weights, size, a.batch, device), a.rounds, device)
        times = " ".join(f"{1000 * seen[w][1]:.0f}" for w in WAYS)
        print(f"{name} to {size}".ljust(26) + "".join(f"{seen[w][0]:10.2%}" for w in WAYS) + f"  {times}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
