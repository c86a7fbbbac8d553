"""Records of finished runs in one file of JSON lines: all that tables are made of, without the learners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evertune.comparison.kept import KeptRun, require_config
from evertune.errors import EvertuneError, StorageError
from evertune.evaluation import AccuracyMatrix, Protocol


def write_records(file: Path, runs: Mapping[str, KeptRun]) -> None:
    """One line for each of the finished ``runs``, by name in their order; what was in the file goes."""
    from evertune.engine import write_atomic  # heavy, and not needed to read

    lines = [json.dumps({"run": name, **_record(run)}) for name, run in sorted(runs.items())]
    write_atomic(file, "".join(f"{line}\n" for line in lines).encode())


def read_records(file: Path) -> dict[str, KeptRun]:
    """The runs in ``file`` by name; none where there is no such file.

    Raises
    ------
    StorageError
        A line that is no record, or whose parts belong to different runs.
    """
    if not file.exists():
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read ({error}): restore it from a copy.") from error
    found: dict[str, KeptRun] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            name = str(record["run"])
            if name in found:
                raise ValueError(f"{name} has one already")
            found[name] = _run(file / name, record)
        except (ValueError, KeyError, TypeError, AttributeError, EvertuneError) as error:
            raise StorageError(
                f"{file}, line {number}: this is no record of a run ({error}): restore the file from a copy."
            ) from error
    return found


def _record(run: KeptRun) -> dict[str, Any]:
    return {
        "config": run.config,
        "protocol": dict(run.protocol),
        "matrix": json.loads(run.matrix.to_json()),
        "references": run.references,
        "seconds": run.seconds,
        "stored": run.stored,
        "parameters": run.parameters,
        "costs": run.costs,
    }


def _run(place: Path, record: Mapping[str, Any]) -> KeptRun:
    protocol, config = Protocol(record["protocol"]), require_config(record["config"], place)
    if protocol.hash != config["protocol"]:
        raise ValueError(f"its protocol is {protocol.hash}, and it names {config['protocol']}")
    matrix = AccuracyMatrix.from_json(json.dumps(record["matrix"]))
    run = KeptRun(
        place,
        config,
        protocol,
        matrix,
        dict(record["references"]),
        finished=True,
        seconds=record["seconds"],
        stored=record["stored"],
        parameters=record["parameters"],
        costs=dict(record["costs"]),
    )
    if run.stages != run.tasks:
        raise ValueError(f"it has {run.stages} of {run.tasks} tasks")
    return run
