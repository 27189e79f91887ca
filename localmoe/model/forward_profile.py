"""Time of the forward pass by step: every thread adds clock ticks to a row of its own, if MODEL's `profile` says where.

Off, a step costs one test of a number that is in a register or the first-level cache.
"""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.clock import ticks
from localmoe.kernels.cores import say_who
from localmoe.kernels.simd import ld_i64, st_i64
from localmoe.kernels.team import barrier
from localmoe.kernels.waits import SLEEP
from localmoe.model.plan import ROW, WAIT


@njit
def begin(m: Any, thread: int) -> None:
    """The thread's first step begins."""
    if m.yield_to == SLEEP:
        say_who(m.sync, thread)
    if m.profile:
        st_i64(m.profile + (thread * ROW + ROW - 1) * 8, ticks())


@njit
def mark(m: Any, thread: int, step: int) -> None:
    """What the thread did since the last mark was `step`."""
    if m.profile:
        row = m.profile + thread * ROW * 8
        now = ticks()
        st_i64(row + 8 * step, ld_i64(row + 8 * step) + now - ld_i64(row + 8 * (ROW - 1)))
        st_i64(row + 8 * (ROW - 1), now)


@njit
def meet(m: Any, thread: int, step: int) -> None:
    """End `step`, and wait for the other threads."""
    mark(m, thread, step)
    barrier(m.sync, thread, m.n_thread, m.yield_to)
    mark(m, thread, WAIT)
