"""What HiDe-PET's adaptive accumulation decides on a stream of four data sets, and what that is worth.

    python benchmarks/accumulation.py --shared ../shared --out runs/accumulation
    python benchmarks/accumulation.py --out runs/accumulation --table

MNIST, CIFAR-10, Omniglot alphabets and Caltech-101 arrive in turns, at most 50 training images per class, seen by
ViT-Ti/16 at 96 px. First the distances between tasks, from training features alone: which criterion can tell a new data
set from a new task of a known one. Then learners that open shared sets by it beside learners with a single one, and
5-way 5-shot learning of classes none of them was taught. A stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evertune import AccuracyMatrix, Learner, Stream, Task, load_backbone, open_data, run
from evertune.backbones import Backbone
from evertune.engine import read_json, write_json
from evertune.few_shot import episodes, few_shot, mean_interval
from evertune.statistics import TaskCentroids
from evertune.streams import Source

Pools = Mapping[str, tuple[Source, Source]]

WEIGHTS = "data/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.f32.safetensors"
ALPHABETS = ("Balinese", "Early_Aramaic", "Greek")
TAUGHT = 45
"""Caltech-101's classes that are taught, in the field's order of its names; the others are for few shots."""

CRITERIA: dict[str, dict[str, Any]] = {
    "5th smallest": {"order": 5},
    "10th smallest": {"order": 10},
    "0.03 quantile": {"quantile": 0.03},
    "0.1 quantile": {"quantile": 0.1},
    "median": {"quantile": 0.5},
}
MEANS = "mean directions"
"""A criterion for comparison, which is no option of the method: ‖m/‖m‖ − m'/‖m'‖‖ of two tasks' mean directions."""

ACCUMULATE = {"accumulate": True, "accumulate_quantile": 0.03, "accumulate_threshold": 0.8}
"""The options that err least often on these tasks, whatever their order and the draws of k-means."""

RUNS: dict[str, dict[str, Any]] = {
    "several g, e from g": {**ACCUMULATE, "start": "shared"},
    "several g, e from the last": {**ACCUMULATE, "start": "previous"},
    "one g, e from g": {"start": "shared"},
    "one g, e from the last": {"start": "previous"},
}
FEW_SHOTS = ("several g, e from g", "one g, e from g")
"""What e starts from does not touch g, so that these speak for all."""
EPISODES: dict[str, Any] = {"ways": 5, "shots": 5, "queries": 5, "count": 100}


# -- data --------------------------------------------------------------------------------------------------------------


def material(images: Path) -> tuple[Stream, Pools]:
    """The stream, and pools (support, query) of classes that are not in it."""
    streams = {}
    for name in ("mnist", "cifar10"):
        data = open_data(images / f"{name}_sub.npz")
        streams[name] = Stream.class_incremental(*data, first=5, increment=5, order_seed=None, train_per_class=50)

    omniglot = open_data(images / "omniglot_small.npz")
    alphabets: dict[str, list[str]] = {}
    for character in omniglot[0].classes:
        alphabets.setdefault(character.split("/")[0], []).append(character)
    streams["omniglot"] = Stream(
        [Task(i, name, *only(omniglot, alphabets.pop(name))) for i, name in enumerate(ALPHABETS)]
    )

    caltech = open_data(images / "caltech101_sub.zip")
    names = np.random.RandomState(1993).permutation(caltech[0].classes).tolist()
    streams["caltech101"] = Stream.class_incremental(
        *only(caltech, names[:TAUGHT]), first=15, increment=15, order=names[:TAUGHT]
    )
    held = {
        "omniglot": only(omniglot, [character for left in alphabets.values() for character in left]),
        "caltech101": only(caltech, names[TAUGHT:]),
        "cifar100": open_data(images / "cifar100_sub.npz"),
    }
    return Stream.chain(streams, interleave=True), held


def only(data: tuple[Source, Source], names: Sequence[str]) -> tuple[Source, Source]:
    train, test = (part.select(part.rows_of(names)) for part in data)
    return train, test


# -- which tasks are far -----------------------------------------------------------------------------------------------


