from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evertune.comparison import Comparison, KeptRun, compare, metric_names
from evertune.errors import ConfigError, RunError, StorageError

Write = Callable[..., Path]

SAFE, RANPAC = [7, 8, 6], [5, 7, 5]
"""Right answers of ten on each of the two tasks at the end, by class order."""
ORDERS = (1993, 1994, 1995)


def runs_of(write_run: Write, root: Path, right: list[int], **settings: Any) -> list[Path]:
    return [
        write_run(root / str(order), [[9], [count, count]], order=order, **settings)
        for order, count in zip(ORDERS, right, strict=True)
    ]


RANPAC_CONFIG = {"method": "ranpac", "options": {"features": 64}}


@pytest.fixture
def two(write_run: Write, tmp_path: Path) -> tuple[list[Path], list[Path]]:
    safe = runs_of(write_run, tmp_path / "safe", SAFE)
    return safe, runs_of(write_run, tmp_path / "ranpac", RANPAC, config=RANPAC_CONFIG)


def metric(found: Comparison, row: int, name: str = "final_accuracy_sample") -> dict[str, Any]:
    told: dict[str, Any] = found.numbers()["rows"][row]["metrics"][name]
    return told


def test_runs_of_several_orders_are_one_row_with_students_interval(two: tuple[list[Path], list[Path]]) -> None:
    found = compare([*two[0], *two[1]])
    assert [row.name for row in found.rows] == ["safe (evertune)", "ranpac (evertune)"]
    values = 10.0 * np.array(SAFE)
    told = metric(found, 0)
    assert told["values"] == values.tolist() and told["mean"] == 70.0
    low, high = stats.t.interval(0.95, 2, loc=70.0, scale=stats.sem(values))
    assert (told["low"], told["high"]) == (pytest.approx(low), pytest.approx(high))
    assert metric(compare([*two[0], *two[1]], level=0.5), 0)["high"] == pytest.approx(
        stats.t.interval(0.5, 2, loc=70.0, scale=stats.sem(values))[1]
    )


def test_differences_are_of_pairs_with_the_same_order(two: tuple[list[Path], list[Path]]) -> None:
    """Given in another order, and the interval is that of the differences −20, −10, −10."""
    found = compare([*two[0], *reversed(two[1])])
    assert metric(found, 0)["difference"] is None
    less = metric(found, 1)["difference"]
    differences = 10.0 * (np.array(RANPAC) - np.array(SAFE))
    low, high = stats.t.interval(0.95, 2, loc=differences.mean(), scale=stats.sem(differences))
    assert less["pairs"] == 3 and less["mean"] == pytest.approx(differences.mean())
    assert (less["low"], less["high"]) == (pytest.approx(low), pytest.approx(high))
    assert less["t_test"] == pytest.approx(stats.ttest_rel(RANPAC, SAFE).pvalue)
    assert found.pairs == ("order 1993, seed 0", "order 1994, seed 0", "order 1995, seed 0")
    turned = compare([*two[0], *two[1]], baseline="ranpac (evertune)")
    assert metric(turned, 0)["difference"]["mean"] == pytest.approx(-less["mean"])


def test_a_folder_of_run_folders_stands_for_all_of_them(two: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    (tmp_path / "safe" / "1993.log").write_text("what was said")
    whole = compare([tmp_path / "safe", tmp_path / "ranpac"]).numbers()
    assert whole == compare([*two[0], *two[1]]).numbers()


def test_costs_are_read_from_the_files(two: tuple[list[Path], list[Path]]) -> None:
    row = compare([*two[0], *two[1]]).numbers()["rows"][0]
    described = (two[0][0] / "learner/learner.json").stat().st_size
    assert (row["seconds"], row["trained_at_once"], row["stored_bytes"]) == (3.0, 14, 1000 + described)
    early = two[0][0]
    log = [json.loads(line) for line in (early / "log.jsonl").read_text().splitlines()]
    for entry in log:
        del entry["phases"][0]["parameters"]
    (early / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in log))
    (early / "learner/learner.json").unlink()
    run = KeptRun.read(early)
    assert run.parameters is None and run.stored is None and run.seconds == 3.0


