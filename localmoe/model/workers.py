"""The threads of a team: they live as long as a session, spin between steps and sleep when nothing comes.

A step costs no thread start and no lock: the leader raises a counter, workers that spin on it run the same compiled
call. A worker that has seen nothing for a few milliseconds sleeps, within the compiled loop on Linux; elsewhere it
returns to Python and sleeps on a semaphore.
"""

from __future__ import annotations

import threading

import numpy as np

from localmoe.jit import kernel_address, njit
from localmoe.kernels.simd import call_address
from localmoe.kernels.team import (
    HAS_FUTEX,
    SPINS,
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

# The control block's words, in lines: the order (its number << _COUNT_SHIFT | how many threads it is for), stop,
# wanted, how many sleep until an order, and what to call (the step's address, then its records); then a worker's last
# order and its parked flag.
_ORDER, _STOP, _WANTED, _SLEEPERS, _CALL, _WORKER = 0, 1, 2, 3, 4, 5
_COUNT_SHIFT = 16


@njit
def call_step(thread: int, control: int) -> None:
    """Do `thread`'s share of the step that the control block names."""
    call = control + _LINE * 8 * _CALL
    step = atomic_load(call)
    a, b, c = atomic_load(call + 8), atomic_load(call + 16), atomic_load(call + 24)
    call_address(step, (thread, a, b, c, atomic_load(call + 32), atomic_load(call + 40)))


@njit
def serve(thread: int, control: int, yield_to: int, idle: int) -> bool:
    """Do what is ordered of the first `thread + 1` threads; False when told to stop, True to go to sleep."""
    line = _LINE * 8
    seen_at = control + line * (_WORKER + 2 * (thread - 1))
    parked_at = seen_at + line
    word, sleepers = control + line * _ORDER, control + line * _SLEEPERS
    while True:
        seen = atomic_load(seen_at)
        if not spin_while(word, seen, IDLE_SPINS) and not sleep_while(word, sleepers, seen, yield_to, idle):
            if atomic_load(control + line * _WANTED):
                continue
            atomic_store(parked_at, 1)
            if atomic_load(word) == seen and not atomic_load(control + line * _WANTED):
                return True
            atomic_store(parked_at, 0)
            continue
        # Number and threads are one word: who is left out may come late and see a later order, never half of one.
        ordered = atomic_load(word)
        atomic_store(seen_at, ordered)
        if atomic_load(control + line * _STOP):
            return False
        if thread < ordered & ((1 << _COUNT_SHIFT) - 1):
            call_step(thread, control)


@njit
def order(control: int, n_thread: int) -> None:
    """Let the workers look: a step for the first `n_thread` threads, or the end if that is set."""
    line = _LINE * 8
    word = control + line * _ORDER
    atomic_store(word, (((atomic_load(word) >> _COUNT_SHIFT) + 1) << _COUNT_SHIFT) + n_thread)
    wake(word, control + line * _SLEEPERS)


@njit
def lead(control: int, n_thread: int) -> None:
    """Order a step of so many threads and do the leader's share of it."""
    if n_thread > 1:
        order(control, n_thread)
    call_step(0, control)


@njit
def put(address: int, value: int) -> None:
    """Store with a full fence, so that what the other side wrote before is seen after."""
    atomic_store(address, value)


class Workers:
    """`n_thread - 1` threads beside the caller's; `run` executes one step on all of them, or on the first ones."""

    def __init__(self, n_thread: int, records: tuple[np.ndarray, ...]) -> None:
        """`records`: models, layers, buffers, steps and frequencies, as `forward` takes them."""
        self._alive = records
        self._control = np.zeros(_LINE * (_WORKER + 2 * n_thread), np.int64)
        self._address = int(self._control.ctypes.data)
        called = (kernel_address(forward, N_ARGS), *(int(r.ctypes.data) for r in records))
        self._control[_LINE * _CALL :][: len(called)] = called
        self._wake = [threading.Semaphore(0) for _ in range(n_thread - 1)]
        self._yield = 0 if HAS_FUTEX else yield_address()
        self._threads = [
            threading.Thread(target=self._work, args=(i + 1,), name=f"localmoe-{i + 1}", daemon=True)
            for i in range(n_thread - 1)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, thread: int) -> None:
        while True:
            self._wake[thread - 1].acquire()
            if not serve(thread, self._address, self._yield, IDLE_YIELDS):
                return

    def _put(self, line: int, value: int) -> None:
        put(self._address + line * _LINE * 8, value)

    def run(self, n_thread: int) -> None:
        """One step on the first `n_thread` threads; returns when all of them are done."""
        if HAS_FUTEX or n_thread == 1:  # nobody has gone back to Python
            lead(self._address, n_thread)
            return
        try:
            self._rouse()
            lead(self._address, n_thread)
        finally:
            self._put(_WANTED, 0)

    def _rouse(self) -> None:
        """Wake the workers that sleep; while the wanted word is set none falls asleep again."""
        self._put(_WANTED, 1)
        for i, semaphore in enumerate(self._wake):
            parked = _LINE * (_WORKER + 2 * i + 1)
            if self._control[parked]:
                self._control[parked] = 0
                semaphore.release()

    def start(self) -> None:
        """Let the workers enter their loop for the first time."""
        for semaphore in self._wake:
            semaphore.release()

    def stop(self) -> None:
        """End all threads; nothing can be run afterwards."""
        self._put(_STOP, 1)
        self._put(_WANTED, 1)
        order(self._address, 0)
        for semaphore in self._wake:
            semaphore.release()
        for thread in self._threads:
            if thread is not threading.current_thread():  # where a worker's own garbage collection ended the model
                thread.join()
        self._threads = []
