"""The SIMD vocabulary's access to memory: loads, stores and conversions on the way, by plain int64 addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from localmoe.kernels.shapes import ISA, LANES
from localmoe.kernels.simd_emit import (
    F16T,
    F32T,
    I8T,
    I16T,
    I32T,
    I64T,
    Vec,
    const,
    emit_ahead,
    intrinsic,
    lanes,
    llvm_type,
    load_at,
    splat,
    store_at,
)

F32 = Vec("f32", LANES)
I32 = Vec("i32", LANES)
I16 = Vec("i16", 2 * LANES)
I8 = Vec("i8", 4 * LANES)


def make_load(vec: Vec) -> Any:
    """An intrinsic that loads `vec` from an address."""

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        return vec(types.int64), lambda ctx, b, sig, args: load_at(b, args[0], llvm_type(vec))

    return load


def make_load_twice(vec: Vec) -> Any:
    """An intrinsic that loads half a `vec` from an address into both of its halves."""

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            half = load_at(b, args[0], llvm_type(Vec(vec.lane, vec.n // 2)))
            return lanes(b, half, half, range(vec.n))

        return vec(types.int64), codegen

    return load


def make_load_f16(n: int) -> Any:
    """An intrinsic that loads `n` float16 from an address, widened to float32."""

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            half = load_at(b, args[0], ir.VectorType(F16T, n))
            return b.fpext(half, ir.VectorType(F32T, n))

        return Vec("f32", n)(types.int64), codegen

    return load


def make_load_bf16(n: int) -> Any:
    """An intrinsic that loads `n` bfloat16 from an address, widened to float32."""
    i32 = Vec("i32", n)

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            half = load_at(b, args[0], ir.VectorType(I16T, n))
            wide = b.shl(b.zext(half, llvm_type(i32)), const(i32, 16))
            return b.bitcast(wide, ir.VectorType(F32T, n))

        return Vec("f32", n)(types.int64), codegen

    return load


def load_halves_apart(n: int, addresses: int) -> Any:
    """An intrinsic that loads `n` float16 (1 or 2) from each of 2 or 4 addresses, widened to float32, side by side."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        # joined as integers: scalar instructions are free beside the vector ones, inserting into a vector is not
        parts = [load_at(b, a, ir.IntType(16 * n)) for a in args]
        while len(parts) > 1 and parts[0].type.width < 64:
            width = parts[0].type.width
            wider = ir.IntType(2 * width)
            parts = [
                b.or_(b.zext(x, wider), b.shl(b.zext(y, wider), wider(width)))
                for x, y in zip(parts[::2], parts[1::2], strict=True)
            ]
        vectors = [b.bitcast(part, ir.VectorType(F16T, part.type.width // 16)) for part in parts]
        halves = vectors[0] if len(vectors) == 1 else lanes(b, vectors[0], vectors[1], range(n * addresses))
        return b.fpext(halves, ir.VectorType(F32T, n * addresses))

    kind = Vec("f32", n * addresses)
    if addresses == 2:

        @intrinsic
        def load_2(typingctx: Any, a0: Any, a1: Any) -> Any:
            return kind(types.int64, types.int64), codegen

        return load_2

    @intrinsic
    def load_4(typingctx: Any, a0: Any, a1: Any, a2: Any, a3: Any) -> Any:
        return kind(types.int64, types.int64, types.int64, types.int64), codegen

    return load_4


def _add_where(b: Any, x: Any, bits: Any, value: int) -> Any:
    """x, plus `value` in the byte lanes whose bit is set."""
    met = b.bitcast(bits, ir.VectorType(ir.IntType(1), bits.type.width))
    return b.select(met, b.add(x, ir.Constant(x.type, [value] * x.type.count)), x)


def make_add_bits(value: int) -> Any:
    """An intrinsic that adds `value` to the bytes of a 64-byte vector whose bits are set in 32 bits at two addresses.

    Only AVX-512 has masks of 64 bits.
    """

    @intrinsic
    def op(typingctx: Any, x: Any, first: Any, second: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            low, high = (load_at(b, a, I32T) for a in args[1:])
            if ISA == "avx512vnni":
                bits = b.or_(b.zext(low, I64T), b.shl(b.zext(high, I64T), I64T(32)))
                return _add_where(b, args[0], bits, value)
            halves = [
                _add_where(b, lanes(b, args[0], args[0], range(at, at + 32)), bits, value)
                for at, bits in ((0, low), (32, high))
            ]
            return lanes(b, halves[0], halves[1], range(64))

        return x(x, types.int64, types.int64), codegen

    return op


load_f32 = make_load(F32)
load_i32 = make_load(I32)
load_i16 = make_load(I16)
load_i8 = make_load(I8)
load_f16 = make_load_f16(LANES)
load_bf16 = make_load_bf16(LANES)


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a vector of any type at an address."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        store_at(b, args[0], args[1])
        return ctx.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def store_f16(typingctx: Any, address: Any, value: Any) -> Any:
    """Round float32 lanes to float16 (to nearest even) and store them."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        store_at(b, args[0], b.fptrunc(args[1], ir.VectorType(F16T, value.n)))
        return ctx.get_dummy_value()

    return types.void(types.int64, value), codegen


def _store_low(kind: Any) -> Any:
    @intrinsic
    def put(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            store_at(b, args[0], b.trunc(args[1], ir.VectorType(kind, value.n)))
            return ctx.get_dummy_value()

        return types.void(types.int64, value), codegen

    return put


store_i8_from_i32 = _store_low(I8T)
"""Store the low byte of each int32 lane."""
store_i16_from_i32 = _store_low(I16T)
"""Store the low half of each int32 lane."""


@intrinsic
def broadcast4(typingctx: Any, address: Any) -> Any:
    """The four bytes at an address in every 32-bit lane."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.bitcast(splat(b, load_at(b, args[0], I32T), LANES), llvm_type(I8))

    return I8(types.int64), codegen


@intrinsic
def ask_ahead(typingctx: Any, address: Any) -> Any:
    """Ask for what a row's read at an address will come to, as `emit_ahead` does."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        emit_ahead(b, args[0])
        return ctx.get_dummy_value()

    return types.void(types.int64), codegen


def _scalar_load(kind: Any, result: Any, widen: Callable[[Any, Any], Any] | None = None) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            value = load_at(b, args[0], kind)
            return value if widen is None else widen(b, value)

        return result(types.int64), codegen

    return load


def _scalar_store(kind: Any, operand: Any, narrow: Callable[[Any, Any], Any] | None = None) -> Any:
    @intrinsic
    def put(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            store_at(b, args[0], args[1] if narrow is None else narrow(b, args[1]))
            return ctx.get_dummy_value()

        return types.void(types.int64, operand), codegen

    return put


ld_f32 = _scalar_load(F32T, types.float32)
ld_f16 = _scalar_load(F16T, types.float32, lambda b, v: b.fpext(v, F32T))
ld_bf16 = _scalar_load(I16T, types.float32, lambda b, v: b.bitcast(b.shl(b.zext(v, I32T), I32T(16)), F32T))
ld_i8 = _scalar_load(I8T, types.int32, lambda b, v: b.sext(v, I32T))
ld_u8 = _scalar_load(I8T, types.int32, lambda b, v: b.zext(v, I32T))
ld_i16 = _scalar_load(I16T, types.int32, lambda b, v: b.sext(v, I32T))
ld_u16 = _scalar_load(I16T, types.int32, lambda b, v: b.zext(v, I32T))
ld_i32 = _scalar_load(I32T, types.int32)
ld_u32 = _scalar_load(I32T, types.uint32)
ld_i64 = _scalar_load(I64T, types.int64)
st_f32 = _scalar_store(F32T, types.float32)
st_f16 = _scalar_store(F16T, types.float32, lambda b, v: b.fptrunc(v, F16T))
st_i8 = _scalar_store(I8T, types.int32, lambda b, v: b.trunc(v, I8T))
st_i16 = _scalar_store(I16T, types.int32, lambda b, v: b.trunc(v, I16T))
st_i32 = _scalar_store(I32T, types.int32)
st_i64 = _scalar_store(I64T, types.int64)
