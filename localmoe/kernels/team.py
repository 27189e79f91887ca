"""A team of threads that runs one compiled call together: atomics, a spinning barrier, and how work is shared out.

A barrier spins for a short while and then sleeps or yields the processor. Work between two barriers is taken in
pieces: each thread works through a range of its own, front to back, as if the work were simply divided; one that has
finished takes pieces of what others have left. On an idle machine that costs one atomic addition a piece, and memory
is read in the same long runs, shorter towards the end, where nobody should wait for long; on a busy one the threads
that still have a core do the work of the one that lost its own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.atomics import atomic_add, atomic_load, atomic_replace, atomic_store
from localmoe.kernels.cores import SYSCALLS, arrive, current_core, fetch, part, send, set_cores
from localmoe.kernels.simd import ISA, call_address
from localmoe.kernels.waits import (
    ALLOWED,
    GENERATION,
    HAS_FUTEX,
    HURRIED,
    LAST_CORE,
    LONG_WAITS,
    PART,
    SLEEP,
    SLEEPERS,
    SPINS,
    TAKEN,
    TAKEN_BYTES,
)

_I64 = ir.IntType(64)
PATIENCE = 8  # times as many before a thread sleeps that has to part afterwards
HURRIED_SPINS = 256  # and after a wait that was longer: the threads may share a core, where spinning holds up the other
_WAIT_PRIVATE, _WAKE_PRIVATE, _ALL = 128, 129, 0x7FFFFFFF
EQUAL = 1 << 20  # parts of what is left: too many for one to count


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if ISA == "neon":
            signature = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            b.call(cgutils.get_or_insert_function(b.module, signature, "llvm.aarch64.hint"), [ir.IntType(32)(1)])
        elif ISA != "generic":
            signature = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, signature, "llvm.x86.sse2.pause"), [])
        return ctx.get_dummy_value()

    return types.void(), codegen


@intrinsic
def as_pointer(typingctx: Any, address: Any) -> Any:
    """An int64 address as the untyped pointer that numba.carray takes."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def futex(typingctx: Any, address: Any, operation: Any, value: Any) -> Any:
    """Linux's futex(2) on the int32 at an address: wait while it is `value`, or wake as many, by `operation`."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if HAS_FUTEX:
            function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I64, [_I64], var_arg=True), "syscall")
            b.call(function, [_I64(SYSCALLS["futex"]), *args, _I64(0), _I64(0), _I64(0)])
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@njit
def wake(address: int, sleepers: int) -> None:
    """Wake who sleeps until the word at `address` changes, which it has."""
    if HAS_FUTEX and atomic_load(sleepers):
        futex(address, _WAKE_PRIVATE, _ALL)


@njit
def spin_while(address: int, value: int, spins: int) -> bool:
    """Whether the int64 at `address` becomes something else than `value` within so many pauses."""
    for _ in range(spins):
        if atomic_load(address) != value:
            return True
        pause()
    return atomic_load(address) != value


@njit
def sleep_while(address: int, sleepers: int, value: int, yield_to: int, limit: int) -> bool:
    """Sleep (SLEEP) until `wake`, counted at `sleepers`, or yield by `yield_to`; False after `limit` yields."""
    yields = 0
    while atomic_load(address) == value:
        if yield_to == SLEEP:
            atomic_add(sleepers, 1)
            futex(address, _WAIT_PRIVATE, value & 0xFFFFFFFF)  # returns at once if the word is another by now
            atomic_add(sleepers, -1)
        else:
            yields += 1
            if limit and yields > limit:
                return False
            call_address(yield_to, ())
    return True


@njit
def barrier(sync: int, thread: int, n_thread: int, yield_to: int) -> None:
    """Return once all `n_thread` threads have called it; `sync` is the address of `sync_ints(n_thread)` zeros.

    Who waits for long yields by `yield_to`, or sleeps where that is SLEEP or PART (with HAS_FUTEX alone). For both,
    `allow_cores` has been called, and for SLEEP `say_who` by every thread. Before SLEEP it fetches a thread that waits
    for a core to its own, and the last one sends who sleeps on its core to another. After PART it goes to another core
    if the thread it waited for has come to its own.
    """
    generation = atomic_load(sync + GENERATION)
    if yield_to == SLEEP:
        arrive(sync, thread, generation)
    if n_thread == 1:
        atomic_store(sync + GENERATION, generation + 1)
    elif atomic_add(sync, 1) == n_thread - 1:
        atomic_store(sync, 0)
        if yield_to == PART:
            atomic_store(sync + LAST_CORE, current_core())
        sent = send(sync, thread, n_thread) if yield_to == SLEEP and atomic_load(sync + SLEEPERS) else 0
        atomic_store(sync + GENERATION, generation + 1)
        wake(sync + GENERATION, sync + SLEEPERS)
        if sent:
            set_cores(sent, sync + ALLOWED)
    else:
        word, hurried = sync + GENERATION, atomic_load(sync + HURRIED)
        spins = HURRIED_SPINS if hurried else SPINS
        if yield_to == PART:
            spins *= PATIENCE
        if spin_while(word, generation, spins):
            if hurried:
                atomic_store(sync + HURRIED, 0)
        else:
            if not hurried:
                atomic_store(sync + HURRIED, 1)
            atomic_add(sync + LONG_WAITS, 1)
            if yield_to == SLEEP:
                fetch(sync, thread, n_thread)
            sleep_while(word, sync + SLEEPERS, generation, SLEEP if yield_to == PART else yield_to, 0)
            if yield_to == PART:
                part(sync)


@njit
def share(n: int, unit: int, thread: int, n_thread: int) -> tuple[int, int]:
    """The half-open range of 0..n that is `thread`'s, cut at multiples of `unit`."""
    units = (n + unit - 1) // unit
    first = units * thread // n_thread * unit
    last = units * (thread + 1) // n_thread * unit
    return min(first, n), min(last, n)


@njit
def take(
    sync: int, queue: int, n: int, unit: int, pieces: int, parts: int, thread: int, n_thread: int
) -> tuple[int, int]:
    """The next half-open range of 0..n for `thread`, from this queue, cut at multiples of `unit`; empty at the end.

    A thread takes of its own range, the one that `share` gives, then of the others' in turn: a `parts`-th of what is
    left of it, but one of `pieces` equal pieces at least; EQUAL parts: such pieces alone. Ranges are of less than 2**20
    units. Every thread must pass the same until the next barrier, which fills the queue again.
    """
    generation = atomic_load(sync + GENERATION) << 20
    for i in range(n_thread):
        owner = (thread + i) % n_thread
        first, last = share(n, unit, owner, n_thread)
        units = (last - first + unit - 1) // unit
        least = (units + pieces - 1) // pieces
        word = sync + TAKEN + owner * TAKEN_BYTES + 8 * queue
        while True:
            seen = atomic_load(word)
            taken = max(seen - generation, 0)
            if taken >= units:
                break
            now = min(max((units - taken) // parts, least), units - taken)
            if atomic_replace(word, seen, generation + taken + now):
                at = first + taken * unit
                return at, min(at + now * unit, last)
    return 0, 0
