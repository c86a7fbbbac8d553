"""The learner: what users hold. It learns tasks as they arrive, predicts, and is kept in a folder."""

from evertune.learner.learner import FORMAT, Learner, Told

__all__ = ["FORMAT", "Learner", "Told"]