def test_metrics_by_name_and_by_convention(write_run: Write, tmp_path: Path) -> None:
    """Two tasks of 10 and 30 examples: 9/10, then 6/10 and 27/30; a mean of tasks of 75, of examples 82.5."""
    for order in ORDERS[:2]:
        write_run(tmp_path / str(order), [[9], [6, 27]], order=order, totals=[10, 30])
    found = compare([tmp_path], metrics=["final_accuracy_task", "pilot.final_accuracy", "mammoth.forgetting"])
    assert [metric(found, 0, name)["mean"] for name in found.metrics] == [75.0, 82.5, 30.0]
    printed = compare([tmp_path], convention="ranpac")
    assert printed.metrics == ("ranpac.final_accuracy",)
    assert metric(printed, 0, "ranpac.final_accuracy")["values"] == [75.0, 75.0]


def test_what_was_not_measured_is_no_number(two: tuple[list[Path], list[Path]]) -> None:
    """Forward transfer needs what an untrained learner answers, which no run notes."""
    told = metric(compare([*two[0], *two[1]], metrics=["lopez-paz.forward_transfer"]), 1, "lopez-paz.forward_transfer")
    assert told == {"values": [None] * 3, "mean": None, "low": None, "high": None, "difference": None}
    assert metric(compare(two[0], metrics=["task_identity_sample"]), 0, "task_identity_sample")["mean"] is None


def test_another_part_and_runs_without_it(write_run: Write, tmp_path: Path) -> None:
    with_slow = [
        write_run(tmp_path / f"a{order}", [[9], [7, 7]], order=order, parts={"slow": [[9], [4, 4]]})
        for order in ORDERS[:2]
    ]
    without = write_run(tmp_path / "b", [[9], [7, 7]], config=RANPAC_CONFIG)
    found = compare([*with_slow, without], part="slow")
    assert metric(found, 0)["mean"] == 40.0 and found.rows[0].part == "slow"
    assert found.left_out == (f"{without} (no part 'slow')",)
    with pytest.raises(ConfigError, match=r"No run has a part 'slwo'. Did you mean 'slow'\?"):
        compare([*with_slow, without], part="slwo")


def test_every_run_a_row(two: tuple[list[Path], list[Path]]) -> None:
    found = compare([two[0][0], two[0][1], two[1][0]], by="run")
    assert [row.name for row in found.rows] == [str(two[0][0]), str(two[0][1]), str(two[1][0])]
    assert metric(found, 0)["low"] is None
    assert metric(found, 1)["difference"] is None  # another class order
    assert metric(found, 2)["difference"]["mean"] == pytest.approx(-20.0)
    assert metric(found, 2)["difference"]["low"] is None


def test_rows_of_one_method_are_told_apart_by_what_differs(write_run: Write, tmp_path: Path) -> None:
    options = json.loads((write_run(tmp_path / "a", [[9]], tasks=2) / "config.json").read_text())["options"]
    for name, changed in {"x": {"epochs": 3}, "y": {"epochs": 4, "tuning_options": {"rank": 8}}}.items():
        write_run(tmp_path / name, [[9], [7, 7]], config={"options": options | changed})
    found = compare([tmp_path / "x", tmp_path / "y"])
    assert [row.name.split(", ")[1] for row in found.rows] == ["epochs=3", "epochs=4"]
    assert "rank=8" in found.rows[1].name and "rank=8" not in found.rows[0].name


