"""What is kept instead of data."""

from evertune.statistics.covariance import principal
from evertune.statistics.distance import Match, TaskCentroids
from evertune.statistics.features import TaskFeatures
from evertune.statistics.gaussian import ClassGaussians
from evertune.statistics.gradient_space import GradientSpace, SecondMoments
from evertune.statistics.gram import CHUNK, Gram, Selection, select_ridge
from evertune.statistics.growing import Growing, moved, others
from evertune.statistics.means import ClassMeans
from evertune.statistics.scatter import ClassScatters
from evertune.statistics.sections import SectionMeans
from evertune.statistics.shown import ShownClasses
from evertune.statistics.splits import holdout

__all__ = [
    "CHUNK",
    "ClassGaussians",
    "ClassMeans",
    "ClassScatters",
    "GradientSpace",
    "Gram",
    "Growing",
    "Match",
    "SecondMoments",
    "SectionMeans",
    "Selection",
    "ShownClasses",
    "TaskCentroids",
    "TaskFeatures",
    "holdout",
    "moved",
    "others",
    "principal",
    "select_ridge",
]
