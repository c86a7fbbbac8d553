"""A method with one part changed at a time: the first tasks of Tiny-A, order 1993, as a table.

    python benchmarks/ablation.py --shared ../shared --out runs/ablation --method ntk_cl --tasks 4
    python benchmarks/ablation.py --shared ../shared --out runs/ablation --method ntk_cl --table

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

HIDE: dict[str, dict[str, Any]] = {
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
NTK: dict[str, dict[str, Any]] = {
    "as it is": {},
    "channel alone": {"branch": "channel"},
    "patch alone": {"branch": "patch"},
    "no average: the frozen set stays pre-trained": {"average": "none"},
    "the mean of all sessions": {"average": "mean"},
    "two frozen sets: the first session, the mean of the others": {"average": "mean", "frozen": 2, "segment": 1},
    "no L_dis": {"w_dis": 0.0},
    "L_dis × 10": {"w_dis": 0.3},
    "L_dis as released": {"dis": "released"},
    "no L_orth": {"w_orth": 0.0},
    "L_orth × 1000": {"w_orth": 0.1},
    "no L_reg": {"w_reg": 0.0},
    "no regulariser": {"w_dis": 0.0, "w_orth": 0.0, "w_reg": 0.0},
    "with the plain section": {"plain": True},
    "prompts as released (zeros)": {"prompt_init": "zeros"},
    "two views of each image, in turn": {"views": 2},
}
METHODS = {
    "hide_pet": (HIDE, ("routed", "uninstructed", "oracle", "within task", "router")),
    "ntk_cl": (NTK, ("together", "hybrid", "channel", "patch")),
}
BATCH = 48
SCALED: dict[tuple[str, str], dict[str, Any]] = {
    ("hide_pet", "cifar100"): {"rate": 0.03 * BATCH / 256, "shared_rate": 0.03 * BATCH / 256},
}
"""Published base rates, for batches of 256, brought to that batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="all of the method's, or some")
    parser.add_argument("--method", choices=METHODS, default="hide_pet")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--preset", default="evertune", help="what is changed; at a batch of 48")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    a = parser.parse_args()
    out = a.out / a.method
    if not a.table:
        keep_freed_memory()
        learn(a.method, a.shared / "data", out, a.preset, a.tasks, a.variants or list(METHODS[a.method][0]))
    print(table(a.method, out))


def learn(method: str, data: Path, out: Path, preset: str, tasks: int, variants: list[str]) -> None:
    train, test = open_data(str(data / "images/cifar100_sub.npz"))
    whole = Stream.class_incremental(train, test, first=10, increment=10, train_per_class=100)
    stream = Stream(whole[:tasks], data=whole.data, settings=whole.settings)
    weights = data / "weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
    backbone = load_backbone("vit_tiny_patch16_224", weights=weights, input_size=96)
    batch: dict[str, Any] = {"batch_size": BATCH} | SCALED.get((method, preset), {})
    for name in variants:
        if (out / name.replace(" ", "_") / "summary.json").exists():
            continue
        options = batch | METHODS[method][0][name]
        learner = Learner(method, backbone, preset=preset, precision="bf16", progress=False, **options)
        run(stream, learner, out / name.replace(" ", "_"), references=False)
        print(table(method, out).splitlines()[-1], flush=True)


def table(method: str, out: Path) -> str:
    """Final accuracy (%) by part, and the answer's forgetting."""
    variants, parts = METHODS[method]
    lines = [f"| | {' | '.join(parts)} | forgetting |", "|---" * (len(parts) + 2) + "|"]
    for name in variants:
        file = out / name.replace(" ", "_") / "summary.json"
        if file.exists():
            summary = json.loads(file.read_text())["summary"]
            cells = [f"{summary[part]['final_accuracy_sample']:.1f}" if part in summary else "" for part in parts]
            forgetting = next(iter(summary.values()))["forgetting_with_last_stage"]
            lines.append(f"| {name} | {' | '.join(cells)} | {forgetting:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
