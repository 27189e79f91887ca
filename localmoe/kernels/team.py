"""A team of threads that runs one compiled call together: atomics, a spinning barrier, and how rows are shared out.

A barrier spins for a short while and then yields the processor, so a busy machine costs no more than its share.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from localmoe.jit import njit
from localmoe.kernels.simd import ISA, call_address

_I64 = ir.IntType(64)
SPINS = 4096  # pauses before a waiting thread yields: about 0.1 ms
SYNC_INTS = 64  # int64 of one barrier: its counter and its generation on cache lines of their own
_GENERATION = 32 * 8
_ALIGN = 8


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


@njit
def wait_while(address: int, value: int, yield_to: int, limit: int) -> bool:
    """Wait until the int64 at `address` is not `value`; False after `limit` yields (0: no limit)."""
    spins = 0
    yields = 0
    while atomic_load(address) == value:
        spins += 1
        if spins <= SPINS:
            pause()
        else:
            yields += 1
            if limit and yields > limit:
                return False
            call_address(yield_to, ())
    return True


@njit
def barrier(sync: int, n_thread: int, yield_to: int) -> None:
    """Return once all `n_thread` threads have called it; `sync` is the address of SYNC_INTS zeroed int64."""
    if n_thread == 1:
        return
    generation = atomic_load(sync + _GENERATION)
    if atomic_add(sync, 1) == n_thread - 1:
        atomic_store(sync, 0)
        atomic_add(sync + _GENERATION, 1)
    else:
        wait_while(sync + _GENERATION, generation, yield_to, 0)


@njit
def share(n: int, unit: int, thread: int, n_thread: int) -> tuple[int, int]:
    """The half-open range of 0..n that is `thread`'s, cut at multiples of `unit`."""
    units = (n + unit - 1) // unit
    first = units * thread // n_thread * unit
    last = units * (thread + 1) // n_thread * unit
    return min(first, n), min(last, n)
