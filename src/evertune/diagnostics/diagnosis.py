"""One look at a learner: its tangent kernel on images of its tasks, the tasks' overlap in it, and the gap terms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evertune.diagnostics.features import feature_overlap
from evertune.diagnostics.gaps import gap_terms
from evertune.diagnostics.kernel import MEMORY, Kernel, centred_alignment, drift, exact, sketched
from evertune.diagnostics.tangent import Tangent
from evertune.engine import read_json, write_json
from evertune.errors import ConfigError, DataError, StreamError
from evertune.learner import Learner
from evertune.report import KernelView, kernel_table
from evertune.streams import Batches, Source, Task

SHOWN = 20
"""Eigenvalues that are told of each block."""


@dataclass(frozen=True)
class Diagnosis:
    """A kernel, the numbers read from it (ready for JSON), and what should be known about them."""

    kernel: Kernel
    numbers: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def learner(self) -> str:
        return f"{self.numbers['method']} ({self.numbers['preset']})"

    @property
    def title(self) -> str:
        return f"{self.learner} on {self.numbers['backbone']}"

    def report(self) -> str:
        """What was computed, and one row per task."""
        n, sketch = self.numbers, self.numbers["sketch"]
        how = (
            "exact" if sketch is None else f"sketched in {sketch['dimensions']} dimensions, error {sketch['error']:.1%}"
        )
        return "\n".join(
            [
                self.title,
                f"tangent kernel of {sum(self.kernel.images)} {n['split']} images × {n['outputs']} outputs "
                f"under {n['parameters']} parameters, {how}",
                "",
                kernel_table(n),
            ]
        )

    def view(self) -> KernelView:
        """For :func:`evertune.report.draw_kernel`."""
        k = self.kernel
        return KernelView(k.overlap().numpy(), k.matrix.numpy(), k.tasks.numpy(), k.names)

    def save(self, folder: Path) -> None:
        """``kernel.safetensors`` and ``kernel.json`` (:meth:`Kernel.save`), and ``diagnosis.json`` with the numbers."""
        self.kernel.save(folder)
        write_json(folder / "diagnosis.json", {**self.numbers, "notes": list(self.notes)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises StorageError where a file is missing or damaged."""
        numbers = read_json(folder / "diagnosis.json")
        return cls(Kernel.load(folder), numbers, tuple(numbers.pop("notes")))


