"""What an empirical tangent kernel costs, exact and sketched, and how far the sketch is from it.

    python benchmarks/kernel.py --shared ../shared --out runs/kernel

ViT-Ti/16 at 96 px, a learner that has learned two tasks of ten CIFAR-100 classes, its deployed scores on 8 directions.
First the error of sketches in three sizes: true, told by the sketch, and the bound √((1 + (tr K/‖K‖)²)/k). Then time
and memory for growing numbers of images, each in a process of its own. Memory is what the kernel adds at its peak to
the process that holds the learner and the images.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from evertune import Learner, Stream, load_backbone, open_data
from evertune.cli.memory import keep_freed_memory
from evertune.diagnostics import Tangent, exact, sketched
from evertune.streams import Batches

WEIGHTS = "data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
IMAGES = "data/images/cifar100_sub.npz"
OUTPUTS, DRAWS = 8, 3
MEMORY = 64 << 30


def backbone(shared: Path) -> object:
    return load_backbone("vit_tiny_patch16_224", weights=shared / WEIGHTS, input_size=96, preprocessing="unit")


def tasks(shared: Path) -> Stream:
    return Stream.class_incremental(*open_data(shared / IMAGES), first=10, increment=10, train_per_class=30)


def taught(shared: Path, out: Path, method: str) -> Path:
    """Where a learner of two tasks is kept; it is made where there is none."""
    folder = out / method
    if not (folder / "learner.json").exists():
        learner = Learner(method, backbone(shared), device="cpu")  # type: ignore[arg-type]
        for task in tasks(shared)[:2]:
            learner.learn(task)
        learner.save(folder)
    return folder


def opened(shared: Path, folder: Path, inputs: int) -> tuple[Tangent, Tensor]:
    """The tangent of the learner in ``folder``, and images of its two tasks in turn."""
    learner = Learner.load(folder, backbone(shared), device="cpu", progress=False)  # type: ignore[arg-type]
    half = inputs // 2
    batches = (
        Batches(task.train, learner.test_view, half, shuffle=True, seed=(0,), epoch=0) for task in tasks(shared)[:2]
    )
    images = torch.cat([next(iter(part))[1] for part in batches])
    return Tangent(learner.method, learner.backbone, outputs=OUTPUTS), images


def errors(tangent: Tangent, images: Tensor, dimensions: list[int]) -> None:
    whole = exact(tangent, images, memory=MEMORY)
    print(f"\nsketch against exact, {len(images)} images × {OUTPUTS} outputs, root mean square of {DRAWS} draws")
    print(f"{'dimensions':>10}  {'true error':>10}  {'told':>10}  {'at most':>10}")
    spread = 1 + float(whole.trace() / whole.norm()) ** 2
    for k in dimensions:
        draws = [sketched(tangent, images, k, seed=seed, memory=MEMORY) for seed in range(DRAWS)]
        true = math.sqrt(sum(float((found - whole).norm() / whole.norm()) ** 2 for found, _ in draws) / DRAWS)
        told = math.sqrt(sum(error**2 for _, error in draws) / DRAWS)
        print(f"{k:>10}  {true:>10.2%}  {told:>10.2%}  {math.sqrt(spread / k):>10.2%}")


def measure(tangent: Tangent, images: Tensor, dimensions: int | None) -> None:
    """Seconds and bytes of one kernel, as JSON; the first images are passed beforehand."""
    exact(tangent, images[:2])
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    started = time.perf_counter()
    if dimensions is None:
        exact(tangent, images, memory=MEMORY)
    else:
        sketched(tangent, images, dimensions, memory=MEMORY)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "mib": peak() - before}))


def peak() -> float:
    """The most memory this process has held, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def costs(arguments: list[str], inputs: list[int], dimensions: list[int]) -> None:
    """Each in a process of its own: a peak is only ever seen to rise."""
    print(f"\n{'images':>8}  {'kernel':>14}  {'seconds':>8}  {'ms/image':>8}  {'MiB':>8}")
    for count in inputs:
        for k in (None, *dimensions):
            command = [sys.executable, __file__, *arguments, "--measure", str(count), "" if k is None else str(k)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            name, per_image = "exact" if k is None else f"sketch {k}", 1000 * found["seconds"] / count
            print(
                f"{count:>8}  {name:>14}  {found['seconds']:>8.1f}  {per_image:>8.0f}  {found['mib']:>8.0f}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/kernel"))
    parser.add_argument("--method", default="safe")
    parser.add_argument("--inputs", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--compared", type=int, default=128, help="images of the comparison with the exact kernel")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()  # as the command line does
    folder = taught(a.shared, a.out, a.method)
    if a.measure:
        count, k = a.measure
        measure(*opened(a.shared, folder, int(count)), int(k) if k else None)
        return
    tangent, images = opened(a.shared, folder, a.compared)
    parameters = sum(p.numel() for p in tangent.parameters.values())
    print(f"{a.method} on ViT-Ti/16 at 96 px: {parameters} parameters, {OUTPUTS} outputs, {a.threads} threads, float32")
    errors(tangent, images, a.dimensions)
    arguments = ["--shared", str(a.shared), "--out", str(a.out), "--method", a.method, "--threads", str(a.threads)]
    costs(arguments, a.inputs, a.dimensions)


if __name__ == "__main__":
    main()