def detection(features: Mapping[str, Tensor], orders: int) -> dict[str, Any]:
    """Distances of every task to those before it, in the order of ``features`` and in random ones."""
    names = list(features)
    means = {name: F.normalize(F.normalize(x, dim=1).mean(0), dim=0) for name, x in features.items()}
    met: list[dict[str, Any]] = []
    for seed in range(orders):
        order = np.random.default_rng(seed).permutation(names).tolist() if seed else names
        known, generator = TaskCentroids(), torch.Generator().manual_seed(seed)
        for place, name in enumerate(order):
            match = known.nearest(features[name])
            if match is not None:
                found = criteria(match.distances[:, match.task].sort().values)
                found[MEANS] = min(float((means[name] - means[other]).norm()) for other in order[:place])
                new = data_set(name) not in map(data_set, order[:place])
                met.append({"task": name, "nearest": order[match.task], "new": new, **found})
            known.add(features[name], 0, generator)
    return {"own order": met[: len(names) - 1], "criteria": {name: gap(met, name) for name in (*CRITERIA, MEANS)}}


def data_set(task: str) -> str:
    return task.split("/")[0]


def criteria(ascending: Tensor) -> dict[str, float]:
    """A task's distance by every criterion, as :class:`TaskCentroids` takes it."""
    return {
        name: float(ascending[c["order"] - 1] if "order" in c else ascending.quantile(c["quantile"]))
        for name, c in CRITERIA.items()
    }


def gap(met: Sequence[Mapping[str, Any]], criterion: str) -> dict[str, Any]:
    """How far apart new data sets and known ones are, and the wrong decisions of the best threshold between."""
    known = [m[criterion] for m in met if not m["new"]]
    new = [m[criterion] for m in met if m["new"]]
    errors = [sum(d > at for d in known) + sum(d <= at for d in new) for at in known + new]
    middle = (max(known) + min(new)) / 2
    return {"known": max(known), "new": min(new), "middle": middle, "errors": min(errors), "of": len(met)}


# -- few shots ---------------------------------------------------------------------------------------------------------


def shots(learner: Learner, pools: tuple[Source, Source], shared: Any) -> dict[str, Any]:
    """Accuracy of every episode, and the sets that were chosen."""
    accuracies, chosen = [], []
    for number, (support, query) in enumerate(episodes(*pools, **EPISODES)):
        found = few_shot(learner, support, seed=number, shared=shared)
        correct, total = found.evaluate(query)
        accuracies.append(correct / total)
        chosen.append(found.shared)
    return {"accuracies": accuracies, "sets": chosen}


# -- tables ------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def detection_tables(out: Path) -> str:
    found = read_json(out / "detection.json")
    tasks = [
        [m["task"], m["nearest"], "new" if m["new"] else "known", *(f"{m[name]:.3f}" for name in found["criteria"])]
        for m in found["own order"]
    ]
    gaps = [
        [name, *(f"{g[key]:.3f}" for key in ("known", "new", "middle")), f"{g['errors']} of {g['of']}"]
        for name, g in found["criteria"].items()
    ]
    return "\n\n".join(
        (
            table(["task", "nearest task", "its data set is", *found["criteria"]], tasks),
            table(["criterion", "known: at most", "new: at least", "middle", "fewest errors"], gaps),
        )
    )


def accuracy_table(out: Path) -> str:
    """Final accuracies, the mean of the seeds with their standard deviation."""
    parts = ("router", "oracle", "within task")
    sets = ("mnist", "cifar10", "omniglot", "caltech101")
    rows = []
    for name in RUNS:
        found: dict[str, list[float]] = {}
        for folder in sorted((out / name).glob("*/")):
            if not (folder / "summary.json").exists():
                continue
            summary = read_json(folder / "summary.json")["summary"]
            answer = next(iter(summary.values()))
            values = {"final": answer["final_accuracy_sample"], "mean of tasks": answer["final_accuracy_task"]}
            values |= {part: summary[part]["final_accuracy_sample"] for part in parts}
            matrix = AccuracyMatrix.from_json((folder / "matrix.json").read_text())
            correct, totals = matrix.counts()
            for own in sets:
                rows_of = [i for i, task in enumerate(matrix.names) if data_set(task) == own]
                values[own] = 100 * correct[-1, rows_of].sum() / totals[rows_of].sum()
            values["sets"] = sum(bool(entry.get("opened")) for entry in history(folder)) or 1
            for key, value in values.items():
                found.setdefault(key, []).append(value)
        if found:
            rows.append([name, len(found["final"]), *(spread(found[key]) for key in found)])
            header = ["run", "seeds", *found]
    return table(header, rows) if rows else ""


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def history(folder: Path) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = read_json(folder / "learner" / "learner.json")["history"]
    return kept


