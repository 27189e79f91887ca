"""How a team's threads wait, and the memory by which they do (team.py); to know it takes no Numba."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

SPINS = 4096  # pauses before a waiting thread sleeps or yields: about 0.1 ms
# A thread that a busy program has pushed off its core waits for the rest of that one's turn, 4 ms and more. Another
# that sleeps until it comes leaves it its core at once. The two then share that core, and the system leaves them there:
# who slept must part from the other for another core. In a step of one token, which cannot spare the time until it runs
# again, it is sent there by the one that wakes it, and first fetches the other if that is only waiting (cores.py).
HAS_FUTEX = sys.platform == "linux" and sys.maxsize > 1 << 32
SLEEP, PART = 0, -1  # how a barrier waits for long; with the address of a function: it yields

# A barrier's words, on cache lines of their own: threads that arrived; whether the last wait was long, and how
# many were since the start; the generation; how many sleep until it changes. Then for each thread what is taken of
# its range in each queue: the barrier's generation at that time << 20 | how many units. A word of an older generation
# says that nothing is taken yet, so that nobody has to reset it.
HURRIED, LONG_WAITS, GENERATION, SLEEPERS, LAST_CORE = 64, 72, 128, 192, 200
ALLOWED, OTHERS, TAKEN = 256, 384, 512  # sets of cores, for `part`
CORES = 1024  # bits of a set
TAKEN_BYTES = 256
NUMBER, ARRIVED, CORE, BACK, ONE_CORE = 64, 72, 80, 88, 128
QUEUES = 4  # lists of work between two barriers at most


def yield_address() -> int:
    """Address of the system's "let another thread run": sched_yield, or SwitchToThread on Windows."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined,unused-ignore]
    else:
        function = ctypes.CDLL(None).sched_yield
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def sync_ints(n_thread: int) -> int:
    """How many zeroed int64 a barrier and the queues of `n_thread` threads take."""
    return (TAKEN + n_thread * TAKEN_BYTES) // 8


def allow_cores(sync: npt.NDArray[np.int64]) -> None:
    """Write down for `part` which cores the calling thread may use now; with more than CORES nobody parts."""
    if HAS_FUTEX and max(os.sched_getaffinity(0)) < CORES:
        allowed = np.zeros(CORES, np.uint8)
        allowed[list(os.sched_getaffinity(0))] = 1
        sync[ALLOWED // 8 :][: CORES // 64] = np.packbits(allowed, bitorder="little").view(np.int64)
