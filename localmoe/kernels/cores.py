"""Which of a team's threads run on which cores, where Linux leaves one waiting for a core while another is free.

A program that wants a core for some milliseconds, as drawing the app's screen does, takes it from a thread of the team.
The others wait at the next barrier and leave their cores, but Linux (6.18, 250 Hz) moves the one that waits to a free
core only at a tick, up to 4 ms later, since it ran just now; and two threads that have come to one core, each of which
runs while the other sleeps, it may leave there for seconds. So who waits fetches the missing thread, and who wakes
another one sends it to another core than its own. benchmarks/RESULTS.md has what that brings.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.atomics import atomic_load, atomic_store
from localmoe.kernels.simd import ISA
from localmoe.kernels.waits import (
    ALLOWED,
    ARRIVED,
    BACK,
    CORE,
    CORES,
    HAS_FUTEX,
    LAST_CORE,
    NUMBER,
    ONE_CORE,
    OTHERS,
    TAKEN,
    TAKEN_BYTES,
)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_X86 = ISA != "neon" and platform.machine() == "x86_64"
SYSCALLS = {"futex": 202, "gettid": 186} if _X86 else {"futex": 98, "gettid": 178}
_CLOCK_OF_THREAD = 6  # the lowest bits of a clock's number: a thread's, of the time that it had of a core


@intrinsic
def current_core(typingctx: Any) -> Any:
    """The core that the calling thread runs on, by Linux's sched_getcpu(3); 0 where HAS_FUTEX is not."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not HAS_FUTEX:
            return _I64(0)
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I32, []), "sched_getcpu")
        return b.sext(b.call(function, []), _I64)

    return types.int64(), codegen


@intrinsic
def thread_number(typingctx: Any) -> Any:
    """The calling thread's number, by Linux's gettid(2); 0 where HAS_FUTEX is not."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not HAS_FUTEX:
            return _I64(0)
        function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I64, [_I64], var_arg=True), "syscall")
        return b.call(function, [_I64(SYSCALLS["gettid"])])

    return types.int64(), codegen


@intrinsic
def time_on_cores(typingctx: Any, number: Any) -> Any:
    """Nanoseconds that a thread of this process has run so far, by its number; -1 where nothing says so."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not HAS_FUTEX:
            return _I64(-1)
        clock = b.trunc(b.or_(b.shl(b.not_(args[0]), _I64(3)), _I64(_CLOCK_OF_THREAD)), _I32)
        first = b.gep(cgutils.alloca_once(b, ir.ArrayType(_I64, 2)), [_I32(0), _I32(0)])  # seconds, nanoseconds
        signature = ir.FunctionType(_I32, [_I32, _I64.as_pointer()])
        failed = b.call(cgutils.get_or_insert_function(b.module, signature, "clock_gettime"), [clock, first])
        time = b.add(b.mul(b.load(first), _I64(1_000_000_000)), b.load(b.gep(first, [_I32(1)])))
        return b.select(b.icmp_signed("!=", failed, _I32(0)), _I64(-1), time)

    return types.int64(types.int64), codegen


@intrinsic
def set_cores(typingctx: Any, number: Any, mask: Any) -> Any:
    """Let a thread by its number, 0 for the calling one, run on the cores of the bits at `mask`, CORES of them."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if HAS_FUTEX:
            signature = ir.FunctionType(_I32, [_I32, _I64, _I64])
            function = cgutils.get_or_insert_function(b.module, signature, "sched_setaffinity")
            b.call(function, [b.trunc(args[0], _I32), _I64(CORES // 8), args[1]])
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@njit
def may_use(sync: int, core: int) -> bool:
    """Whether a core is one of those that `allow_cores` has written down."""
    return 0 <= core < CORES and (atomic_load(sync + ALLOWED + 8 * (core >> 6)) >> (core & 63)) & 1 != 0


@njit
def put_core(at: int, core: int) -> None:
    """Write the set of a single core."""
    for i in range(CORES // 64):
        atomic_store(at + 8 * i, 1 << (core & 63) if i == core >> 6 else 0)


@njit
def put_others(at: int, sync: int, core: int) -> bool:
    """Write the set of the cores that may be used but for one; whether there are any."""
    left = 0
    for i in range(CORES // 64):
        bits = atomic_load(sync + ALLOWED + 8 * i)
        if i == core >> 6:
            bits &= ~(1 << (core & 63))
        atomic_store(at + 8 * i, bits)
        left |= bits
    return left != 0


@njit
def part(sync: int) -> None:
    """Leave the core of the thread that came last to the barrier for another one, if the system has put both on it."""
    core = current_core()
    # who does this at the same time leaves the same core
    if core == atomic_load(sync + LAST_CORE) and put_others(sync + OTHERS, sync, core):
        set_cores(0, sync + OTHERS)
        set_cores(0, sync + ALLOWED)


@njit
def say_who(sync: int, thread: int) -> None:
    """Let the others know which of the system's threads `thread` is, the calling one."""
    atomic_store(sync + TAKEN + thread * TAKEN_BYTES + NUMBER, thread_number())


@njit
def arrive(sync: int, thread: int, generation: int) -> None:
    """Write down where `thread`, the calling one, was when it came to this generation's barrier."""
    mine = sync + TAKEN + thread * TAKEN_BYTES
    atomic_store(mine + CORE, current_core())
    atomic_store(mine + ARRIVED, generation)


@njit
def fetch(sync: int, thread: int, n_thread: int) -> None:
    """Let one that has not arrived and waits for a core have that of `thread`, the calling one, about to sleep.

    When it is woken it goes to the core that the other one had.
    """
    mine, core = sync + TAKEN + thread * TAKEN_BYTES, current_core()
    atomic_store(mine + CORE, core)
    atomic_store(mine + BACK, -1)
    if not may_use(sync, core):
        return
    for i in range(1, n_thread):
        other = sync + TAKEN + (thread + i) % n_thread * TAKEN_BYTES
        number = atomic_load(other + NUMBER)
        if not number or atomic_load(other + ARRIVED) == atomic_load(mine + ARRIVED):
            continue
        ran = time_on_cores(number)
        if ran >= 0 and time_on_cores(number) == ran:
            atomic_store(mine + BACK, atomic_load(other + CORE))
            put_core(mine + ONE_CORE, core)
            set_cores(number, mine + ONE_CORE)
            set_cores(number, sync + ALLOWED)
            return


@njit
def send(sync: int, thread: int, n_thread: int) -> int:
    """Let one that sleeps on the core of `thread`, the calling one, wake on another; its number, 0: there is none.

    It may then run there alone, until it is awake and given the cores at ALLOWED again.
    """
    mine, core = sync + TAKEN + thread * TAKEN_BYTES, current_core()
    for i in range(1, n_thread):
        other = sync + TAKEN + (thread + i) % n_thread * TAKEN_BYTES
        number, back = atomic_load(other + NUMBER), atomic_load(other + BACK)
        if number and atomic_load(other + CORE) == core:
            if back != core and may_use(sync, back):
                put_core(mine + ONE_CORE, back)
            elif not put_others(mine + ONE_CORE, sync, core):
                return 0
            set_cores(number, mine + ONE_CORE)
            return number
    return 0