def decision_table(out: Path) -> str:
    """What the first learner that accumulates decided for each task."""
    folder = next(iter(sorted((out / next(iter(RUNS))).glob("*/"))))
    rows = [
        [
            entry["task"],
            len(entry["new_classes"]),
            f"{entry['distance']:.3f}" if number else "–",
            entry["shared set"],
            "opened" if entry["opened"] else "reused",
        ]
        for number, entry in enumerate(history(folder))
    ]
    return table(["task", "classes", "distance", "shared set", ""], rows)


def few_shot_table(out: Path) -> str:
    rows = []
    for data, found in read_json(out / "few_shot.json").items():
        plain = found["plain"]["accuracies"]
        rows.append([data, "plain model", "", percent(plain), ""])
        for name, result in found.items():
            if name != "plain":
                used = ", ".join(f"{k}: {n}" for k, n in sorted(Counter(result["sets"]).items()))
                paired = [b - a for a, b in zip(plain, result["accuracies"], strict=True)]
                rows.append([data, name, used, percent(result["accuracies"]), percent(paired, sign="+")])
    return table(["classes of", "features of", "episodes by set", "accuracy", "over plain"], rows)


def percent(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_interval(values)
    return f"{100 * mean:{sign}.2f} ± {100 * half:.2f}"


# -- all of it ---------------------------------------------------------------------------------------------------------


def measure(shared: Path, out: Path, seeds: Sequence[int]) -> None:
    stream, held = material(shared / "data/images")
    backbone = load_backbone("vit_tiny_patch16_224", weights=shared / WEIGHTS, input_size=96, preprocessing="native")
    if not (out / "detection.json").exists():
        plain = make_learner(backbone, 0)
        features = {task.name: plain.engine.features(task.train) for task in stream}
        write_json(out / "detection.json", detection(features, orders=40))
    for name, options in RUNS.items():
        for seed in seeds:
            learner = make_learner(backbone, seed, **options)
            first = (name, seed) == (next(iter(RUNS)), seeds[0])
            print(f"{name}, seed {seed}", flush=True)
            run(stream, learner, out / name / str(seed), references=first, on_stage=say)
            if name in FEW_SHOTS:
                few_shots(learner, held, f"{name}, seed {seed}", out / "few_shot.json")


def few_shots(learner: Learner, held: Pools, name: str, file: Path) -> None:
    """Episodes with the sets that the learner chooses, and once with the plain model, added to what the file holds."""
    results = read_json(file) if file.exists() else {}
    for data, pools in held.items():
        for key, shared in (("plain", None), (name, "auto")):
            if key not in results.setdefault(data, {}):
                results[data][key] = shots(learner, pools, shared)
                write_json(file, results)


def make_learner(backbone: Backbone, seed: int, **options: Any) -> Learner:
    return Learner("hide_pet", backbone, preset="evertune", precision="bf16", seeds=seed, progress=False, **options)


def say(stage: int, matrix: AccuracyMatrix) -> None:
    correct, totals = matrix.counts()
    seen = slice(stage + 1)
    print(f"  {matrix.names[stage]}: {100 * correct[stage, seen].sum() / totals[seen].sum():.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/accumulation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    a = parser.parse_args()
    if not a.table:
        measure(a.shared, a.out, a.seeds)
    print("\n\n".join((detection_tables(a.out), accuracy_table(a.out), decision_table(a.out), few_shot_table(a.out))))


if __name__ == "__main__":
    main()
