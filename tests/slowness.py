"""By how much limits in seconds are stretched on a slow machine."""

from __future__ import annotations

import time

REFERENCE_S = 0.03  # a million turns of the loop where limits hold as they stand; `zen3-2c` takes 0.04 to 0.08 s


def slowness() -> float:
    """Seconds of a plain loop over those of the reference, 1 at least; the fastest of five."""
    times = []
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for i in range(200_000):
            total += i & 7
        times.append(time.perf_counter() - began)
    return max(1.0, 5 * min(times) / REFERENCE_S)
