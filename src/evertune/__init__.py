"""evertune: frozen pre-trained transformers that keep learning.

A frozen *backbone* turns an image into a feature; a *tuning* steers it from outside; a *head* turns the feature into
class scores; *statistics* are kept instead of data; a *method* says what to train when a *task* arrives; the *engine*
runs it; the *learner* is the thing you keep.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evertune.backbones import load_backbone as load_backbone
    from evertune.diagnostics import Diagnosis as Diagnosis
    from evertune.diagnostics import diagnose as diagnose
    from evertune.engine import Seeds as Seeds
    from evertune.errors import EvertuneError as EvertuneError
    from evertune.evaluation import AccuracyMatrix as AccuracyMatrix
    from evertune.evaluation import Protocol as Protocol
    from evertune.evaluation import summary as summary
    from evertune.few_shot import FewShot as FewShot
    from evertune.learner import Learner as Learner
    from evertune.runs import run as run
    from evertune.streams import Stream as Stream
    from evertune.streams import Task as Task
    from evertune.streams import TestView as TestView
    from evertune.streams import TrainView as TrainView
    from evertune.streams import open_data as open_data

__version__ = "0.1.0"

_HOME = {
    "AccuracyMatrix": "evaluation",
    "Diagnosis": "diagnostics",
    "EvertuneError": "errors",
    "FewShot": "few_shot",
    "Learner": "learner",
    "Protocol": "evaluation",
    "Seeds": "engine",
    "Stream": "streams",
    "Task": "streams",
    "TestView": "streams",
    "TrainView": "streams",
    "diagnose": "diagnostics",
    "load_backbone": "backbones",
    "open_data": "streams",
    "run": "runs",
    "summary": "evaluation",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``import evertune`` costs nothing and loads no framework."""
    if name in _HOME:
        return getattr(import_module(f"evertune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'evertune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
