"""What is kept instead of data."""

from evertune.statistics.distance import Match, TaskCentroids
from evertune.statistics.features import TaskFeatures
from evertune.statistics.gaussian import ClassGaussians
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
    "Gram",
    "Growing",
    "Match",
    "SectionMeans",
    "Selection",
    "ShownClasses",
    "TaskCentroids",
    "TaskFeatures",
    "holdout",
    "moved",
    "others",
    "select_ridge",
]
