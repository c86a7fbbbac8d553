"""The empirical tangent kernel K = J Jᵀ of a set of images, exact or sketched, and its blocks (NTK-CL spec §3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from evertune.diagnostics.tangent import Tangent
from evertune.engine import read_json, read_tensors, write_json, write_tensors
from evertune.errors import ConfigError, DataError, StorageError

FORMAT = 1
MEMORY = 4 << 30
"""Bytes that a kernel may take while it is made, unless told otherwise."""
PARTS = 4
"""Independent parts of a sketch, by whose scatter its error is known."""


def exact(tangent: Tangent, images: Tensor, *, memory: int = MEMORY) -> Tensor:
    """K = J Jᵀ, [n·o, n·o] in float64: rows image by image, the outputs of one image side by side.

    The Jacobian is kept in the tangent's precision and multiplied parameter by parameter in float64.

    Raises
    ------
    ConfigError
        Jacobian and kernel would take more than ``memory`` bytes; nothing has been computed then.
    """
    outputs, groups = tangent.outputs, tangent.groups(images)
    rows = len(images) * outputs
    columns = {slot: tangent.width(slot) for slot in groups}
    largest = max((tangent.parameters[name].numel() for slot in groups for name in tangent.live(slot)), default=0)
    entries = sum(len(members) * outputs * columns[slot] for slot, members in groups.items())
    needed = entries * tangent.dtype.itemsize + 2 * 8 * rows * largest + _gram_bytes(rows)
    if needed > memory:
        hint = _sketch_hint(rows, sum(p.numel() for p in tangent.parameters.values()), memory)
        raise ConfigError(
            f"The exact kernel of {len(images)} images × {outputs} outputs under {max(columns.values())} parameters "
            f"needs {_size(needed)}, more than the limit of {_size(memory)}: {hint}."
        )
    live = {slot: tangent.live(slot) for slot in groups}
    device = tangent.backbone.device
    kept: dict[str, tuple[list[Tensor], Tensor]] = {}
    for name in sorted({name for names in live.values() for name in names}):
        count = sum(len(members) for slot, members in groups.items() if name in live[slot])
        shape = (count, outputs, tangent.parameters[name].numel())
        kept[name] = [], torch.empty(shape, dtype=tangent.dtype, device=device)  # at once, so that none is fragmented
    for members, blocks in tangent.jacobians(images, groups):
        for name, jacobian in blocks.items():
            met, whole = kept[name]
            start = sum(map(len, met))
            whole[start : start + len(members)] = jacobian
            met.append(members)
    total = torch.zeros(rows, rows, dtype=torch.float64, device=device)
    for name in list(kept):
        met, whole = kept.pop(name)
        at = _rows(torch.cat(met), outputs).to(device)
        jacobian = whole.flatten(0, 1).double()
        total[at[:, None], at] += jacobian @ jacobian.T
    return ((total + total.T) / 2).cpu()


def sketched(
    tangent: Tangent, images: Tensor, dimensions: int, *, seed: int = 0, memory: int = MEMORY
) -> tuple[Tensor, float]:
    """An unbiased estimate of K, [n·o, n·o] in float64, from n·o × ``dimensions`` numbers, and its relative error.

    Rows of the Jacobian are projected as they are made: every parameter is added with a random sign to a random one of
    the dimensions (CountSketch: Charikar, Chen & Farach-Colton 2002), once in each of four independent parts, whose
    Gram matrices are averaged.

    Parameters
    ----------
    dimensions
        Rounded down to a multiple of four. The error falls as 1/√dimensions.
    seed
        Of the projection.

    Returns
    -------
    kernel, error
        The error estimates √E‖K̂ − K‖²_F / ‖K‖_F from the scatter of the four parts about their mean. It is that of the
        whole matrix: a block much smaller than this share of K is noise.

    Raises
    ------
    ConfigError
        Fewer dimensions than parts, or more than ``memory`` bytes; nothing has been computed then.
    """
    if dimensions < PARTS:
        raise ConfigError(
            f"A sketch of {dimensions} dimensions is too small: it takes at least {PARTS}, one for each of the parts "
            "whose scatter tells the error; a few thousand are usual."
        )
    outputs, width = tangent.outputs, dimensions // PARTS
    rows, parameters = len(images) * outputs, sum(p.numel() for p in tangent.parameters.values())
    needed = _sketch_bytes(rows, parameters, dimensions)
    if needed > memory:
        raise ConfigError(
            f"A sketch of {len(images)} images × {outputs} outputs in {dimensions} dimensions needs {_size(needed)}, "
            f"more than the limit of {_size(memory)}: {_sketch_hint(rows, parameters, memory)}."
        )
    device, generator = tangent.backbone.device, torch.Generator().manual_seed(seed)
    places: dict[str, tuple[Tensor, Tensor]] = {}
    for name, parameter in tangent.parameters.items():
        shape = (PARTS, parameter.numel())
        bucket = torch.randint(width, shape, generator=generator) + width * torch.arange(PARTS)[:, None]
        sign = torch.randint(2, shape, generator=generator, dtype=torch.int8) * 2 - 1
        places[name] = bucket.to(device), sign.to(device)
    projected = torch.zeros(rows, PARTS * width, dtype=torch.float64, device=device)
    for members, blocks in tangent.jacobians(images):
        part = torch.zeros(len(members) * outputs, PARTS * width, dtype=tangent.dtype, device=device)
        for name, jacobian in blocks.items():
            values = jacobian.flatten(0, 1)
            for bucket, sign in zip(*places[name], strict=True):
                part.scatter_add_(1, bucket.expand_as(values), values * sign)
        projected[_rows(members, outputs).to(device)] = part.double()
    total, squares = projected.new_zeros(rows, rows), 0.0
    for z in torch.split(projected, width, dim=1):
        gram = z @ z.T
        squares += float(gram.square().sum())
        total += gram / PARTS
    size = float(total.square().sum())
    scatter = max(squares - PARTS * size, 0.0) / (PARTS * (PARTS - 1))
    return ((total + total.T) / 2).cpu(), math.sqrt(scatter / max(size - scatter, torch.finfo(torch.float64).tiny))


@dataclass(frozen=True)
class Spectrum:
    """D1 of a symmetric block, from its eigenvalues, the largest first, negative ones of rounding set to 0.

    ``rank`` counts eigenvalues above what float32 Jacobians can resolve, n · 1.2e-7 of the largest; ``condition`` is
    the largest over the smallest of these. ``effective_rank`` is exp of the entropy of λ/Σλ, 0 for a block of zeros.
    """

    trace: float
    effective_rank: float
    rank: int
    condition: float
    eigenvalues: Tensor = field(repr=False)

    @classmethod
    def of(cls, block: Tensor) -> Spectrum:
        values = torch.linalg.eigvalsh((block + block.T) / 2).flip(0).clamp_min(0)
        trace = float(values.sum())
        share = values / trace if trace > 0 else values
        kept = values[values > len(values) * torch.finfo(torch.float32).eps * values[0]]
        return cls(
            trace=trace,
            effective_rank=math.exp(float(torch.special.entr(share).sum())) if trace > 0 else 0.0,
            rank=len(kept),
            condition=float(kept[0] / kept[-1]) if len(kept) else 0.0,
            eigenvalues=values,
        )


@dataclass(frozen=True)
class Kernel:
    """A tangent kernel and whose its rows are.

    Parameters
    ----------
    matrix
        K [n·o, n·o] in float64, symmetric; row = image · o + output.
    tasks
        The number of the task of each image, [n], from 0.
    names
        Of the tasks.
    error
        The estimated relative error of a sketch; None where the kernel is exact.
    """

    matrix: Tensor
    tasks: Tensor
    names: tuple[str, ...]
    error: float | None = None

    def __post_init__(self) -> None:
        rows, images = len(self.matrix), len(self.tasks)
        if not images or rows % images or self.matrix.shape != (rows, rows):
            raise DataError(f"A kernel of shape {list(self.matrix.shape)} does not fit {images} images.")
        absent = sorted(set(range(len(self.names))) ^ set(self.tasks.tolist()))
        if absent:
            raise DataError(f"Tasks {absent} have no image or no name: every task of a kernel needs both.")

    @property
    def outputs(self) -> int:
        return len(self.matrix) // len(self.tasks)

    @property
    def images(self) -> tuple[int, ...]:
        """How many of each task."""
        return tuple(torch.bincount(self.tasks, minlength=len(self.names)).tolist())

    def rows(self, task: int) -> Tensor:
        return _rows((self.tasks == task).nonzero()[:, 0], self.outputs)

    def block(self, task: int, other: int | None = None) -> Tensor:
        """D1 and D2: K_ts [n_t·o, n_s·o]; of one task with itself unless there is another."""
        return self.matrix[self.rows(task)][:, self.rows(task if other is None else other)]

    def norms(self) -> Tensor:
        """‖K_ts‖_F, [T, T]."""
        count = len(self.names)
        norms = torch.zeros(count, count, dtype=torch.float64)
        for t in range(count):
            for s in range(t, count):
                norms[t, s] = norms[s, t] = self.block(t, s).norm()
        return norms

    def overlap(self) -> Tensor:
        """D3: ρ_ts = ‖K_ts‖_F / √(‖K_tt‖_F ‖K_ss‖_F), [T, T] in [0, 1]; a task without a kernel overlaps with none."""
        norms = self.norms()
        own = norms.diagonal()
        scale = (own[:, None] * own).sqrt()
        return torch.where(scale > 0, norms / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0).clamp_max(1.0)

    def spectrum(self, task: int | None = None) -> Spectrum:
        """D1, of one task's block or of the whole."""
        return Spectrum.of(self.matrix if task is None else self.block(task))

    def save(self, folder: Path) -> None:
        """``kernel.safetensors`` and ``kernel.json``."""
        digest = write_tensors(folder / "kernel.safetensors", {"matrix": self.matrix, "tasks": self.tasks})
        content = {"format": FORMAT, "names": list(self.names), "error": self.error, "sha256": digest}
        write_json(folder / "kernel.json", content)

    @classmethod
    def load(cls, folder: Path) -> Kernel:
        """Raises :class:`StorageError` if a file is missing, damaged or of another format."""
        content = read_json(folder / "kernel.json")
        if content.get("format") != FORMAT:
            raise StorageError(f"{folder / 'kernel.json'} is of format {content.get('format')}, not {FORMAT}.")
        tensors = read_tensors(folder / "kernel.safetensors", content["sha256"])
        return cls(tensors["matrix"], tensors["tasks"], tuple(content["names"]), content["error"])


