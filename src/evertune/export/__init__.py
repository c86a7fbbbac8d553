"""A learner in formats that others read."""

from evertune.export.card import model_card
from evertune.export.graph import Graph
from evertune.export.merged import export_timm
from evertune.export.onnx import export_onnx
from evertune.export.peft import export_peft
from evertune.export.program import export_program

__all__ = ["Graph", "export_onnx", "export_peft", "export_program", "export_timm", "model_card"]
