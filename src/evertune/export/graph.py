"""A learner's prediction as one module: what :mod:`torch.export` and ONNX are made from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evertune.backbones import Backbone, HFEncoder, Passes
from evertune.errors import ExportError
from evertune.learner import Learner
from evertune.learner.predictions import temperature_of
from evertune.learner.told import classes_of_tasks, task_numbers
from evertune.methods import Method
from evertune.tuning import Bank

OUTPUTS = ("scores", "probabilities")


class Graph(nn.Module):
    """Images or token ids to ``scores`` and ``probabilities`` [B, K] over the learner's classes, in float32.

    Images are RGB, float32 [B, 3, S, S] in [0, 1], cropped and resized as the learner's test view does; mean and
    standard deviation are applied inside. Token ids are int64 [B, N], made by the learner's tokenizer and padded
    behind; what is padding is found inside. Probabilities are softmax(scores / temperature).

    The backbone is the learner's own, and the other tensors share their memory with the learner's. Of the method only
    what its scores are computed from belongs to the state, so what it keeps for learning on (second moments,
    covariances) does not leave with a graph.

    Parameters
    ----------
    learner
        It has learned something, and its method's scores are a static graph.
    task
        The task, by name or number, to which all inputs are known to belong: only its classes are answered, others
        get −∞. This is a static graph for every method.

    Raises
    ------
    ExportError
        Nothing was learned yet, or the scores are no static graph.
    StreamError
        There is no such task.
    """

    elsewhere: Tensor | None

    def __init__(self, learner: Learner, task: str | int | None = None) -> None:
        super().__init__()
        if not learner.classes:
            raise ExportError("This learner has learned nothing yet, so there is nothing to export.")
        method = learner.method
        if method.dynamic and task is None:
            raise ExportError(
                f"{method.name} has no static graph: {method.dynamic}. Export one task instead, whose classes alone "
                f"are then answered: task={learner.history[-1]['task']!r} (--task)."
            )
        self.task = None if task is None else int(task_numbers(learner.history, task, 1))
        belongs, device = classes_of_tasks(learner.history, learner.classes), learner.backbone.device
        self.register_buffer("elsewhere", None if self.task is None else ~belongs[self.task].to(device))
        self.temperature = temperature_of(learner)
        self.backbone = learner.backbone
        self.method = method
        with _Read() as read, torch.no_grad():
            self(example(self.backbone, 2).to(device))
        self.method = cast(Method, _thin(method, read.seen))
        self.eval()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        if self.elsewhere is None or self.task is None:
            scores = next(iter(self.method.scores(Passes(self.backbone, inputs)).values()))
        else:
            tasks = torch.full((inputs.shape[0],), self.task, device=inputs.device)
            told = self.method.told(_OneTask(self.backbone, inputs, self.task), tasks)
            scores = told.masked_fill(self.elsewhere, -torch.inf)
        return {"scores": scores, "probabilities": (scores / self.temperature).softmax(1)}


class _OneTask(Passes):
    """Passes of inputs that are all of one task: what is routed goes one way, and no decision is left."""

    def __init__(self, backbone: Backbone, inputs: Tensor, task: int) -> None:
        super().__init__(backbone, inputs)
        self.task = task

    def routed(self, slots: Any, ids: Tensor) -> Tensor:
        return self(cast(Bank, slots)[self.task])


class _Read(TorchFunctionMode):
    """Notes which tensors are used (by :func:`id`) as long as it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._note((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))

    def _note(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self.seen.add(id(value))
            elif isinstance(value, list | tuple):
                self._note(value)


def _thin(module: nn.Module, read: set[int]) -> nn.Module:
    """A frozen stand-in for ``module`` over the same memory, whose state are only the tensors that were ``read``.

    Counts become plain numbers: what a method decides by them is decided once, while the graph is made.
    """
    thin = copy.copy(module)
    thin._modules = {name: m if m is None else _thin(m, read) for name, m in module._modules.items()}
    thin._parameters, thin._buffers = {}, {}
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None and not value.ndim and value.dtype == torch.long:
            thin.__dict__[name] = int(value)
        elif value is None or id(value) in read:
            thin._buffers[name] = None if value is None else value.detach()
        else:
            thin.__dict__[name] = value.detach()
    return thin


def example(backbone: Backbone, batch: int, length: int = 8) -> Tensor:
    """Random inputs of the kind that ``backbone`` reads, always the same: pixels of 8 bits, or token ids of texts of
    different lengths, padded to ``length`` tokens."""
    rng = torch.Generator().manual_seed(batch)
    if not isinstance(backbone, HFEncoder):
        size = backbone.identity.as_dict()["input_size"]
        return torch.randint(256, (batch, 3, size, size), generator=rng).float() / 255
    padding, words = backbone.tokenizer.pad_token_id, len(backbone.tokenizer)
    ids = torch.randint(words - 1, (batch, length), generator=rng)
    ids += ids >= padding  # any token but padding
    lengths = torch.linspace(length, 2, batch).round()
    return ids.masked_fill(torch.arange(length) >= lengths[:, None], padding)
