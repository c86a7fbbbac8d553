"""Runs methods: phases, devices, precision, processes, files."""

from evertune.engine.disk_cache import DiskCache
from evertune.engine.engine import Engine, PhaseReport
from evertune.engine.runtime import Runtime, Seeds
from evertune.engine.store import read_json, read_tensors, write_atomic, write_json, write_tensors

__all__ = [
    "DiskCache",
    "Engine",
    "PhaseReport",
    "Runtime",
    "Seeds",
    "read_json",
    "read_tensors",
    "write_atomic",
    "write_json",
    "write_tensors",
]
