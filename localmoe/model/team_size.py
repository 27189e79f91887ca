"""How many threads take a step of one token: one fewer while another program holds one of them up.

A thread that has lost its core holds up the whole team at its next barrier, for as long as that program's turn is:
milliseconds, in a step that takes a few. Decode is limited by memory, which one thread fewer uses nearly as well, and
the core that is left to the other program is its alone. benchmarks/RESULTS.md has what that brings. Sums do not
depend on who takes part (kernels/team.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

SUSPECT = 8  # steps with a long wait, less those without, before one is left out: interrupts and drawing make some, too
FIRST_PROBE, LAST_PROBE = 4, 64  # steps without it before all are tried again, doubled each time
BETTER = 0.95  # of the time of a step that was held up
FIRST_PAUSE, LAST_PAUSE = 16, 1024  # steps before it is tried again where it was no better, doubled each time
SHARED = 0.85  # a caller that had less of its time on a core shares that with the other program


def move_to_another_core() -> None:
    """Let the calling thread go on on another core than this one, of those it may use; nothing where it cannot.

    The system moves a thread that waits for a core, but not soon one that shares a core while another is free.
    """
    if sys.platform != "linux":
        return
    allowed = os.sched_getaffinity(0)
    others = allowed - {int(ctypes.CDLL(None).sched_getcpu())}
    if others:
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)


class TeamSize:
    """Chooses the threads of the next step of one token from the times of the last ones; `n_thread` at most.

    `move` is called by the thread that leads when it shares its core, though another has been left free.
    """

    def __init__(self, n_thread: int, move: Callable[[], None] = move_to_another_core) -> None:
        self._n_thread = n_thread
        self._move = move
        self._suspicion = 0
        self._pause, self._paused = FIRST_PAUSE, 0
        self._held_up_s = self._fewer_s = 0.0  # moving averages
        self._fewer = self._trying = self._moved = False
        self._probe = self._left = 0

    def choose(self) -> int:
        """The threads of the next step."""
        if self._trying or (self._fewer and self._left):
            return self._n_thread - 1
        return self._n_thread

    def observe(self, n_thread: int, seconds: float, on_core_s: float, long_waits: int) -> None:
        """Learn how long a step of `n_thread` threads took, the caller's time on a core, and long waits at barriers."""
        if self._n_thread == 1:
            return
        if n_thread < self._n_thread:
            if on_core_s < SHARED * seconds and not self._moved:
                self._moved = True
                self._move()
                return
            self._observe_fewer(seconds)
        elif not long_waits:
            self._fewer = self._moved = False
            self._suspicion = max(self._suspicion - 1, 0)
            self._paused = max(self._paused - 1, 0)
        elif self._fewer:
            self._probe = min(2 * self._probe, LAST_PROBE)
            self._fewer, self._left, self._moved = seconds > self._fewer_s, self._probe, False
        else:
            self._held_up_s = _average(self._held_up_s, seconds) if self._suspicion else seconds
            self._suspicion += 1
            self._paused = max(self._paused - 1, 0)
            self._trying = self._suspicion >= SUSPECT and not self._paused
            self._moved = False

    def _observe_fewer(self, seconds: float) -> None:
        if not self._trying:
            self._fewer_s = _average(self._fewer_s, seconds)
            self._left -= 1
            return
        self._trying, self._suspicion = False, 0
        self._fewer_s = seconds
        self._probe = self._left = FIRST_PROBE
        self._fewer = seconds < BETTER * self._held_up_s
        self._pause = FIRST_PAUSE if self._fewer else min(2 * self._pause, LAST_PAUSE)
        self._paused = 0 if self._fewer else self._pause


def _average(before: float, now: float) -> float:
    return 0.75 * before + 0.25 * now
