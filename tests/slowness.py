"""How much slower this machine is than the one that limits in seconds were set on."""

from __future__ import annotations

import time

REFERENCE_S = 0.03  # a million turns of the loop on the 2 cores of benchmarks/RESULTS.md's `zen5-2c`


def slowness() -> float:
    """Seconds of a plain loop over those of the reference, 1 at least; the fastest of five."""
    times = []
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for i in range(200_000):
            total += i & 7
        times.append(time.perf_counter() - began)
    return max(1.0, 5 * min(times) / REFERENCE_S)
