"""The threads of a team: they live as long as a session, spin between steps and sleep when nothing comes.

A step costs no thread start and no lock: the leader raises a counter, workers that spin on it run the same compiled
call. A worker that has seen nothing for a few milliseconds sleeps, within the compiled loop on Linux; elsewhere it
returns to Python and sleeps on a semaphore.

On Linux all of them are batch threads (sched(7)) while they run a step: one that wakes at a barrier does not take its
core from whoever is there, as the thread that draws a screen, but fetches the one it waits for (kernels/cores.py).
"""

from __future__ import annotations

import threading

import numpy as np

from localmoe.kernels.waits import HAS_FUTEX, yield_address
from localmoe.model.plan import CALL, LINE, STOP, WANTED, WORKER
from localmoe.native import address, function
from localmoe.scheduling import giving_way

IDLE_YIELDS = 4000  # where it yields, a worker sleeps after so many: some milliseconds
_FORWARD_ARGS = 6


class Workers:
    """`n_thread - 1` threads beside the caller's; `run` executes one step on all of them, or on the first ones."""

    def __init__(self, n_thread: int, records: tuple[np.ndarray, ...]) -> None:
        """`records`: models, layers, buffers, steps and frequencies, as `forward` takes them."""
        self._alive = records
        self._control = np.zeros(LINE * (WORKER + 2 * n_thread), np.int64)
        self._address = int(self._control.ctypes.data)
        called = (address("model.forward", "forward", _FORWARD_ARGS), *(int(r.ctypes.data) for r in records))
        self._lead, self._order, self._put = (
            function("model.forward_workers", name, 2) for name in ("lead", "order", "put")
        )
        self._serve = function("model.forward_workers", "serve", 4)
        self._control[LINE * CALL :][: len(called)] = called
        self._wake = [threading.Semaphore(0) for _ in range(n_thread - 1)]
        self._yield = 0 if HAS_FUTEX else yield_address()
        self._threads = [
            threading.Thread(target=self._work, args=(i + 1,), name=f"localmoe-{i + 1}", daemon=True)
            for i in range(n_thread - 1)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, thread: int) -> None:
        with giving_way():
            while True:
                self._wake[thread - 1].acquire()
                self._serve(thread, self._address, self._yield, IDLE_YIELDS)
                if self._control[LINE * STOP]:
                    return

    def _tell(self, line: int, value: int) -> None:
        self._put(self._address + line * LINE * 8, value)

    def run(self, n_thread: int) -> None:
        """One step on the first `n_thread` threads; returns when all of them are done."""
        if HAS_FUTEX or n_thread == 1:  # nobody has gone back to Python
            with giving_way():
                self._lead(self._address, n_thread)
            return
        try:
            self._rouse()
            self._lead(self._address, n_thread)
        finally:
            self._tell(WANTED, 0)

    def _rouse(self) -> None:
        """Wake the workers that sleep; while the wanted word is set none falls asleep again."""
        self._tell(WANTED, 1)
        for i, semaphore in enumerate(self._wake):
            parked = LINE * (WORKER + 2 * i + 1)
            if self._control[parked]:
                self._control[parked] = 0
                semaphore.release()

    def start(self) -> None:
        """Let the workers enter their loop for the first time."""
        for semaphore in self._wake:
            semaphore.release()

    def stop(self) -> None:
        """End all threads; nothing can be run afterwards."""
        self._tell(STOP, 1)
        self._tell(WANTED, 1)
        self._order(self._address, 0)
        for semaphore in self._wake:
            semaphore.release()
        for thread in self._threads:
            if thread is not threading.current_thread():  # where a worker's own garbage collection ended the model
                thread.join()
        self._threads = []
