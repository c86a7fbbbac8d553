"""A run as its folder keeps it: configuration, protocol, integer matrix, and what it took; read without a framework."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from evertune.errors import EvertuneError, RunError, StorageError
from evertune.evaluation import CONVENTIONS, AccuracyMatrix, Protocol, summary, what_would_print
from evertune.evaluation.metrics import ROUTER

CONFIG = ("method", "preset", "options", "seeds", "precision", "protocol")
"""What the configuration of every run says."""

BESIDES = ("seeds", "protocol", "former_protocols", "task_incremental")
"""What it says that does not make another row of a comparison."""

ORDER = ("classes", "order", "order_seed")
"""What a stream says of the order of arrival."""


@dataclass(frozen=True, eq=False)
class KeptRun:
    """What a run folder says. ``stages`` of its ``tasks`` were measured; ``finished`` once the results are written.

    ``seconds`` is what learning took, ``stored`` the bytes of the learner's files, ``parameters`` the most that were
    trained at once; each None where the run did not note it. ``costs`` has those of `evertune.costs.COSTS` it noted.
    """

    folder: Path
    config: Mapping[str, Any]
    protocol: Protocol
    matrix: AccuracyMatrix
    references: Mapping[str, float]
    finished: bool
    seconds: float | None = None
    stored: int | None = None
    parameters: int | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> KeptRun:
        """The run in ``folder``.

        Raises
        ------
        RunError
            There is no run, or one whose configuration is of another format.
        StorageError
            A file is damaged.
        """
        folder = Path(folder)
        if not is_run(folder):
            raise RunError(f"{folder} holds no run: name a folder that 'evertune run' wrote.")
        config = require_config(_json(folder / "config.json"), folder)
        protocol = Protocol.from_json(_text(folder / "protocol.json"))
        if protocol.hash != config["protocol"]:
            raise StorageError(
                f"{folder}: its configuration names the protocol {config['protocol']}, the one beside it is "
                f"{protocol.hash}. Files of two runs were mixed: restore a copy, or run it again."
            )
        matrix = AccuracyMatrix()
        if (folder / "matrix.json").exists():
            try:
                matrix = AccuracyMatrix.from_json(_text(folder / "matrix.json"))
            except StorageError as error:
                raise StorageError(f"{folder / 'matrix.json'}: {error}") from error
        results = _json(folder / "summary.json") if (folder / "summary.json").exists() else {}
        log = _log(folder / "log.jsonl")
        seconds = sum(entry["seconds"] for entry in log) if log else None
        trained = [phase["parameters"] for entry in log for phase in entry.get("phases", ()) if "parameters" in phase]
        return cls(
            folder,
            config,
            protocol,
            matrix,
            results.get("references", {}),
            finished=results.get("protocol") == protocol.hash,  # another one: tasks were added since
            seconds=seconds,
            stored=_stored(folder / "learner"),
            parameters=max(trained, default=None),
            costs={} if seconds is None else {"learning_seconds": seconds, **results.get("cost", {})},
        )

    @property
    def tasks(self) -> int:
        """Tasks of the whole stream."""
        return len(self.protocol["stream"]["tasks"])

    @property
    def stages(self) -> int:
        """Tasks learned and measured."""
        return self.matrix.stages

    @property
    def order(self) -> int | None:
        """The seed of the order of arrival, None where it was given or is the data's own."""
        seed = self.protocol["seeds"].get("order")
        return seed if isinstance(seed, int) else None

    def value(self, metric: str, part: str | None = None) -> float:
        """A metric in percent, one of `metric_names`, of the method's answer unless a part is named; NaN if not known.

        Metrics of other code bases are unrounded only where they print them so.
        """
        convention, dot, quantity = metric.rpartition(".")
        if not dot:
            return summary(self.matrix)[part or self.matrix.primary].get(metric, math.nan)
        new = self.protocol["stream"]["kind"] == "class"
        printed = what_would_print(self.matrix, part, conventions=[convention], new_classes=new)
        value = printed[convention]["numbers"][quantity]["value"]
        return math.nan if value is None else float(value)

    @property
    def settings(self) -> dict[str, Any]:
        """What learns and how: the configuration without seeds, protocols, and what is only measured besides."""
        return {name: value for name, value in self.config.items() if name not in BESIDES}

    @property
    def condition(self) -> Protocol:
        """The protocol without the order of arrival: what runs have to share for their numbers to be comparable.

        Early runs wrote their precision into the configuration only; here it stands in the protocol as in later ones.
        """
        fields = dict(self.protocol)
        stream = {name: value for name, value in fields["stream"].items() if name not in ORDER}
        tasks = stream["tasks"]
        data = stream.get("data") or {}
        if not data or None in data.values():  # tasks made by hand: only their own digests name the data
            stream["task data"] = sorted(json.dumps([task["train"], task["test"]], sort_keys=True) for task in tasks)
        stream["tasks"] = len(tasks)
        stream["classes"] = sorted(fields["stream"]["classes"])
        fields["stream"] = stream
        fields["seeds"] = {name: value for name, value in fields["seeds"].items() if name != "order"}
        fields["preprocessing"] = {"precision": self.config["precision"], **fields["preprocessing"]}
        return Protocol(fields)

    @property
    def draw(self) -> tuple[str, str]:
        """In which a run differs from the others of its row: the order of arrival and the seeds, as JSON."""
        stream = self.protocol["stream"]
        arrival = [stream["classes"], [[task["name"], task["classes"]] for task in stream["tasks"]]]
        return json.dumps(arrival), json.dumps(self.config["seeds"], sort_keys=True)

    @property
    def drawn(self) -> str:
        """The draw in words: "order 1993, seed 0"."""
        order = self.order
        seeds = self.config["seeds"]
        same = len(set(seeds.values())) == 1
        words = f"seed {next(iter(seeds.values()))}" if same else "seeds " + "/".join(map(str, seeds.values()))
        return f"{'given order' if order is None else f'order {order}'}, {words}"


