"""How the system shares a core between the engine's threads and others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def giving_way() -> Iterator[None]:
    """While this lasts, the calling thread, if it is an ordinary one of Linux's, waits its turn for a core."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    ordinary = os.sched_param(0)
    with suppress(OSError):  # forbidden in some containers
        os.sched_setscheduler(0, os.SCHED_BATCH, ordinary)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, ordinary)
