"""A learner as a program of ``torch.export``."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import cast

import torch

from evertune.errors import ExportError
from evertune.export.files import replacing
from evertune.export.graph import Graph
from evertune.export.tracing import Run, about, check, on_cpu, silence, trace
from evertune.learner import Learner


def export_program(learner: Learner, file: str | os.PathLike[str], *, task: str | int | None = None) -> Path:
    """Write what the learner computes now as a ``.pt2`` file; gives its path.

    ``torch.export.load(file).module()(inputs)`` then gives ``scores`` and ``probabilities`` [B, K] by name, without
    evertune, for batches of any size. Inputs, ``task`` and what a graph holds are as in :class:`Graph`; how images are
    prepared is told by :func:`export_onnx`. What ONNX has as metadata is here the file ``evertune.json`` inside, which
    ``torch.export.load(file, extra_files=found)`` puts into ``found = {"evertune.json": ""}``.

    A ``.pt2`` file is an archive of torch's own and may hold pickles, so open those alone whose origin you trust.
    evertune itself never reads one but to compare what it has just written with the library.

    Raises
    ------
    ExportError
        Nothing was learned yet, the method has no static graph, or what was written differs from the library.
    StreamError
        There is no such task.
    StorageError
        The file cannot be written; a former one is intact.
    """
    file = Path(file)
    if file.suffix != ".pt2":
        raise ExportError(f"{file}: torch expects the ending .pt2 of such a file.")
    with on_cpu(learner):
        graph = Graph(learner, task)
        with replacing(file) as place:
            program, said = trace(graph), json.dumps(about(learner, graph), ensure_ascii=False)
            content = io.BytesIO()  # writing files itself, torch ends the process where the disk is full
            with silence():
                torch.export.save(program, content, extra_files={"evertune.json": said})
                place.write_bytes(content.getbuffer())
                module = torch.export.load(place).module()
            check(learner, graph.task, cast(Run, module))
    return file
