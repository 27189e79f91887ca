"""The SIMD vocabulary across lanes: shuffles, reductions, integer dot products, and calls by address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from localmoe.kernels.shapes import ISA
from localmoe.kernels.simd_emit import (
    BITS,
    F32T,
    I16T,
    I64T,
    VNNI,
    Vec,
    call,
    const,
    emit_dot2,
    emit_dot4,
    emit_dot4_full_scaled,
    emit_dot4_scaled,
    emit_dot4s,
    emit_lookup,
    intrinsic,
    lanes,
    llvm_type,
    load_at,
    opaque,
    suffix,
    wide,
)


def make_shuffle(mask: Sequence[int]) -> Any:
    """An intrinsic that gives lanes `mask` of a vector of any type."""

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        to = Vec(x.lane, len(mask))
        return to(x), lambda ctx, b, sig, args: lanes(b, args[0], args[0], mask)

    return op


def make_shuffle2(mask: Sequence[int]) -> Any:
    """An intrinsic that gives lanes `mask` of two vectors of one type, the second's numbered on from the first's."""

    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
        to = Vec(x.lane, len(mask))
        return to(x, x), lambda ctx, b, sig, args: lanes(b, args[0], args[1], mask)

    return op


def make_pick(lane: str, picks: Sequence[int], apart: int = 0) -> Any:
    """An intrinsic that loads 64 bytes from an address as lanes of a type, and gives those at `picks`.

    With `apart`, picks from the vector's end on are of the 64 bytes that lie so many bytes further on.
    """
    whole, to = Vec(lane, 512 // BITS[lane]), Vec(lane, len(picks))

    @intrinsic
    def op(typingctx: Any, address: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            first = load_at(b, args[0], llvm_type(whole))
            second = load_at(b, b.add(args[0], I64T(apart)), llvm_type(whole)) if apart else first
            return lanes(b, first, second, picks)

        return to(types.int64), codegen

    return op


def make_permute(mask: Sequence[int]) -> Any:
    """`make_shuffle` of int16 lanes into 32, as one instruction where the hardware has it.

    LLVM would move a shuffle before the widening of bytes and widen every result; an index that it cannot see through
    (a weak global) keeps it where it is: 1 instruction instead of 2 (Q4_K matvec, in cache: 34 -> 38 GB/s).
    """

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            if ISA != "avx512vnni":
                return lanes(b, args[0], args[0], mask)
            to = ir.VectorType(I16T, 32)
            return call(b, "llvm.x86.avx512.permvar.hi.512", to, [wide(b, args[0], 32), opaque(b, to, mask)])

        return Vec("i16", 32)(x), codegen

    return op


@intrinsic
def concat(typingctx: Any, x: Any, y: Any) -> Any:
    """The lanes of x, then those of y."""
    to = Vec(x.lane, 2 * x.n)
    return to(x, x), lambda ctx, b, sig, args: lanes(b, args[0], args[1], range(2 * x.n))


@intrinsic
def zero_extend(typingctx: Any, x: Any) -> Any:
    """The lanes of x, then as many zeros."""
    to = Vec(x.lane, 2 * x.n)
    return to(x), lambda ctx, b, sig, args: lanes(b, args[0], const(x, 0), range(2 * x.n))


@intrinsic
def fold(typingctx: Any, x: Any) -> Any:
    """The lower half of the lanes plus the upper half."""
    n = x.n // 2

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        low, high = (lanes(b, args[0], args[0], range(k, k + n)) for k in (0, n))
        return (b.fadd if x.lane == "f32" else b.add)(low, high)

    return Vec(x.lane, n)(x), codegen


def _reduce_f32(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            start = [ir.Constant(F32T, 0.0)] if name == "fadd" else []
            signature = ir.FunctionType(F32T, [a.type for a in start] + [llvm_type(x)])
            fn = cgutils.get_or_insert_function(b.module, signature, f"llvm.vector.reduce.{name}.{suffix(x)}")
            return b.call(fn, [*start, args[0]], fastmath=("reassoc",) if name == "fadd" else ())

        return types.float32(x), codegen

    return op


def _reduce_i32(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            return call(b, f"llvm.vector.reduce.{name}.{suffix(x)}", ir.IntType(32), [args[0]])

        return types.int32(x), codegen

    return op


hsum = _reduce_f32("fadd")
hmax = _reduce_f32("fmax")
hmin = _reduce_f32("fmin")
hsum_i32 = _reduce_i32("add")
hmax_i32 = _reduce_i32("smax")


@intrinsic
def bits_f32(typingctx: Any, x: Any) -> Any:
    """The float32 whose bits an int32 holds."""
    return types.float32(types.int32), lambda ctx, b, sig, args: b.bitcast(args[0], F32T)


# --- integer dot products -----------------------------------------------------------------------------------


@intrinsic
def dot4(typingctx: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """acc[i] + sum over j < 4 of unsigned[4i+j] * signed[4i+j]; unsigned lanes at most 127."""
    return acc(acc, unsigned, signed), lambda ctx, b, sig, args: emit_dot4(b, *args)


@intrinsic
def dot4s(typingctx: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] + sum over j < 4 of x[4i+j] * y[4i+j], both signed, y never -128."""
    return acc(acc, x, y), lambda ctx, b, sig, args: emit_dot4s(b, *args)


