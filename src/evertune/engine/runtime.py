"""Device, precision and processes (Accelerate), and the seeds of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, pad_across_processes, reduce
from torch import Tensor, nn

from evertune.errors import ConfigError, EvertuneError, StorageError, nearest

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Seeds:
    """Separate seeds: ``init`` of parameters and projections, ``augmentation`` with the order of batches and dropout,
    ``sampling`` of held-out rows. The order of classes belongs to the stream and has its own."""

    init: int = 0
    augmentation: int = 0
    sampling: int = 0

    def __post_init__(self) -> None:
        negative = [f"{name}={value}" for name, value in self.as_dict().items() if value < 0]
        if negative:
            raise ConfigError(f"Seeds are whole numbers from 0: {', '.join(negative)}.")

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Runtime:
    """Where and how tensors are computed.

    Parameters
    ----------
    device
        ``"auto"`` (what Accelerate finds), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    precision
        ``"fp32"`` or ``"bf16"`` for the backbone's passes; statistics and heads stay in float32 and float64.

    Notes
    -----
    Started by ``accelerate launch`` or ``torchrun``, every process takes its part of each batch: gradients are
    averaged, and statistics see the gathered features, so all processes hold the same learner.
    """

    def __init__(self, device: str = "auto", precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"Precision {precision!r} does not exist. {nearest(precision, PRECISIONS)}")
        self.state = PartialState(cpu=device == "cpu")
        try:
            self.device: torch.device = self.state.device if device == "auto" else torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"Device {device!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto' or 'cpu'."
            ) from error
        if self.device.type not in ("cpu", "cuda", "xpu"):
            raise ConfigError(
                f"Device {device!r} cannot be used: statistics are kept in float64, which it does not have. Use 'cpu'."
            )
        self.precision = precision

    @property
    def rank(self) -> int:
        return int(self.state.process_index)

    @property
    def world(self) -> int:
        return int(self.state.num_processes)

    @property
    def main(self) -> bool:
        return bool(self.state.is_main_process)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of backbone passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def inputs(self, inputs: Tensor) -> Tensor:
        """On the device: images uint8 [B, 3, S, S] as float32 in [0, 1], token ids [B, N] as they are."""
        inputs = inputs.to(self.device, non_blocking=True)
        return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs

    def gather(self, part: Tensor) -> Tensor:
        """The batch's rows of all processes, in order; parts may differ in length by a row or be empty."""
        if self.world == 1:
            return part
        lengths = gather(torch.tensor([len(part)], device=self.device)).tolist()
        whole = gather(pad_across_processes(part.contiguous()))
        longest = max(lengths)
        return torch.cat([whole[i * longest : i * longest + n] for i, n in enumerate(lengths)])

    def part(self, whole: Tensor) -> Tensor:
        """This process's rows of a batch, as :class:`evertune.streams.Batches` divides it: undoes :meth:`gather`."""
        return whole.tensor_split(self.world)[self.rank]

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Σ over processes of ``weight`` · gradient, in place; ``weight`` is this process's share of the batch."""
        if self.world == 1:
            return
        for p in parameters:
            if p.requires_grad:
                local = torch.zeros_like(p) if p.grad is None else p.grad * weight
                p.grad = reduce(local, "sum")

    def sum(self, value: Tensor) -> Tensor:
        """Σ over processes."""
        return cast(Tensor, reduce(value, "sum")) if self.world > 1 else value

    def collect(self, value: T) -> list[T]:
        """The value of each process, in order."""
        return cast(list[T], gather_object([value])) if self.world > 1 else [value]

    def together(self, action: Callable[[], T]) -> T:
        """What ``action`` gives here. If it fails in one process it fails in all, so that none waits for another."""
        failure = None
        try:
            result = action()
        except EvertuneError as error:
            failure = error
        if self.world == 1 and failure is not None:
            raise failure
        if self.world > 1 and self.sum(torch.tensor(float(failure is not None), device=self.device)):
            raise failure or StorageError("Another process failed here: see its message.")
        return result

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def describe(self) -> dict[str, Any]:
        return {"device": self.device.type, "precision": self.precision, "processes": self.world}