def diagnose(
    learner: Learner,
    tasks: Iterable[Task],
    *,
    per_task: int = 32,
    outputs: int = 8,
    split: str = "train",
    sketch: int | None = None,
    memory: int = MEMORY,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Diagnosis:
    """The tangent kernel of a learner on images of its tasks, with all that NTK-CL's theory reads from it.

    Parameters
    ----------
    learner
        Is not changed.
    tasks
        That it has learned.
    per_task, split, seed
        So many images of each task's ``"train"`` or ``"test"`` part, in the test view, drawn by class as evenly as
        possible. The seed also decides the directions of :class:`Tangent` and the sketch.
    outputs
        Directions of the class space that scores are projected on, where there are more classes.
    sketch, memory
        Dimensions to project the Jacobian on, or None for the exact kernel; bytes that either may take.
    ridge
        λ of the gap terms as a share of a task's trace, on average over tasks. There the tangent model starts from
        scores of zero and learns the tasks in order, their targets one for the class and zero for all others.

    Raises
    ------
    ConfigError
        The learner has no trained tuning parameters, the kernel would not fit, or an option is out of range.
    StreamError
        A task with classes the learner does not know, or without images in that part.
    """
    tasks = list(tasks)
    _require(learner, tasks, per_task, split, ridge)
    progress = learner.engine.progress
    tangent = Tangent(learner.method, learner.backbone, outputs=outputs, seed=seed, progress=progress)
    x, y, owner = _drawn(learner, tasks, per_task, split, seed)
    if sketch is None:
        matrix, error = exact(tangent, x, memory=memory), None
    else:
        matrix, error = sketched(tangent, x, sketch, seed=seed, memory=memory)
    kernel = Kernel(matrix, owner, tuple(task.name for task in tasks), error)
    traces = [float(kernel.block(t).trace()) for t in range(len(tasks))]
    if not max(traces) > 0:
        raise DataError("The kernel is zero: no tuning parameter reaches the scores of these images.")
    _, features = tangent.evaluate(x)
    targets = tangent.project(F.one_hot(y, len(learner.classes))).cpu()
    strength = ridge * sum(traces) / len(tasks)
    numbers = {
        "method": learner.method.name,
        "preset": learner.preset,
        "backbone": learner.backbone.identity.name,
        "classes": len(learner.classes),
        "split": split,
        "seed": seed,
        "inputs": _digest(x, learner.classes, outputs, seed),
        "outputs": tangent.outputs,
        "parameters": sum(p.numel() for p in tangent.parameters.values()),
        "sketch": None if sketch is None else {"dimensions": sketch, "error": error},
        "kernel": _spectrum(kernel),
        "tasks": [
            {"name": name, "images": count, **_spectrum(kernel, t)}
            for t, (name, count) in enumerate(zip(kernel.names, kernel.images, strict=True))
        ],
        "overlap": kernel.overlap().tolist(),
        "features": {name: table.tolist() for name, table in vars(feature_overlap(features, y, owner)).items()},
        "gaps": gap_terms(matrix, owner, targets, torch.zeros_like(targets), strength),
    }
    notes = tuple(
        f"{name} has {count} {split} images, fewer than {per_task}: all are used"
        for name, count in zip(kernel.names, kernel.images, strict=True)
        if count < per_task
    )
    return Diagnosis(kernel, numbers, notes)


def kernel_drift(before: Diagnosis, after: Diagnosis) -> list[dict[str, float]] | None:
    """D4 of each task between two diagnoses, or None where they are not of the same images, classes and directions."""
    if before.numbers["inputs"] != after.numbers["inputs"]:
        return None
    pairs = ((before.kernel.block(t), after.kernel.block(t)) for t in range(len(before.kernel.names)))
    return [{"drift": drift(a, b), "alignment": centred_alignment(a, b)} for a, b in pairs]


def balanced(source: Source, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """At most ``count`` rows, in file order: one of each class, then a second one, as long as there are any."""
    order = generator.permutation(len(source))
    turns = np.zeros(len(source), dtype=np.int64)
    for label in np.unique(source.labels):
        own = source.labels[order] == label
        turns[own] = np.arange(own.sum())
    return np.sort(order[np.argsort(turns, kind="stable")[:count]])


def _drawn(learner: Learner, tasks: list[Task], per_task: int, split: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [n, 3, S, S] of all tasks, the learner's class index [n] and the task number [n] of each."""
    images, labels, owners = [], [], []
    for number, task in enumerate(tasks):
        source = task.train if split == "train" else task.test
        if source is None or not len(source):
            raise StreamError(f"Task {task.name!r} has no {split} images to diagnose on.")
        rows = balanced(source, per_task, np.random.default_rng((seed, number)))
        batches = Batches(source.select(rows), learner.test_view, len(rows), shuffle=False, seed=(0,), epoch=0)
        images += [batch for _, batch, _ in batches]
        position = [learner.classes.index(name) if name in learner.classes else -1 for name in source.classes]
        labels.append(torch.tensor(position)[torch.as_tensor(source.labels[rows])])
        owners.append(torch.full((len(rows),), number))
    return torch.cat(images), torch.cat(labels), torch.cat(owners)


def _require(learner: Learner, tasks: list[Task], per_task: int, split: str, ridge: float) -> None:
    if split not in ("train", "test"):
        raise ConfigError(f"split {split!r} does not exist: choose 'train' or 'test'.")
    if per_task < 1:
        raise ConfigError(f"per_task={per_task} must be at least 1.")
    if not 0 < ridge < float("inf"):
        raise ConfigError(f"ridge={ridge} must be positive.")
    if not tasks or not learner.classes:
        raise StreamError("There is nothing to diagnose: give tasks that the learner has learned.")
    for task in tasks:
        unknown = [name for name in task.classes if name not in learner.classes]
        if unknown:
            raise StreamError(f"Task {task.name!r} has classes that were never learned: {', '.join(unknown[:10])}.")


def _spectrum(kernel: Kernel, task: int | None = None) -> dict[str, Any]:
    found = asdict(kernel.spectrum(task))
    return {**found, "eigenvalues": found["eigenvalues"][:SHOWN].tolist()}


def _digest(images: Tensor, classes: tuple[str, ...], outputs: int, seed: int) -> str:
    """What the rows of a kernel stand for, whatever the learner."""
    described = f"{classes}{outputs}{seed}{tuple(images.shape)}".encode() + images.numpy().tobytes()
    return hashlib.sha256(described).hexdigest()
