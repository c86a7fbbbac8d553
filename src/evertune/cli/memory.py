"""What a program may do with its process and a library may not."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading
from typing import NoReturn

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names for them in mallopt."""

GARBAGE = 10_000
"""Objects that come to be before cyclic garbage is looked for again; Python's own measure is 700."""


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, where the C library is glibc; for programs, not for libraries.

    By default glibc hands large blocks back at once, and every step of a forward pass then waits for the kernel to
    clear fresh pages: 13 000 page faults and an eighth of the time of a ViT-Ti forward of 48 images on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    # Either setting ends glibc's own adaptation, so one without the other is worse than none; older ones refuse 1 GiB.
    if mallopt(MMAP_THRESHOLD, 2**30) or mallopt(MMAP_THRESHOLD, 2**25):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def collect_rarely() -> None:
    """Let cyclic garbage pile up a little: while torch and timm are imported, a million objects come to stay, and
    looking through them over and over is a fifth of the time."""
    gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])


def end(status: int) -> NoReturn:
    """End this process as ``sys.exit`` does, but leave its objects to the system.

    Taking an interpreter apart that has torch in it takes 0.9 s, as long as importing torch. What others asked to be
    done at the end is done, and where threads or other processes wait for this one, it ends the usual way.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    waited_for = any(not thread.daemon for thread in threading.enumerate() if thread is not threading.current_thread())
    if waited_for or "RANK" in os.environ:
        sys.exit(status)
    atexit._run_exitfuncs()
    os._exit(status)
