"""How the ``evertune`` presets were chosen: on the training data of the first task alone.

The first task's classes are dealt into pseudo-tasks and a fifth of their *training* images is held out; every candidate
learns the pseudo-tasks in turn and is scored on the held-out images of all of them. So a candidate must serve classes
it was not tuned on, which is what the first task's own validation accuracy cannot show. No test image is read.

    python benchmarks/choose_defaults.py DATA.npz --weights WEIGHTS --stage first
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from evertune import Learner, Stream, load_backbone, open_data, run
from evertune.backbones import Backbone
from evertune.streams import Source

FIRST: dict[str, dict[str, Any]] = {
    f"{kind} {blocks} {rate:g}": {"tuning": kind, "blocks": blocks, "rate": rate, **extra}
    for blocks in ("0-2", "0-5", "all")
    for kind, extra, rates in (
        ("lora", {"tuning.rank": 5, "tuning.alpha": 5.0, "tuning.targets": "qkv"}, (5e-3, 1e-2)),
        ("ssf", {}, (1e-2,)),
        ("adapter", {"tuning.scale": 1.0}, (3e-3,)),
        ("vpt", {"tuning.prompts": 5}, (1e-2,)),
    )
    for rate in rates
}
FOLLOW: dict[str, dict[str, Any]] = {
    f"{rate:g}, cos {cos:g}, {epochs} epochs": {
        "follow_epochs": epochs,
        "follow_horizon": epochs,
        "follow_rate": rate,
        "lambda_cos": cos,
    }
    for rate, cos, epochs in (
        (1e-3, 1.0, 3), (3e-3, 1.0, 3), (1e-3, 10.0, 3), (3e-3, 10.0, 3), (3e-4, 1.0, 3), (1e-3, 1.0, 6),
        (3e-3, 10.0, 6), (1e-3, 24.0, 3), (3e-3, 24.0, 3),
    )
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "tuning": "lora", "blocks": "0-4",
    "batch_size": 48, "epochs": 5, "rate": 5e-3, "schedule": "constant", "contrastive": 0.01, "ensemble": 0.1,
    "shared": "fsa_sl", "shared_epochs": 5, "shared_follow_epochs": "none", "shared_rate": 5e-3, "slow": 0.1,
    "start": "previous", "statistics": "centroids", "align_rate": 0.005, "align_scale": "none",
}  # fmt: skip
"""HiDe-PET as its CIFAR-100 files have it, at a batch of 48."""
ONCE: dict[str, Any] = {"shared": "fsa", "shared_epochs": 10, "shared_follow_epochs": 0}
ALIGNED: dict[str, Any] = {"statistics": "lowrank", "align_rate": 12.5, "align_scale": "energy"}
HIDE: dict[str, dict[str, Any]] = {
    name: PLAIN | changes
    for name, changes in {
        "as published": {},
        "lowrank": {"statistics": "lowrank"},
        "covariance": {"statistics": "covariance"},
        "g once": {"shared": "fsa"},
        "g freely": {"shared": "sequential"},
        "g 10 epochs, then slowly": {"shared_epochs": 10, "shared_follow_epochs": 5},
        "g 10 epochs, once": ONCE,
        "e from g": {"start": "shared"},
        "all blocks": {"blocks": "all"},
        "first 3 blocks, qkv": {
            "blocks": "0-2", "tuning.rank": 5, "tuning.alpha": 5.0, "tuning.targets": "qkv", "tuning.init": "lora"
        },
        "cosine": {"schedule": "cosine", "shared_schedule": "cosine"},
        "e at 2e-3": {"rate": 2e-3},
        "e at 1e-2": {"rate": 1e-2},
        "once, lowrank": ONCE | {"statistics": "lowrank"},
        "once, lowrank, from g": ONCE | {"statistics": "lowrank", "start": "shared"},
        "once, lowrank, all blocks": ONCE | {"statistics": "lowrank", "blocks": "all"},
        "once, lowrank, all blocks, from g": ONCE | {"statistics": "lowrank", "blocks": "all", "start": "shared"},
        "once, lowrank, energy": ONCE | ALIGNED,
        "slowly, lowrank, energy": ONCE | ALIGNED | {"shared": "fsa_sl", "shared_follow_epochs": 5},
        **{
            f"{kind} at {rate:g}": ONCE | ALIGNED | {"tuning": kind, "rate": rate, "shared_rate": rate}
            for kind, rates in (("sequential_adapter", (2e-3, 5e-3, 1e-2)), ("prefix", (5e-3, 1e-2, 3e-2)))
            for rate in rates
        },
        "once, lowrank, e at 2e-3": ONCE | {"statistics": "lowrank", "rate": 2e-3},
    }.items()
}  # fmt: skip

LORA_ALIKE: dict[str, Any] = {
    "blocks": "0-2", "epochs": 10, "optimizer": "adam", "rate": 5e-3, "weight_decay": 0.0, "sigma_init": 10.0,
    "average": "mean", "follow_epochs": 3, "follow_rate": 1e-3, "answer": "hybrid", "w_dis": 0.03,
    "hybrid_prototypes": "stored", "alpha": 0.1, "beta": 1.0, "gamma": 0.3, "plain": False,
}  # fmt: skip
"""NTK-CL with the training settings of the other presets."""
QKV: dict[str, Any] = {"tuning": "lora", "tuning.rank": 5, "tuning.alpha": 5.0, "tuning.targets": "qkv"}
NTK: dict[str, dict[str, Any]] = {
    name: LORA_ALIKE | ({} if "tuning" in changes else QKV) | changes
    for name, changes in {
        "lora alike": {},
        "once": {"follow_epochs": 0},
        "first set kept": {"average": "first"},
        "first set kept, 5e-4": {"average": "first", "follow_rate": 5e-4},
        "first set kept, 2e-3": {"average": "first", "follow_rate": 2e-3},
        "adapter, all blocks": {"tuning": "adapter", "tuning.bottleneck": 16, "tuning.scale": 1.0, "blocks": "all"},
        "lora, first 5 blocks": {"blocks": "0-4"},
        "no dissimilarity": {"w_dis": 0.0},
        "dissimilarity 0.3": {"w_dis": 0.3},
        "with plain": {"plain": True, "beta": 0.1},
        "plain, first kept, fused": {"plain": True, "beta": 0.1, "average": "first", "hybrid_prototypes": "fused"},
        "plain 0.3, first kept, fused": {"plain": True, "beta": 0.3, "average": "first", "hybrid_prototypes": "fused"},
        "plain, mean, fused": {"plain": True, "beta": 0.1, "hybrid_prototypes": "fused"},
        "plain, once, fused": {"plain": True, "beta": 0.1, "follow_epochs": 0, "hybrid_prototypes": "fused"},
        "5 epochs follow": {"follow_epochs": 5},
        "first set kept, fused": {"average": "first", "hybrid_prototypes": "fused"},
        "first set kept, fused, pull 1": {"average": "first", "hybrid_prototypes": "fused", "w_reg": 1.0},
        "mean, fused": {"hybrid_prototypes": "fused"},
    }.items()
}


STRUCTURE: dict[str, Any] = {
    "average": "first", "plain": True, "beta": 0.3, "hybrid_prototypes": "fused", "answer": "together",
}  # fmt: skip
PUBLISHED: dict[str, Any] = {"preset": "reference", "epochs": 5, "batch_size": 48}
CORRECTED: dict[str, dict[str, Any]] = {
    name: PUBLISHED | changes
    for name, changes in {
        "as it is": {},
        "released": {"preset": "released"},
        **{f"L_orth at {w:g}": {"w_orth": w} for w in (0.01, 0.1, 1.0, 10.0)},
        **{f"L_dis at {w:g}": {"w_dis": w} for w in (0.0, 0.3, 1.0)},
        **{f"L_reg at {w:g}": {"w_reg": w} for w in (0.01, 0.1)},
        "prompts at zero": {"prompt_init": "zeros"},
        "fused": {"hybrid_prototypes": "fused"},
        **{f"structure, rate {rate:g}": STRUCTURE | {"rate": rate} for rate in (0.025, 0.05, 0.1, 0.2, 0.4)},
    }.items()
}
"""NTK-CL corrected: the weights of terms whose form has changed have to be found again (spec §5)."""

L2P: dict[str, dict[str, Any]] = {
    name: {"sigma_init": 30.0} | options
    for name, options in {
        "alike": {"rate": 5e-3},
        **{f"rate {rate:g}": {"rate": rate} for rate in (1e-3, 2e-4, 5e-5)},
        "rate 0.001, scale 10": {"rate": 1e-3, "sigma_init": 10.0},
        **{f"rate {rate:g}, 60 epochs": {"rate": rate, "epochs": 60} for rate in (1e-3, 2e-4)},
    }.items()
}
DUALPROMPT: dict[str, dict[str, Any]] = {
    "alike": {"rate": 5e-3},
    "rate 1e-3": {"rate": 1e-3},
    "5 keys": {"length": 5},
    "linear": {"head": "linear"},
}
"""Of both, "alike" is the training of the other presets."""
CODA: dict[str, dict[str, Any]] = {
    "as it is": {},
    **{f"rate {rate:g}": {"rate": rate} for rate in (1e-3, 2e-2)},
    **{f"L_ortho at {weight:g}": {"orthogonality": weight} for weight in (0.0, 0.1, 1.0)},
}
S_PROMPT: dict[str, dict[str, Any]] = {
    "as it is": {},
    "10 tokens": {"tuning.length": 10},
    "5 centroids": {"centroids": 5},
}
SLCA: dict[str, dict[str, Any]] = {
    "as it is": {},
    "not aligned": {"align": False},
    "5 epochs of alignment": {"align_epochs": 5},
    "later tasks at a tenth": {"slow": 0.1},
}
EASE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no plain section": {"beta": 0.0},
    "synthesis as released": {"synthesis": "later"},
    "rate 1e-3": {"rate": 1e-3},
}
TUNA: dict[str, dict[str, Any]] = {
    "as it is": {},
    "not aligned": {"align_epochs": 0},
    "full covariances": {"statistics": "covariance"},
    "rate 1e-3": {"rate": 1e-3},
}

STAGES = {
    "first": ("ranpac", FIRST, (5, 5)),
    "follow": ("safe", FOLLOW, (4, 3)),
    "hide": ("hide_pet", HIDE, (2, 2)),
    "ntk": ("ntk_cl", NTK, (2, 2)),
    "ntk-reference": ("ntk_cl", CORRECTED, (2, 2)),
    "l2p": ("l2p", L2P, (2, 2)),
    "dualprompt": ("dualprompt", DUALPROMPT, (2, 2)),
    "coda": ("coda_prompt", CODA, (5, 5)),
    "s-prompt": ("s_prompt", S_PROMPT, (5, 5)),
    "slca": ("slca", SLCA, (2, 2)),
    "ease": ("ease", EASE, (2, 2)),
    "tuna": ("tuna", TUNA, (2, 2)),
}


def pseudo_stream(train: Source, classes: tuple[str, ...], sizes: tuple[int, int], per_class: int, turn: int) -> Stream:
    """The first task's training data as a small stream; ``turn`` rotates which classes come first."""
    rows = np.concatenate([train.rows_of([name])[:per_class] for name in classes])
    held = np.arange(len(rows)) % 5 == turn % 5
    rotated = classes[turn * sizes[0] % len(classes) :] + classes[: turn * sizes[0] % len(classes)]
    return Stream.class_incremental(
        train.select(rows[~held]), train.select(rows[held]), first=sizes[0], increment=sizes[1], order=rotated
    )


