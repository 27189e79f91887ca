"""What a team's threads run: the loop of a worker, and the leader's order to do a step (workers.py)."""

from __future__ import annotations

from localmoe.jit import njit
from localmoe.kernels.atomics import atomic_load, atomic_store
from localmoe.kernels.simd import call_address
from localmoe.kernels.team import sleep_while, spin_while, wake
from localmoe.kernels.waits import SPINS
from localmoe.model.plan import CALL, COUNT_SHIFT, LINE, ORDER, SLEEPERS, STOP, WANTED, WORKER

IDLE_SPINS = 16 * SPINS  # pauses before a worker sleeps or yields: more than sampling takes


@njit
def call_step(thread: int, control: int) -> None:
    """Do `thread`'s share of the step that the control block names."""
    call = control + LINE * 8 * CALL
    step = atomic_load(call)
    a, b, c = atomic_load(call + 8), atomic_load(call + 16), atomic_load(call + 24)
    call_address(step, (thread, a, b, c, atomic_load(call + 32), atomic_load(call + 40)))


@njit
def serve(thread: int, control: int, yield_to: int, idle: int) -> None:
    """Do what is ordered of the first `thread + 1` threads, until told to stop or, where it yields, to go to sleep."""
    line = LINE * 8
    seen_at = control + line * (WORKER + 2 * (thread - 1))
    parked_at = seen_at + line
    word, sleepers = control + line * ORDER, control + line * SLEEPERS
    while True:
        seen = atomic_load(seen_at)
        if not spin_while(word, seen, IDLE_SPINS) and not sleep_while(word, sleepers, seen, yield_to, idle):
            if atomic_load(control + line * WANTED):
                continue
            atomic_store(parked_at, 1)
            if atomic_load(word) == seen and not atomic_load(control + line * WANTED):
                return
            atomic_store(parked_at, 0)
            continue
        # Number and threads are one word: who is left out may come late and see a later order, never half of one.
        ordered = atomic_load(word)
        atomic_store(seen_at, ordered)
        if atomic_load(control + line * STOP):
            return
        if thread < ordered & ((1 << COUNT_SHIFT) - 1):
            call_step(thread, control)


@njit
def order(control: int, n_thread: int) -> None:
    """Let the workers look: a step for the first `n_thread` threads, or the end if that is set."""
    line = LINE * 8
    word = control + line * ORDER
    atomic_store(word, (((atomic_load(word) >> COUNT_SHIFT) + 1) << COUNT_SHIFT) + n_thread)
    wake(word, control + line * SLEEPERS)


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
