"""What is loaded to start: a framework only when it is needed. How long it takes is for benchmarks/start.py."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "PIL", "accelerate", "datasets", "filelock", "huggingface_hub", "matplotlib", "numpy", "onnx", "pandas", "peft",
    "pydantic", "safetensors", "scipy", "sklearn", "timm", "torch", "torchvision", "tqdm", "transformers",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has after running ``code``, which prints nothing else."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.splitlines()[-1].split())


def test_the_package_and_every_help_load_no_framework() -> None:
    assert loaded("import evertune") == set()
    every_help = (
        "from typer.main import get_command\n"
        "from evertune.cli.app import app\n"
        "group = get_command(app)\n"
        "for args in ([], *([name] for name in group.commands)):\n"
        "    assert group.main([*args, '--help'], standalone_mode=False) == 0, args\n"
    )
    assert loaded(every_help) <= {"pydantic"}, "which some versions of typer parse the command line with"


def test_a_learner_needs_no_plots_tables_or_text_models() -> None:
    unneeded = {"datasets", "matplotlib", "onnx", "pandas", "peft", "scipy", "sklearn", "transformers"}
    assert loaded("from evertune import Learner\nLearner('simple_cil', progress=False)") & unneeded == set()


def test_the_end_does_what_others_asked_for() -> None:
    code = (
        "import atexit\n"
        "from evertune.cli.memory import end\n"
        "print('buffered', end='')\n"
        "class Last:\n"
        "    def __del__(self): print('taken apart', end='')\n"
        "last = Last()\n"
        "atexit.register(print, ' to the end', end='', flush=True)\n"
        "end(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "buffered to the end", "")


def test_the_end_waits_for_threads() -> None:
    code = (
        "import threading, time\n"
        "from evertune.cli.memory import end\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('done'))).start()\n"
        "end(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
