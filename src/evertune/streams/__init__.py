"""Where tasks come from: labelled examples, cut into tasks that arrive in order, shown through views, in batches.

>>> train, test = open_data("digits")
>>> stream = Stream.class_incremental(train, test, first=2, increment=2, order_seed=None)
>>> [task.classes for task in stream]
[('0', '1'), ('2', '3'), ('4', '5'), ('6', '7'), ('8', '9')]
"""

from evertune.streams.arrays import ArraySource
from evertune.streams.batches import Batch, Batches
from evertune.streams.files import FileSource
from evertune.streams.longtail import long_tailed
from evertune.streams.make import make_stream
from evertune.streams.manifest import write_manifest
from evertune.streams.named import NAMES
from evertune.streams.opening import open_data, open_splits
from evertune.streams.source import Source, Subset
from evertune.streams.splits import Splits
from evertune.streams.stream import Stream
from evertune.streams.summary import DataSummary, summarise
from evertune.streams.task import Kind, Task
from evertune.streams.text import TextView
from evertune.streams.texts import TextSource
from evertune.streams.views import TestView, TrainView, View

__all__ = [
    "NAMES",
    "ArraySource",
    "Batch",
    "Batches",
    "DataSummary",
    "FileSource",
    "Kind",
    "Source",
    "Splits",
    "Stream",
    "Subset",
    "Task",
    "TestView",
    "TextSource",
    "TextView",
    "TrainView",
    "View",
    "long_tailed",
    "make_stream",
    "open_data",
    "open_splits",
    "summarise",
    "write_manifest",
]