def test_an_option_that_came_later_has_its_default(write_run: Write, tmp_path: Path) -> None:
    """An old run joins the newer ones where these have the default, and is a row of its own where they do not."""
    new = [write_run(tmp_path / f"new{order}", [[9], [7, 7]], order=order) for order in ORDERS[:2]]
    old = write_run(tmp_path / "old", [[9], [7, 7]], order=1995)
    config = json.loads((old / "config.json").read_text())
    assert config["options"].pop("follow_optimizer") == "same"
    (old / "config.json").write_text(json.dumps(config))
    found = compare([*new, old])
    assert [len(row.runs) for row in found.rows] == [3]
    assert found.notes == (f"taken at its default where a run is older than it: safe's follow_optimizer in {old}",)
    for folder in new:
        config = json.loads((folder / "config.json").read_text())
        config["options"]["follow_optimizer"] = "adam"
        (folder / "config.json").write_text(json.dumps(config))
    assert [len(row.runs) for row in compare([*new, old], allow_different=True).rows] == [2, 1]


def test_runs_of_unlike_protocols_are_refused_naming_what_differs(write_run: Write, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [[9], [7, 7]])
    other = write_run(tmp_path / "other", [[9], [5, 5]], stream={"train_per_class": 5}, config=RANPAC_CONFIG)
    with pytest.raises(RunError, match=r"different protocols: .* stream.train_per_class \(null / 5\)"):
        compare([one, other])
    found = compare([one, other], allow_different=True)
    told = "the runs were measured under different protocols: they differ in stream.train_per_class"
    assert found.notes == (told,) and found.unlike == ("stream.train_per_class",)
    assert metric(found, 1)["difference"]["mean"] == pytest.approx(-20.0)  # the same classes in the same order


@pytest.mark.parametrize(
    "change",
    [{"stream": {"data": {"train": "f" * 64, "test": "b" * 64}}}, {"config": {"precision": "bf16"}}, {"tasks": 3}],
    ids=["data", "precision", "tasks"],
)
def test_what_makes_protocols_unlike(write_run: Write, tmp_path: Path, change: dict[str, Any]) -> None:
    """An early protocol lacks the precision, which its configuration has."""
    one = write_run(tmp_path / "one", [[9], [7, 7]])
    other = write_run(tmp_path / "other", [[9], [7, 7], [7, 7, 7]][: change.get("tasks", 2)], **change)
    if "config" in change:
        _without_precision(other)
    with pytest.raises(RunError, match="different protocols"):
        compare([one, other])


def test_a_protocol_without_its_precision_is_like_one_with_it(write_run: Write, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [[9], [7, 7]])
    other = write_run(tmp_path / "other", [[9], [7, 7]], order=1994)
    _without_precision(other)
    assert [len(row.runs) for row in compare([one, other]).rows] == [2]