def score(
    method: str, backbone: Backbone, streams: list[Stream], options: dict[str, Any], precision: str
) -> dict[str, Any]:
    """Final held-out accuracy (%) by part: over all pseudo-tasks, and over the classes that came after the first."""
    everything, after, forgotten, started = [], [], [], time.perf_counter()
    for stream in streams:
        settings = {"preset": "evertune", **options}
        learner = Learner(method, backbone, precision=precision, progress=False, **settings)
        result = run(stream, learner, references=False)
        matrix = result.matrix
        forgotten.append(next(iter(result.summary.values()))["forgetting_with_last_stage"])
        counts = {part: matrix.counts(part) for part in matrix.parts}
        everything.append({part: correct[-1].sum() / totals.sum() for part, (correct, totals) in counts.items()})
        after.append({part: correct[-1, 1:].sum() / totals[1:].sum() for part, (correct, totals) in counts.items()})
    table = {part: round(100 * float(np.mean([r[part] for r in everything])), 2) for part in everything[0]}
    table |= {f"{part}, later classes": round(100 * float(np.mean([r[part] for r in after])), 2) for part in after[0]}
    table["forgetting"] = round(float(np.mean(forgotten)), 2)
    return {**table, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--preprocessing", default="native")
    parser.add_argument("--first", type=int, default=10, help="classes of the first task")
    parser.add_argument("--order-seed", type=int, default=1993)
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--stage", choices=STAGES, default="first")
    parser.add_argument("--only", nargs="+", default=[""], help="candidates whose name contains one of these")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    train, _ = open_data(a.data)
    classes = Stream.class_incremental(
        train, None, first=a.first, increment=a.first, order_seed=a.order_seed, train_per_class=a.train_per_class
    )[0].classes
    backbone = load_backbone(a.backbone, weights=a.weights, input_size=a.input_size, preprocessing=a.preprocessing)
    method, candidates, sizes = STAGES[a.stage]
    streams = [pseudo_stream(train, classes, sizes, a.train_per_class, turn) for turn in range(a.turns)]
    table = {}
    for name, options in candidates.items():
        if any(part in name for part in a.only):
            table[name] = score(method, backbone, streams, options, a.precision)
            print(f"{name:28s} {table[name]}", flush=True)
    if a.out:
        a.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
