"""evertune: frozen pre-trained transformers that keep learning.

A frozen *backbone* turns an image or a text into a feature; a *tuning* steers it from outside; a *head* turns the
feature into class scores; *statistics* are kept instead of data; a *method* says what to train when a *task* arrives;
the *engine* runs it; the *learner* is the thing you keep.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evertune.backbones import load_backbone as load_backbone
    from evertune.comparison import compare as compare
    from evertune.diagnostics import Diagnosis as Diagnosis
    from evertune.diagnostics import diagnose as diagnose
    from evertune.engine import Seeds as Seeds
    from evertune.errors import EvertuneError as EvertuneError
    from evertune.evaluation import AccuracyMatrix as AccuracyMatrix
    from evertune.evaluation import Protocol as Protocol
    from evertune.evaluation import summary as summary
    from evertune.few_shot import FewShot as FewShot
    from evertune.hub import pull as pull
    from evertune.hub import push as push
    from evertune.learner import Learner as Learner
    from evertune.learner import LearnerFolder as LearnerFolder
    from evertune.learner import Predictions as Predictions
    from evertune.runs import run as run
    from evertune.streams import ArraySource as ArraySource
    from evertune.streams import Splits as Splits
    from evertune.streams import Stream as Stream
    from evertune.streams import Task as Task
    from evertune.streams import TestView as TestView
    from evertune.streams import TextSource as TextSource
    from evertune.streams import TextView as TextView
    from evertune.streams import TrainView as TrainView
    from evertune.streams import open_data as open_data
    from evertune.streams import open_splits as open_splits
    from evertune.streams import summarise as summarise
    from evertune.streams import write_manifest as write_manifest

__version__ = "0.1.0"

_HOME = {
    "AccuracyMatrix": "evaluation",
    "ArraySource": "streams",
    "Diagnosis": "diagnostics",
    "EvertuneError": "errors",
    "FewShot": "few_shot",
    "Learner": "learner",
    "LearnerFolder": "learner",
    "Predictions": "learner",
    "Protocol": "evaluation",
    "Seeds": "engine",
    "Splits": "streams",
    "Stream": "streams",
    "Task": "streams",
    "TestView": "streams",
    "TextSource": "streams",
    "TextView": "streams",
    "TrainView": "streams",
    "compare": "comparison",
    "diagnose": "diagnostics",
    "load_backbone": "backbones",
    "open_data": "streams",
    "open_splits": "streams",
    "pull": "hub",
    "push": "hub",
    "run": "runs",
    "summarise": "streams",
    "summary": "evaluation",
    "write_manifest": "streams",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``import evertune`` costs nothing and loads no framework."""
    if name in _HOME:
        return getattr(import_module(f"evertune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'evertune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
