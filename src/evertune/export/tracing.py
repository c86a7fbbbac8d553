"""From a learner to a traced program, and what goes with every file: what it says of itself, and its check."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import evertune
from evertune.backbones import HFEncoder, Passes
from evertune.errors import ExportError
from evertune.export.graph import Graph, example
from evertune.learner import Learner
from evertune.learner.told import classes_of_tasks

BATCHES = (1, 3, 16)
"""A written file is compared with the library on batches of these sizes."""
TOLERANCE = 1e-4
"""What may differ, as a part of the largest score: float32 summed in another order."""

Run = Callable[[Tensor], dict[str, Tensor]]
"""A written file, opened: inputs to outputs by name."""


def trace(graph: Graph) -> ExportedProgram:
    """The graph as a program of torch's operators for batches of any size, and texts of any length that is read.

    Raises
    ------
    ExportError
        The learner cannot be traced; the message holds torch's reason.
    """
    backbone = graph.backbone
    free = {0: Dim("batch", min=1)}
    if backbone.modality == "text":
        free[1] = Dim("length", min=1, max=backbone.shape.tokens)
    try:
        with silence(), torch.no_grad():
            program = torch.export.export(graph, (example(backbone, 2),), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # torch raises many kinds
        raise ExportError(
            f"{graph.method.name} on {backbone.identity.name} cannot be traced: {reason(error)}"
        ) from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names of files of this machine
    return program


def about(learner: Learner, graph: Graph) -> dict[str, str]:
    """What a file says of itself, by name; all but names and versions are JSON."""
    identity, view = learner.backbone.identity.as_dict(), learner.test_view.describe()
    if isinstance(learner.backbone, HFEncoder):
        prepared = {"input_ids": "int64 [B, N], padded behind", "padding": int(learner.backbone.tokenizer.pad_token_id)}
    else:
        prepared = {"images": f"float32 [B, 3, {view['size']}, {view['size']}], RGB, in [0, 1]; mean and std inside"}
    said = {
        "evertune": evertune.__version__,
        "method": learner.method.name,
        "classes": json.dumps(learner.classes, ensure_ascii=False),
        "backbone": json.dumps(identity, ensure_ascii=False),
        "preprocessing": json.dumps({**prepared, **view}),
        "temperature": json.dumps(graph.temperature),
    }
    return said if graph.task is None else said | {"task": learner.history[graph.task]["task"]}


def check(learner: Learner, task: int | None, run: Run) -> None:
    """Compare a written file with the library on random inputs.

    Raises
    ------
    ExportError
        Scores differ by more than rounding, or a class differs; nothing should be left of such a file.
    """
    for batch in BATCHES:
        length = min(5 + 4 * batch, learner.backbone.shape.tokens)
        inputs = example(learner.backbone, batch, length)
        with torch.no_grad():
            theirs, ours = run(inputs)["scores"], _scores(learner, task, inputs)
        known = ours.isfinite()
        limit = TOLERANCE * float(ours[known].abs().max())
        if theirs.shape != ours.shape or not torch.equal(theirs.isfinite(), known):
            raise ExportError(
                f"What was written gives other scores than the library: of shape {list(theirs.shape)} instead of "
                f"{list(ours.shape)}, or not finite where they should be. It was not kept."
            )
        furthest = float((theirs - ours)[known].abs().max())
        chosen = ours.gather(1, theirs.argmax(1, keepdim=True))[:, 0]
        if furthest > limit or bool((ours.amax(1) - chosen > limit).any()):
            raise ExportError(
                f"What was written differs from the library by {furthest:.2g} in a batch of {batch}, more than the "
                f"{limit:.2g} that rounding explains, so it was not kept. Newer releases of torch, onnx or onnxruntime "
                "may help."
            )


def _scores(learner: Learner, task: int | None, inputs: Tensor) -> Tensor:
    """What the library answers."""
    passes = Passes(learner.backbone, inputs)
    if task is None:
        return next(iter(learner.method.scores(passes).values()))
    told = learner.method.told(passes, torch.full((len(inputs),), task))
    return told.masked_fill(~classes_of_tasks(learner.history, learner.classes)[task], -torch.inf)


@contextlib.contextmanager
def on_cpu(learner: Learner) -> Iterator[None]:
    """Inside, the learner is on the CPU, where the arithmetic is float32 throughout."""
    device = learner.engine.runtime.device
    parts = (learner.backbone, learner.method)
    for part in parts:
        part.to("cpu")
    try:
        yield
    finally:
        for part in parts:
            part.to(device)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What exporters have to tell of themselves is not shown."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason(error: Exception) -> str:
    """The kind of an error and the first line it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
