"""What learning and answering cost, in a unit that no busy neighbour changes: floating-point operations, counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evertune.backbones import Backbone, Passes
from evertune.methods import Recipe

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
"""What torch knows how to take apart."""


class Meter:
    """Counts forward equivalents F: operations over those of one plain pass of one example of the same shape.

    Counted are matrix products, convolutions and attentions, forward and backward, by the formulas of torch's
    ``FlopCounterMode``; what goes element by element is not, nor are solvers. Counting changes no bit of a result.
    """

    def __init__(self, backbone: Backbone, precision: Callable[[], AbstractContextManager[object]]) -> None:
        self.backbone, self.precision = backbone, precision
        self._units: dict[tuple[int, ...], int] = {}

    @contextmanager
    def counting(self, passes: Passes, told: Callable[[float], None]) -> Iterator[None]:
        """Tell the F that what happens inside takes for each example of the batch of ``passes``."""
        with Operations() as operations:
            yield
        whole = sum(len(part) * self.unit(part) for part in passes.parts if len(part))
        if whole:  # one of several processes may have no part of a batch
            told(operations.count / whole)

    def unit(self, inputs: Tensor) -> int:
        """Operations of a plain pass of one example of the shape of ``inputs`` [B, ...]."""
        shape = tuple(inputs.shape[1:])
        if shape not in self._units:
            with Operations() as operations, torch.no_grad():
                Passes(self.backbone, inputs[:1], precision=self.precision)()
            self._units[shape] = operations.count
        return self._units[shape]


class Operations(TorchDispatchMode):
    """Counts the floating-point operations inside, two for a multiplication with its addition.

    Unlike ``FlopCounterMode`` it takes a composite operation apart by torch's own kernel for it, which is what runs
    without: the one in Python that replaces ``matmul`` there multiplies in another order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch says nothing of its types
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = formulas().get(func.overloadpacket)
        if formula is None and func.has_kernel_for_dispatch_key(COMPOSITE):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=result)
        return result


def alike(recipe: Recipe, epoch: int) -> int:
    """For how many epochs ``epoch`` stands: for all that show new views, or all that show them again."""
    new = min(recipe.views or recipe.epochs, recipe.epochs)
    return {new: recipe.epochs - new, 0: new}.get(epoch, 0)


@functools.cache
def formulas() -> dict[Any, Callable[..., int]]:
    """Torch's, by operation; early releases lack those for the fused attention of CPUs."""
    from torch.utils.flop_counter import flop_registry

    aten, fused = torch.ops.aten, "_scaled_dot_product_flash_attention"
    known: dict[Any, Callable[..., int]] = dict(flop_registry)
    for ending in ("", "_backward"):
        formula = known[getattr(aten, f"{fused}{ending}")]
        known.setdefault(getattr(aten, f"{fused}_for_cpu{ending}"), formula)
    return known