def metric_names() -> tuple[str, ...]:
    """The names that `KeptRun.value` knows: those of `summary`, and "pilot.forgetting" for a number of a convention."""
    least = AccuracyMatrix()
    for part in (least.primary, ROUTER):
        least.record(0, 0, 0, 1, part=part)
    printed = [f"{name}.{quantity}" for name, convention in CONVENTIONS.items() for quantity in convention.numbers]
    return (*summary(least)[least.primary], *printed)


def completed_options(run: KeptRun) -> dict[str, Any]:
    """The options of a run, with the default of those that its method has gained since: what was done before them."""
    from evertune.methods import get_method

    fields = dataclasses.fields(get_method(run.config["method"]).config_type)
    defaults = {f.name: f.metadata["default"] for f in fields}
    plain: dict[str, Any] = json.loads(json.dumps(defaults))
    return plain | dict(run.config["options"])


def require_config(config: Any, place: Path) -> Mapping[str, Any]:
    """What a configuration says; RunError where it is of another format."""
    missing = [name for name in CONFIG if name not in config] if isinstance(config, dict) else CONFIG
    if missing:
        raise RunError(
            f"{place} holds a run of another format: its configuration lacks {', '.join(missing)}. Run it again."
        )
    return cast(Mapping[str, Any], config)


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read ({error}): restore it from a copy.") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except ValueError as error:
        raise StorageError(f"{file} is damaged ({error}): restore it from a copy.") from error


def _log(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        return [json.loads(line) for line in _text(file).splitlines()]
    except ValueError as error:
        raise StorageError(f"{file} is damaged ({error}): restore it from a copy.") from error


def _stored(learner: Path) -> int | None:
    """Bytes of what is needed to predict and go on: the description and the last state."""
    if not (learner / "learner.json").is_file():
        return None
    try:
        state: str = _json(learner / "learner.json")["state"]["file"]
        return sum((learner / file).stat().st_size for file in ("learner.json", state))
    except (OSError, EvertuneError, KeyError, TypeError):  # the numbers stand without it
        return None
