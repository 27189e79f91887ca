"""A team of threads that runs one compiled call together: atomics, a spinning barrier, and how work is shared out.

A barrier spins for a short while and then sleeps or yields the processor. Work between two barriers is taken in
pieces: each thread works through a range of its own, front to back, as if the work were simply divided; one that has
finished takes pieces of what others have left. On an idle machine that costs one atomic addition a piece, and memory
is read in the same long runs, shorter towards the end, where nobody should wait for long; on a busy one the threads
that still have a core do the work of the one that lost its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.simd import ISA, call_address

_I64 = ir.IntType(64)
SPINS = 4096  # pauses before a waiting thread sleeps or yields: about 0.1 ms
PATIENCE = 8  # times as many before a thread sleeps that has to part afterwards
HURRIED_SPINS = 256  # and after a wait that was longer: the threads may share a core, where spinning holds up the other
_ALIGN = 8
# A thread that a busy program has pushed off its core waits for the rest of that one's turn, 4 ms and more. Another
# that sleeps until it comes leaves it its core at once. The two then share that core, and the system leaves them there:
# who slept must part from the other for another core. In a step of one token that costs more than it brings.
HAS_FUTEX = sys.platform == "linux" and sys.maxsize > 1 << 32
_SYS_FUTEX = 202 if ISA != "neon" and platform.machine() == "x86_64" else 98
_WAIT_PRIVATE, _WAKE_PRIVATE, _ALL = 128, 129, 0x7FFFFFFF
SLEEP, PART = 0, -1  # how a barrier waits for long; with the address of a function: it yields

# A barrier's words, on cache lines of their own: threads that arrived; whether the last wait was long, and how
# many were since the start; the generation; how many sleep until it changes. Then for each thread what is taken of
# its range in each queue: the barrier's generation at that time << 20 | how many units. A word of an older generation
# says that nothing is taken yet, so that nobody has to reset it.
_HURRIED, LONG_WAITS, _GENERATION, _SLEEPERS, _LAST_CORE = 64, 72, 128, 192, 200
_ALLOWED, _OTHERS, _TAKEN = 256, 384, 512  # sets of cores, for `part`
CORES = 1024  # bits of a set
_TAKEN_BYTES = 128
QUEUES = 4  # lists of work between two barriers at most
EQUAL = 1 << 20  # parts of what is left: too many for one to count


def _pointer(b: Any, address: Any) -> Any:
    return b.inttoptr(address, _I64.as_pointer())


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address; the value before."""
    return types.int64(types.int64, types.int64), lambda ctx, b, sig, args: b.atomic_rmw(
        "add", _pointer(b, args[0]), args[1], "seq_cst"
    )


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    return types.int64(types.int64), lambda ctx, b, sig, args: b.load_atomic(_pointer(b, args[0]), "seq_cst", _ALIGN)


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store_atomic(args[1], _pointer(b, args[0]), "seq_cst", _ALIGN)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_replace(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether the int64 at an address was `expected`; if so, it is `value` now."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(b, args[0])
        return b.extract_value(b.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


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


def yield_address() -> int:
    """Address of the system's "let another thread run": sched_yield, or SwitchToThread on Windows."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread  # type: ignore[attr-defined,unused-ignore]
    else:
        function = ctypes.CDLL(None).sched_yield
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


@intrinsic
def futex(typingctx: Any, address: Any, operation: Any, value: Any) -> Any:
    """Linux's futex(2) on the int32 at an address: wait while it is `value`, or wake as many, by `operation`."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if HAS_FUTEX:
            function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I64, [_I64], var_arg=True), "syscall")
            b.call(function, [_I64(_SYS_FUTEX), *args, _I64(0), _I64(0), _I64(0)])
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def current_core(typingctx: Any) -> Any:
    """The core that the calling thread runs on, by Linux's sched_getcpu(3); 0 where HAS_FUTEX is not."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not HAS_FUTEX:
            return _I64(0)
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.IntType(32), []), "sched_getcpu")
        return b.sext(b.call(function, []), _I64)

    return types.int64(), codegen


@intrinsic
def set_cores(typingctx: Any, mask: Any) -> Any:
    """Let the calling thread run on the cores of the bits at `mask`, CORES of them, by sched_setaffinity(2)."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if HAS_FUTEX:
            signature = ir.FunctionType(ir.IntType(32), [ir.IntType(32), _I64, _I64])
            function = cgutils.get_or_insert_function(b.module, signature, "sched_setaffinity")
            b.call(function, [ir.IntType(32)(0), _I64(CORES // 8), args[0]])
        return ctx.get_dummy_value()

    return types.void(types.int64), codegen


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


def sync_ints(n_thread: int) -> int:
    """How many zeroed int64 a barrier and the queues of `n_thread` threads take."""
    return (_TAKEN + n_thread * _TAKEN_BYTES) // 8


def allow_cores(sync: npt.NDArray[np.int64]) -> None:
    """Write down for `part` which cores the calling thread may use now; with more than CORES nobody parts."""
    if HAS_FUTEX and max(os.sched_getaffinity(0)) < CORES:
        allowed = np.zeros(CORES, np.uint8)
        allowed[list(os.sched_getaffinity(0))] = 1
        sync[_ALLOWED // 8 :][: CORES // 64] = np.packbits(allowed, bitorder="little").view(np.int64)


@njit
def part(sync: int) -> None:
    """Leave the core of the thread that came last to the barrier for another one, if the system has put both on it."""
    core = current_core()
    if core != atomic_load(sync + _LAST_CORE):
        return
    left = 0
    for i in range(CORES // 64):  # who does this at the same time leaves the same core
        bits = atomic_load(sync + _ALLOWED + 8 * i)
        if i == core >> 6:
            bits &= ~(1 << (core & 63))
        atomic_store(sync + _OTHERS + 8 * i, bits)
        left |= bits
    if left:
        set_cores(sync + _OTHERS)
        set_cores(sync + _ALLOWED)


@njit
def barrier(sync: int, n_thread: int, yield_to: int) -> None:
    """Return once all `n_thread` threads have called it; `sync` is the address of `sync_ints(n_thread)` zeros.

    Who waits for long yields by `yield_to`, or sleeps where that is SLEEP or PART (with HAS_FUTEX alone). After PART,
    for which `allow_cores` has been called, it goes to another core if the thread it waited for has come to its own.
    """
    generation = atomic_load(sync + _GENERATION)
    if n_thread == 1:
        atomic_store(sync + _GENERATION, generation + 1)
    elif atomic_add(sync, 1) == n_thread - 1:
        atomic_store(sync, 0)
        if yield_to == PART:
            atomic_store(sync + _LAST_CORE, current_core())
        atomic_store(sync + _GENERATION, generation + 1)
        wake(sync + _GENERATION, sync + _SLEEPERS)
    else:
        word, hurried = sync + _GENERATION, atomic_load(sync + _HURRIED)
        spins = HURRIED_SPINS if hurried else SPINS
        if yield_to == PART:
            spins *= PATIENCE
        if spin_while(word, generation, spins):
            if hurried:
                atomic_store(sync + _HURRIED, 0)
        else:
            if not hurried:
                atomic_store(sync + _HURRIED, 1)
            atomic_add(sync + LONG_WAITS, 1)
            sleep_while(word, sync + _SLEEPERS, generation, SLEEP if yield_to == PART else yield_to, 0)
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
    generation = atomic_load(sync + _GENERATION) << 20
    for i in range(n_thread):
        owner = (thread + i) % n_thread
        first, last = share(n, unit, owner, n_thread)
        units = (last - first + unit - 1) // unit
        least = (units + pieces - 1) // pieces
        word = sync + _TAKEN + owner * _TAKEN_BYTES + 8 * queue
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