def drift(before: Tensor, after: Tensor) -> float:
    """D4: ‖K_after − K_before‖_F / ‖K_before‖_F, of the same rows at two points of learning."""
    return float((after - before).norm() / before.norm())


def centred_alignment(one: Tensor, other: Tensor) -> float:
    """D4: ⟨HKH, HLH⟩_F / (‖HKH‖_F ‖HLH‖_F) with H = I − 1/n, in [0, 1]: Cortes, Mohri & Rostamizadeh, JMLR 2012."""
    a, b = (m - m.mean(0) - m.mean(1, keepdim=True) + m.mean() for m in (one, other))
    return float((a * b).sum() / (a.norm() * b.norm()))


def _rows(images: Tensor, outputs: int) -> Tensor:
    """The rows of these images."""
    return (images[:, None] * outputs + torch.arange(outputs)).flatten()


def _gram_bytes(rows: int) -> int:
    """Three float64 matrices: the kernel, a product, and the sum being made."""
    return 3 * 8 * rows * rows


def _sketch_bytes(rows: int, parameters: int, dimensions: int) -> int:
    """The projected rows, places and signs of all parameters, and the Gram matrices."""
    return 8 * rows * dimensions + 9 * PARTS * parameters + _gram_bytes(rows)


def _sketch_hint(rows: int, parameters: int, memory: int) -> str:
    """What would fit."""
    fitting = next((k for k in (8192, 4096, 2048, 1024, 512) if _sketch_bytes(rows, parameters, k) <= memory), None)
    if fitting is None:
        return "take fewer images or outputs, or raise the limit"
    needed = _size(_sketch_bytes(rows, parameters, fitting))
    return f"a sketch of {fitting} dimensions would need {needed}; or take fewer images or outputs, or raise the limit"


def _size(count: float) -> str:
    """Bytes for people.

    >>> _size(3 << 30), _size(5 << 20)
    ('3.0 GiB', '5.0 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