@intrinsic
def lookup(typingctx: Any, table: Any, index: Any) -> Any:
    """table[16 * (i // 16) + index[i]] for each byte i: a table of 16 bytes each 16 lanes; indices at most 15."""
    return index(table, index), lambda ctx, b, sig, args: emit_lookup(b, *args)


DOT4_BIAS = 128 if VNNI else 0
"""What `dot4_biased` adds to each x: where the hardware multiplies unsigned by signed, a sign is a bit flipped."""


@intrinsic
def dot4_biased(typingctx: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] + sum over j < 4 of (x[4i+j] + DOT4_BIAS) * y[4i+j], both signed, y never -128.

    The caller takes DOT4_BIAS times the sum of y away, most cheaply in what it gives as `acc`.
    """

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not VNNI:
            return emit_dot4s(b, *args)
        return emit_dot4(b, args[0], b.xor(args[1], const(x, -128)), args[2])

    return acc(acc, x, y), codegen


@intrinsic
def dot4_scaled(typingctx: Any, acc: Any, unsigned: Any, signed: Any, scale: Any) -> Any:
    """acc[i] + scale[2i] * (sum over j < 4 of unsigned[4i+j] * signed[4i+j]); unsigned at most 127.

    `scale` has int16 lanes, 2i and 2i+1 equal.
    """
    return acc(acc, unsigned, signed, scale), lambda ctx, b, sig, args: emit_dot4_scaled(b, *args)


@intrinsic
def dot4_full_scaled(typingctx: Any, acc: Any, x: Any, y: Any, scale: Any) -> Any:
    """As `dot4_scaled` for x of the full range, signed, DOT4_BIAS added; neither x nor y is -128 before that."""
    return acc(acc, x, y, scale), lambda ctx, b, sig, args: emit_dot4_full_scaled(b, *args)


@intrinsic
def dot2(typingctx: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] + x[2i] * y[2i] + x[2i+1] * y[2i+1] in int16 -> int32; x and y may be given as bytes."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        i16 = llvm_type(Vec("i16", 2 * acc.n))
        return emit_dot2(b, args[0], b.bitcast(args[1], i16), b.bitcast(args[2], i16))

    return acc(acc, x, y), codegen


@intrinsic
def call_address(typingctx: Any, address: Any, args: Any) -> Any:
    """Call the C function at `address` with a tuple of int64 arguments."""
    n = args.count

    def codegen(ctx: Any, b: Any, sig: Any, values: Any) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [I64T] * n)
        pointer = b.inttoptr(values[0], signature.as_pointer())
        b.call(pointer, cgutils.unpack_tuple(b, values[1], n))
        return ctx.get_dummy_value()

    return types.void(types.int64, args), codegen
