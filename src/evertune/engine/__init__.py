"""Runs methods: phases, devices, precision, processes, files."""

from evertune.engine.disk_cache import DiskCache
from evertune.engine.engine import Engine
from evertune.engine.meter import Meter
from evertune.engine.progress import Checkpoint, Notes, PhaseReport, Place, Progress
from evertune.engine.runtime import Runtime, Seeds
from evertune.engine.store import read_json, read_tensors, write_atomic, write_json, write_tensors

__all__ = [
    "Checkpoint",
    "DiskCache",
    "Engine",
    "Meter",
    "Notes",
    "PhaseReport",
    "Place",
    "Progress",
    "Runtime",
    "Seeds",
    "read_json",
    "read_tensors",
    "write_atomic",
    "write_json",
    "write_tensors",
]
