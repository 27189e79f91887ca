"""Limits in seconds that hold on a slow machine, and beside other programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

REFERENCE_S = 0.03  # a million turns of the loop where limits hold as they stand; `zen3-2c` takes 0.04 to 0.08 s
_WAITED = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, and of waiting for one


def slowness() -> float:
    """Processor seconds of a plain loop over those of the reference, 1 at least; the fastest of five."""

    def loop() -> None:
        total = 0
        for i in range(200_000):
            total += i & 7

    return max(1.0, 5 * least(5, loop) / REFERENCE_S)


def least(n: int, work: Callable[[], object]) -> float:
    """Processor seconds of this thread for `work`: the least of `n` times."""
    times = []
    for _ in range(n):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def own_time() -> float:
    """Seconds on a clock that stands still while this thread waits for a core that others have, where Linux tells."""
    now = time.monotonic()
    try:
        return now - int(_WAITED.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):
        return now
