"""Atomic operations on int64 words by address, in the one order that all threads see."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

_I64 = ir.IntType(64)
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
def atomic_replace(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether the int64 at an address was `expected`; if so, it is `value` now."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(b, args[0])
        return b.extract_value(b.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen
