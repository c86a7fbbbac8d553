"""Makes the numbers of docs/results.md: named experiments, each an ``evertune run`` command over three class orders.

    python benchmarks/results.py --shared ../shared --out runs/results --list
    python benchmarks/results.py --shared ../shared --out runs/results safe-paper ranpac-paper
    python benchmarks/results.py --shared ../shared --out runs/results --table

A stopped experiment goes on where it was. Protocol "Tiny-A": CIFAR-100, the first 100 training images of each class, 10
tasks of 10 classes, ViT-Ti/16 at 96 px, 5 epochs for the papers' settings, M = 2000.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WEIGHTS = "{shared}/data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
VIT = f"--backbone vit_tiny_patch16_224 --weights {WEIGHTS} --input-size 96"
TINY_A = "--data {shared}/data/images/cifar100_sub.npz --first 10 --increment 10 --train-per-class 100 " + VIT
PACS = "--data {shared}/data/images/pacs_sub.zip --kind domain --preprocessing native " + VIT
CALTECH = "--data {shared}/data/images/caltech101_sub.zip --first 11 --increment 10 --preprocessing native " + VIT
PAPER = "--preset paper --set features=2000 --set ridge_scale=none --set epochs=5 --preprocessing unit --precision bf16"
"""The peers' own grid of ridge strengths: they did not scale it by M / 10⁴."""
FOLLOW = "--set follow_epochs=5 --set follow_horizon=5"
NTK = "--set epochs=5 --set batch_size=48 --preprocessing unit --precision bf16"
OURS = "--preset evertune --preprocessing native --precision bf16"

EXPERIMENTS: dict[str, str] = {
    "simple_cil-unit": f"{TINY_A} --method simple_cil --preprocessing unit",
    "simple_cil-native": f"{TINY_A} --method simple_cil --preprocessing native",
    "aper-paper": f"{TINY_A} --method aper --preset paper --set epochs=5 --preprocessing unit --precision bf16",
    "ranpac-paper": f"{TINY_A} --method ranpac {PAPER}",
    "safe-paper": f"{TINY_A} --method safe {PAPER} {FOLLOW}",
    "safe-paper-seed1": f"{TINY_A} --method safe {PAPER} {FOLLOW} --seed 1",
    "safe-paper-seed2": f"{TINY_A} --method safe {PAPER} {FOLLOW} --seed 2",
    "safe-paper-fp32": f"{TINY_A} --method safe {PAPER.replace('bf16', 'fp32')} {FOLLOW}",
    "ranpac-pilot": f"{TINY_A} --method ranpac --preset pilot {PAPER.removeprefix('--preset paper')}",
    "ranpac-paper-sigma10": f"{TINY_A} --method ranpac {PAPER} --set sigma_init=10",
    "safe-paper-shared": f"{TINY_A} --method safe {PAPER} {FOLLOW} --set statistics=shared",
    "safe-paper-scaled-grid": f"{TINY_A} --method safe {PAPER} {FOLLOW} --set ridge_scale=features",
    "safe-released": f"{TINY_A} --method safe --preset released {PAPER.removeprefix('--preset paper')} {FOLLOW}",
    "aper-evertune": f"{TINY_A} --method aper {OURS}",
    "ranpac-evertune": f"{TINY_A} --method ranpac {OURS}",
    "safe-evertune": f"{TINY_A} --method safe {OURS}",
    "safe-evertune-unit": f"{TINY_A} --method safe --preset evertune --preprocessing unit --precision bf16",
    "hide-lora": f"{TINY_A} --method hide_pet {OURS}",
    "hide-adapter": f"{TINY_A} --method hide_pet {OURS} --set tuning=sequential_adapter",
    "hide-prefix": f"{TINY_A} --method hide_pet {OURS} --set tuning=prefix",
    "hide-lora-cifar100": f"{TINY_A} --method hide_pet --preset cifar100 --set batch_size=48 --set rate=5.625e-3 "
    "--set shared_rate=5.625e-3 --preprocessing native --precision bf16",
    "ntk-released": f"{TINY_A} --method ntk_cl --preset released --set total_tasks=10 {NTK}",
    "ntk-released-seed1": f"{TINY_A} --method ntk_cl --preset released --set total_tasks=10 {NTK} --seed 1",
    "ntk-reference": f"{TINY_A} --method ntk_cl --preset reference {NTK}",
    "ntk-corrected": f"{TINY_A} --method ntk_cl --preset reference {NTK} --set average=first --set plain=true "
    "--set beta=0.3 --set hybrid_prototypes=fused --set answer=together",
    "ntk-evertune": f"{TINY_A} --method ntk_cl {OURS}",
    "pacs-ntk-evertune": f"{PACS} --method ntk_cl --preset evertune --precision bf16",
    "pacs-hide-lora": f"{PACS} --method hide_pet --preset evertune --precision bf16",
    "pacs-simple_cil": f"{PACS} --method simple_cil",
    "pacs-ranpac-evertune": f"{PACS} --method ranpac --preset evertune --precision bf16",
    "pacs-safe-evertune": f"{PACS} --method safe --preset evertune --precision bf16",
    "caltech-simple_cil": f"{CALTECH} --method simple_cil",
    "caltech-ranpac-evertune": f"{CALTECH} --method ranpac --preset evertune --precision bf16",
    "caltech-safe-evertune": f"{CALTECH} --method safe --preset evertune --precision bf16",
}
ORDERS = (1993, 1994, 1995)


def command(name: str, order: int, shared: str, out: Path) -> list[str]:
    """PACS orders its domains by the same seeds."""
    text = EXPERIMENTS[name].format(shared=shared)
    if "simple_cil" not in name:  # the floor and the joint ridge are the same for all methods
        text += " --no-references"
    return ["evertune", "run", *shlex.split(text), "--order-seed", str(order), "--out", str(out / name / str(order))]


def table(out: Path) -> str:
    """Mean ± standard deviation over class orders of every part's final and average accuracy and forgetting."""
    lines = ["| experiment | part | orders | final | average | forgetting |", "|---|---|---|---|---|---|"]
    keys = ("final_accuracy_sample", "average_accuracy_sample", "forgetting_without_last_stage")
    for name in EXPERIMENTS:
        found = [json.loads(f.read_text()) for f in sorted((out / name).glob("*/summary.json"))]
        if not found:
            continue
        for part in found[0]["summary"]:
            cells = []
            for key in keys:
                values = [run["summary"][part][key] for run in found]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}")
            lines.append(f"| {name} | {part} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--orders", type=int, nargs="+", default=ORDERS)
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    a = parser.parse_args()
    if a.table:
        print(table(a.out))
        return
    for name in a.experiments or EXPERIMENTS:
        for order in a.orders:
            line = command(name, order, a.shared, a.out)
            print(shlex.join(line), flush=True)
            if not a.list:
                subprocess.run([sys.executable, "-m", "evertune.cli", *line[1:], "--quiet"], check=True)


if __name__ == "__main__":
    main()
