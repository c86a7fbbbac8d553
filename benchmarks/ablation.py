"""HiDe-PET with one part changed at a time: the first tasks of Tiny-A, order 1993, as a table.

    python benchmarks/ablation.py --shared ../shared --out runs/ablation
    python benchmarks/ablation.py --shared ../shared --out runs/ablation --table

Each variant is a run folder; a stopped table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from evertune import Learner, Stream, load_backbone, open_data, run
from evertune.cli.memory import keep_freed_memory

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no TAP": {"tap_epochs": 0},
    "no alignment of the router": {"tii_epochs": 0},
    "no L_CR": {"contrastive": 0.0},
    "L_CR × 10": {"contrastive": 0.1},
    "no ensemble": {"ensemble": 0.0},
    "ensemble on ΔW": {"ensemble_space": "delta"},
    "g: none": {"shared": "none", "start": "previous"},
    "g: first task only": {"shared": "fsa"},
    "g: slowly": {"shared": "sl"},
    "g: first task, then slowly": {"shared": "fsa_sl"},
    "g: averaged": {"shared": "ema"},
    "g: head first": {"shared": "fix_then_tune", "fix_epochs": 2},
    "g: freely": {"shared": "sequential"},
    "e_t from g": {"start": "shared"},
    "e_t from a fresh draw": {"start": "fresh"},
    "statistics: centroids": {"statistics": "centroids"},
    "statistics: covariance": {"statistics": "covariance"},
    "statistics: variance": {"statistics": "variance"},
    "statistics: lowrank": {"statistics": "lowrank"},
    "identity: logsumexp": {"identity": "class_logsumexp"},
    "identity: task head": {"identity": "task_head"},
    "router: mlp": {"router_head": "mlp"},
}
PARTS = ("routed", "uninstructed", "oracle", "within task", "router")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--preset", default="cifar100", help="what is changed; at a batch of 48")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    a = parser.parse_args()
    if not a.table:
        keep_freed_memory()
        learn(a.shared / "data", a.out, a.preset, a.tasks, a.variants or list(VARIANTS))
    print(table(a.out))


def learn(data: Path, out: Path, preset: str, tasks: int, variants: list[str]) -> None:
    train, test = open_data(str(data / "images/cifar100_sub.npz"))
    whole = Stream.class_incremental(train, test, first=10, increment=10, train_per_class=100)
    stream = Stream(whole[:tasks], data=whole.data, settings=whole.settings)
    weights = data / "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
    backbone = load_backbone("vit_tiny_patch16_224", weights=weights, input_size=96)
    batch: dict[str, Any] = {"batch_size": 48}
    if preset == "cifar100":  # published base rate 0.03, scaled by the batch over 256
        batch |= {"rate": 0.03 * 48 / 256, "shared_rate": 0.03 * 48 / 256}
    for name in variants:
        if (out / name.replace(" ", "_") / "summary.json").exists():
            continue
        learner = Learner(
            "hide_pet", backbone, preset=preset, precision="bf16", progress=False, **batch | VARIANTS[name]
        )
        run(stream, learner, out / name.replace(" ", "_"), references=False)
        print(table(out).splitlines()[-1], flush=True)


def table(out: Path) -> str:
    """Final accuracy (%) by part."""
    lines = [f"| | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
    for name in VARIANTS:
        file = out / name.replace(" ", "_") / "summary.json"
        if file.exists():
            summary = json.loads(file.read_text())["summary"]
            cells = [f"{summary[part]['final_accuracy_sample']:.1f}" for part in PARTS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
