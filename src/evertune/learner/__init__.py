"""The learner: what users hold. It learns tasks as they arrive, predicts, and is kept in a folder."""

from evertune.learner.folder import LearnerFolder, Version
from evertune.learner.forgetting import Forgotten
from evertune.learner.learner import Learner
from evertune.learner.measuring import Assessment, assess
from evertune.learner.predictions import Predictions
from evertune.learner.temperature import Temperature
from evertune.learner.told import Told

__all__ = [
    "Assessment",
    "Forgotten",
    "Learner",
    "LearnerFolder",
    "Predictions",
    "Temperature",
    "Told",
    "Version",
    "assess",
]
