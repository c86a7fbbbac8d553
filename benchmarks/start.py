"""What it costs to start: the command line, the import, and one prediction.

    python benchmarks/start.py --times 10

Each command in a process of its own, the best of several times; in turn, so that a busy neighbour slows all alike. The
ratios stand beside the seconds because they say the same on any machine: a command that prints help is a few bare
interpreters, and a prediction is what torch and timm take to be imported. The limits are those of the project.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEACH = """
from evertune import Learner, Stream, open_data
train, _ = open_data("digits")
learner = Learner("simple_cil", progress=False)
for task in Stream.class_incremental(train, train, first=5, increment=5, train_per_class=5):
    learner.learn(task)
learner.save({folder!r})
train.load(0).save({picture!r})
"""

STAGES = """
import time
clock = time.perf_counter()
def stage(name):
    global clock
    print(f"{{name:>24}}  {{time.perf_counter() - clock:6.3f}}", flush=True)
    clock = time.perf_counter()
from evertune.cli.memory import collect_rarely
collect_rarely()
import torch; stage("import torch")
import timm; stage("import timm")
from evertune import Learner, load_backbone; stage("import evertune.Learner")
backbone = load_backbone("embedded"); stage("the backbone")
learner = Learner.load({folder!r}, backbone, progress=False); stage("the learner")
learner.predict([{picture!r}]); stage("the first image")
learner.predict([{picture!r}]); stage("another one")
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="how often each is started; the best counts")
    times = parser.parse_args().times
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    python = [sys.executable, "-c"]
    evertune = [sys.executable, "-m", "evertune.cli"]
    with tempfile.TemporaryDirectory() as place:
        kept = {"folder": str(Path(place) / "kept"), "picture": str(Path(place) / "digit.png")}
        subprocess.run([*python, TEACH.format(**kept)], check=True)
        commands = {
            "python": [*python, "pass"],
            "import evertune": [*python, "import evertune"],
            "evertune --help": [*evertune, "--help"],
            "evertune run --help": [*evertune, "run", "--help"],
            "import torch": [*python, "import torch"],
            "import torch, timm": [*python, "import torch, timm"],
            "evertune.Learner": [*python, "import evertune; evertune.Learner"],
            "evertune predict": [*evertune, "predict", kept["folder"], kept["picture"]],
        }
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(times):
            for name, command in commands.items():
                best[name] = min(best[name], seconds(command))
        compared = {"import evertune": "python", "evertune --help": "python", "evertune run --help": "python"}
        compared |= {"evertune.Learner": "import torch, timm", "evertune predict": "import torch, timm"}
        limits = {"import evertune": 0.3, "evertune --help": 0.4, "evertune run --help": 0.4}
        for name, took in best.items():
            other = compared.get(name)
            ratio = f"{took / best[other]:5.2f} x {other}" if other else ""
            limit = f"  (limit {limits[name]} s)" if name in limits else ""
            print(f"{name:>24}  {took:6.3f} s  {ratio}{limit}")
        print("\nseconds within one process that predicts:")
        subprocess.run([*python, STAGES.format(**kept)], check=True)
    late = [name for name, limit in limits.items() if best[name] > limit]
    if late:
        sys.exit(f"over the limit: {', '.join(late)}")


if __name__ == "__main__":
    main()
