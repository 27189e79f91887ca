"""The threads of a team: they live as long as a session, spin between steps and sleep when nothing comes.

A step costs no thread start and no lock: the leader raises a counter, workers that spin on it run the same compiled
call. A worker that has seen nothing for a few milliseconds sleeps, within the compiled loop on Linux; elsewhere it
returns to Python and sleeps on a semaphore.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from localmoe.jit import kernel_address, njit
from localmoe.kernels.simd import call_address
from localmoe.kernels.team import (
    HAS_FUTEX,
    SPINS,
    atomic_add,
    atomic_load,
    atomic_store,
    sleep_while,
    spin_while,
    wake,
    yield_address,
)
from localmoe.model.forward import N_ARGS, forward

IDLE_SPINS = 16 * SPINS  # pauses before a worker sleeps or yields: more than sampling takes
IDLE_YIELDS = 4000  # where it yields, a worker sleeps after so many: some milliseconds
_LINE = 16  # int64 between words that different threads write

# words of the control block, in lines: the order counter, stop, wanted, how many sleep until an order; then a worker's
# seen counter and parked flag
_ORDER, _STOP, _WANTED, _SLEEPERS, _WORKER = 0, 1, 2, 3, 4


@njit
def serve(thread: int, control: int, yield_to: int, idle: int, step: int, records: Any) -> bool:
    """Call `step(thread, *records)` whenever one is ordered; False when told to stop, True to go to sleep."""
    line = _LINE * 8
    seen_at = control + line * (_WORKER + 2 * (thread - 1))
    parked_at = seen_at + line
    while True:
        seen = atomic_load(seen_at)
        word, sleepers = control + line * _ORDER, control + line * _SLEEPERS
        if not spin_while(word, seen, IDLE_SPINS) and not sleep_while(word, sleepers, seen, yield_to, idle):
            if atomic_load(control + line * _WANTED):
                continue
            atomic_store(parked_at, 1)
            if atomic_load(control + line * _ORDER) == seen and not atomic_load(control + line * _WANTED):
                return True
            atomic_store(parked_at, 0)
            continue
        atomic_store(seen_at, seen + 1)
        if atomic_load(control + line * _STOP):
            return False
        call_address(step, (thread, records[0], records[1], records[2], records[3], records[4]))


@njit
def order(control: int) -> None:
    """Let the workers look: a step, or the end if that is set."""
    line = _LINE * 8
    atomic_add(control + line * _ORDER, 1)
    wake(control + line * _ORDER, control + line * _SLEEPERS)


@njit
def lead(control: int, step: int, records: Any) -> None:
    """Order a step and do the leader's share of it."""
    order(control)
    call_address(step, (0, records[0], records[1], records[2], records[3], records[4]))


@njit
def put(address: int, value: int) -> None:
    """Store with a full fence, so that what the other side wrote before is seen after."""
    atomic_store(address, value)


class Workers:
    """`n_thread - 1` threads beside the caller's; `run` executes one step on all of them."""

    def __init__(self, n_thread: int, records: tuple[np.ndarray, ...]) -> None:
        """`records`: models, layers, buffers, steps and frequencies, as `forward` takes them."""
        self._alive = records
        self._records = tuple(int(r.ctypes.data) for r in records)
        self._forward = kernel_address(forward, N_ARGS)
        self._control = np.zeros(_LINE * (_WORKER + 2 * n_thread), np.int64)
        self._wake = [threading.Semaphore(0) for _ in range(n_thread - 1)]
        self._yield = 0 if HAS_FUTEX else yield_address()
        self._threads = [
            threading.Thread(target=self._work, args=(i + 1,), name=f"localmoe-{i + 1}", daemon=True)
            for i in range(n_thread - 1)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, thread: int) -> None:
        address = self._control.ctypes.data
        while True:
            self._wake[thread - 1].acquire()
            if not serve(thread, address, self._yield, IDLE_YIELDS, self._forward, self._records):
                return

    def _rouse(self) -> None:
        """Wake the workers that sleep; while the wanted word is set none falls asleep again."""
        put(self._address(_WANTED), 1)
        for i, semaphore in enumerate(self._wake):
            parked = _LINE * (_WORKER + 2 * i + 1)
            if self._control[parked]:
                self._control[parked] = 0
                semaphore.release()

    def run(self) -> None:
        """One step on every thread; returns when all are done."""
        try:
            self._rouse()
            lead(self._address(_ORDER), self._forward, self._records)
        finally:
            put(self._address(_WANTED), 0)

    def _address(self, line: int) -> int:
        return int(self._control.ctypes.data) + line * _LINE * 8

    def start(self) -> None:
        """Let the workers enter their loop for the first time."""
        for semaphore in self._wake:
            semaphore.release()

    def stop(self) -> None:
        """End all threads; nothing can be run afterwards."""
        put(self._address(_STOP), 1)
        put(self._address(_WANTED), 1)
        order(self._address(0))
        for semaphore in self._wake:
            semaphore.release()
        for thread in self._threads:
            if thread is not threading.current_thread():  # where a worker's own garbage collection ended the model
                thread.join()
        self._threads = []