def _without_precision(folder: Path) -> None:
    from evertune.evaluation import Protocol

    fields = json.loads((folder / "protocol.json").read_text())["fields"]
    del fields["preprocessing"]["precision"]
    (folder / "protocol.json").write_text(Protocol(fields).to_json())
    for name in ("config.json", "summary.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"protocol": Protocol(fields).hash}))


def test_tasks_made_by_hand_are_told_apart_by_their_digests(write_run: Write, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [[9]], stream={"data": {}})
    tasks = json.loads((one / "protocol.json").read_text())["fields"]["stream"]["tasks"]
    tasks[0]["train"]["digest"] = "other"
    other = write_run(tmp_path / "other", [[9]], order=1994, stream={"data": {}, "tasks": tasks})
    with pytest.raises(RunError, match="different protocols"):
        compare([one, other])


def test_rows_need_the_same_orders_and_seeds(two: tuple[list[Path], list[Path]], write_run: Write) -> None:
    with pytest.raises(RunError, match=r"not of the same class orders and seeds: safe \(evertune\) has .*--allow-diff"):
        compare([*two[0], *two[1][:2]])
    found = compare([*two[0], *two[1][:2]], allow_different=True)
    assert metric(found, 1)["difference"]["pairs"] == 2
    assert found.pairs == ("order 1993, seed 0", "order 1994, seed 0")
    seeds = write_run(two[0][0].parent / "seed", [[9], [7, 7]], seed=1, config=RANPAC_CONFIG)
    with pytest.raises(RunError, match=r"safe .* has order 1993, seed 0, ranpac .* has order 1993, seed 1"):
        compare([two[0][0], seeds])
    assert metric(compare([two[0][0], seeds], allow_different=True), 1)["difference"] is None


def test_unfinished_runs_are_named_and_left_out(two: tuple[list[Path], list[Path]], write_run: Write) -> None:
    begun = write_run(two[0][0].parent / "begun", [[9]], tasks=2, order=1996, finished=False)
    found = compare([*two[0], begun])
    assert found.left_out == (f"{begun} (unfinished: 1 of 2 tasks)",)
    with pytest.raises(RunError, match=r"nothing to compare: 1 finished run.*Left out: .*1 of 2 tasks"):
        compare([two[0][0], begun])
    grown = write_run(two[0][0].parent / "grown", [[9], [7, 7]], order=1997)
    summary = json.loads((grown / "summary.json").read_text())
    (grown / "summary.json").write_text(json.dumps(summary | {"protocol": "of two tasks"}))  # tasks were added since
    assert not KeptRun.read(grown).finished


def test_a_run_counts_once(two: tuple[list[Path], list[Path]], write_run: Write, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="1993 is named twice"):
        compare([*two[0], tmp_path / "safe"])
    copy = write_run(tmp_path / "copy", [[9], [7, 7]])
    with pytest.raises(RunError, match=r"are the same run \(order 1993, seed 0\)"):
        compare([*two[0], copy])


def test_folders_that_are_no_run(two: tuple[list[Path], list[Path]], write_run: Write, tmp_path: Path) -> None:
    run = two[0][0]
    with pytest.raises(RunError, match="nothing to compare: 1 finished run"):
        compare([run])
    with pytest.raises(RunError, match=r"nowhere holds no run: name a folder"):
        compare([run, tmp_path / "nowhere"])
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({"method": "safe", "seeds": {}}))
    with pytest.raises(RunError, match=r"another format: its configuration lacks preset, options, precision, protocol"):
        compare(two[0])
    (run / "config.json").write_text("[]")
    with pytest.raises(RunError, match="another format"):
        compare(two[0])
    (run / "config.json").write_text(json.dumps(config | {"protocol": "0" * 12}))
    with pytest.raises(StorageError, match="Files of two runs were mixed"):
        compare(two[0])
    (run / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config.json is damaged"):
        compare(two[0])
    (run / "config.json").write_text(json.dumps(config))
    (run / "matrix.json").write_text("{}")
    with pytest.raises(StorageError, match=r"matrix.json: this is no whole accuracy matrix"):
        compare(two[0])


def test_unknown_names_have_the_nearest(two: tuple[list[Path], list[Path]]) -> None:
    for options, message in (
        ({"metrics": ["final_acuracy_task"]}, "Did you mean 'final_accuracy_task'"),
        ({"convention": "pilt"}, "no convention 'pilt'. Did you mean 'pilot'"),
        ({"convention": "pilot", "metrics": ["backward_transfer"]}, "give metrics or a convention"),
        ({"baseline": "saef (evertune)"}, r"no row 'saef \(evertune\)'.*Did you mean 'safe \(evertune\)'"),
        ({"by": "seed"}, "cannot be made by 'seed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare([*two[0], *two[1]], **options)  # type: ignore[arg-type]


def test_metric_names_are_known_to_a_run(two: tuple[list[Path], list[Path]]) -> None:
    run = KeptRun.read(two[0][0])
    assert {"final_accuracy_sample", "task_identity_task", "pilot.average_accuracy"} <= set(metric_names())
    assert all(isinstance(run.value(name), float) for name in metric_names())
