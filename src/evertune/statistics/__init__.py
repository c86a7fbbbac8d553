"""What is kept instead of data."""

from evertune.statistics.features import TaskFeatures
from evertune.statistics.gram import CHUNK, Gram, Selection, select_ridge
from evertune.statistics.growing import Growing
from evertune.statistics.means import ClassMeans
from evertune.statistics.splits import holdout

__all__ = ["CHUNK", "ClassMeans", "Gram", "Growing", "Selection", "TaskFeatures", "holdout", "select_ridge"]
