"""A learner as an ONNX model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from evertune.errors import ExportError
from evertune.export.files import replacing
from evertune.export.graph import OUTPUTS, Graph
from evertune.export.tracing import Run, about, check, on_cpu, reason, silence, trace
from evertune.learner import Learner

NEEDED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


def export_onnx(
    learner: Learner, file: str | os.PathLike[str], *, task: str | int | None = None, opset: int | None = None
) -> Path:
    """Write what the learner computes now as an ONNX model, compare it with the library, and give its path.

    The input is ``images``, float32 [B, 3, S, S], or ``input_ids``, int64 [B, N]; the outputs are ``scores`` and
    ``probabilities`` [B, K]; B and N are free. Everything is float32. More on both, on ``task`` and on what a model
    holds is in :class:`Graph`. The model's metadata are ``evertune`` (version), ``method``, ``classes``, ``backbone``,
    ``preprocessing``, ``temperature`` and, if one was told, ``task``; lists and dictionaries as JSON.

    The resize is not part of the model. With Pillow, and S and the filter as in ``preprocessing`` (bicubic unless the
    learner was made with another view; where ``resize`` is a number, it is the short side before the centre S × S is
    cut out)::

        pixels = np.asarray(image.convert("RGB").resize((S, S), Image.Resampling.BICUBIC))
        images = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255

    Parameters
    ----------
    learner
        It stays as it is, and the model does not follow what it learns later.
    file
        Written whole or not at all. Weights of more than 2 GB, which one ONNX file cannot hold, come to lie in
        ``<file>.data`` beside it.
    task
        Answer the classes of this task alone.
    opset
        Version of the operator set; by default torch's.

    Raises
    ------
    ExportError
        Nothing was learned yet, the method has no static graph, the extra ``export`` is not installed, the operator set
        cannot be served, or what was written differs from the library.
    StreamError
        There is no such task.
    StorageError
        The file cannot be written; a former one is intact.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'evertune[export]'.")
    file = Path(file)
    with on_cpu(learner):
        graph = Graph(learner, task)
        with replacing(file) as place:
            program = _translated(trace(graph), graph, opset)
            program.model.metadata_props.update(about(learner, graph))
            with silence():
                program.save(place)
            check(learner, graph.task, _opened(place))
    return file


def _translated(traced: ExportedProgram, graph: Graph, opset: int | None) -> Any:
    """torch's ``ONNXProgram``, in which no weight lies twice and no name of a file of this machine is left."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    free = {0: "batch", 1: "length"} if graph.backbone.modality == "text" else {0: "batch"}
    try:
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                traced,
                input_names=["input_ids" if graph.backbone.modality == "text" else "images"],
                output_names=OUTPUTS,
                opset_version=opset,
                dynamo=True,
                dynamic_shapes=(free,),
                optimize=False,
                verbose=False,
            )
            assert program is not None
            # Not optimize(): its rules take x + 1e-9 for x, and a logarithm behind that then meets zeros.
            common.CommonSubexpressionEliminationPass()(program.model)  # first, so that branches share constants
            fold_constants(program.model)
            common.RemoveUnusedNodesPass()(program.model)
            common.ClearMetadataAndDocStringPass()(program.model)
    except Exception as error:  # torch raises many kinds
        raise ExportError(f"{graph.method.name} cannot be translated to ONNX: {reason(error)}") from error
    served = program.model.opset_imports[""]
    if opset is not None and served != opset:
        raise ExportError(
            f"ONNX's operator set {opset} cannot be served here: leave opset out, or try another from 18 (torch's own "
            "translations) on."
        )
    return program


def _opened(file: Path) -> Run:
    """The model in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> dict[str, Tensor]:
        found = session.run(list(OUTPUTS), {name: inputs.numpy()})
        return dict(zip(OUTPUTS, map(torch.from_numpy, found), strict=True))

    return run
