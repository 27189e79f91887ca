"""The SIMD vocabulary lane by lane: making vectors, arithmetic, bits and conversions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from localmoe.kernels.shapes import ISA
from localmoe.kernels.simd_emit import (
    BITS,
    F16T,
    F32T,
    LLVM,
    Vec,
    call,
    const,
    emit_exp,
    emit_exp2_negative,
    emit_field,
    intrinsic,
    llvm_type,
    splat,
    suffix,
)
from localmoe.kernels.simd_memory import F32, I8, I16, I32


@intrinsic
def round_f16(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to the nearest float16, as float32."""
    return types.float32(types.float32), lambda ctx, b, sig, args: b.fpext(b.fptrunc(args[0], F16T), F32T)


# --- making vectors -----------------------------------------------------------------------------------------


def make_splat(vec: Vec) -> Any:
    """An intrinsic that fills `vec` with one number (int32 for integer lanes, whose low bits are taken)."""
    scalar = types.float32 if vec.lane == "f32" else types.int32

    @intrinsic
    def make(typingctx: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            v = b.trunc(args[0], LLVM[vec.lane]) if vec.lane in ("i8", "i16") else args[0]
            return splat(b, v, vec.n)

        return vec(scalar), codegen

    return make


def make_constant(vec: Vec, values: Sequence[float] | float) -> Any:
    """An intrinsic that gives a constant vector: one value everywhere, or one a lane."""
    filled = [values] * vec.n if isinstance(values, (int, float)) else list(values)

    @intrinsic
    def make(typingctx: Any) -> Any:
        return vec(), lambda ctx, b, sig, args: ir.Constant(llvm_type(vec), filled)

    return make


splat_f32 = make_splat(F32)
splat_i32 = make_splat(I32)
splat_i16 = make_splat(I16)
splat_i8 = make_splat(I8)
zero_f32 = make_constant(F32, 0)
zero_i32 = make_constant(I32, 0)


# --- lane by lane -------------------------------------------------------------------------------------------


def _binary(float_op: str, int_op: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
        name = float_op if x.lane == "f32" else int_op
        return x(x, x), lambda ctx, b, sig, args: getattr(b, name)(*args)

    return op


def _shift(name: str) -> Any:
    @intrinsic(prefer_literal=True)
    def op(typingctx: Any, x: Any, by: Any) -> Any:
        amount = by.literal_value
        return x(x, by), lambda ctx, b, sig, args: getattr(b, name)(args[0], const(x, amount))

    return op


add = _binary("fadd", "add")
sub = _binary("fsub", "sub")
mul = _binary("fmul", "mul")
div = _binary("fdiv", "sdiv")
bit_and = _binary("and_", "and_")
bit_or = _binary("or_", "or_")
bit_xor = _binary("xor", "xor")
shl = _shift("shl")
shr = _shift("lshr")
sar = _shift("ashr")


def make_shift(name: str, vec: Vec, by: Sequence[int]) -> Any:
    """An intrinsic that shifts the bits of a vector, taken as `vec`, by a constant a lane ("shl", "lshr", "ashr")."""

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            moved = getattr(b, name)(b.bitcast(args[0], llvm_type(vec)), ir.Constant(llvm_type(vec), list(by)))
            return b.bitcast(moved, llvm_type(x))

        return x(x), codegen

    return op


def make_mask(vec: Vec, values: Sequence[int] | int) -> Any:
    """An intrinsic that ands a `vec` with a constant."""
    filled = [values] * vec.n if isinstance(values, int) else list(values)

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        return vec(vec), lambda ctx, b, sig, args: b.and_(args[0], ir.Constant(llvm_type(vec), filled))

    return op


def make_field(shifts: Sequence[int], mask: int, plus: int = 0) -> Any:
    """An intrinsic that gives ((x >> shift) & mask) ^ plus of bytes, to the left if shift < 0.

    `shifts` has one shift for all lanes, or one for each half or quarter of them.
    """

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        return x(x), lambda ctx, b, sig, args: emit_field(b, args[0], shifts, mask, plus)

    return op


def make_blend(vec: Vec, bits: Sequence[int]) -> Any:
    """An intrinsic that takes a lane's `bits` from x and the others from y."""
    rest = [~bit for bit in bits]

    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            from_x = b.and_(args[0], ir.Constant(llvm_type(vec), list(bits)))
            return b.or_(from_x, b.and_(args[1], ir.Constant(llvm_type(vec), rest)))

        return vec(vec, vec), codegen

    return op


def make_bit_pick(vec: Vec, bits: Sequence[int], value: int) -> Any:
    """An intrinsic that gives `value` in the lanes where x has any of that lane's `bits`, else 0."""

    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            met = b.and_(args[0], ir.Constant(llvm_type(vec), list(bits)))
            return b.select(b.icmp_unsigned("!=", met, const(vec, 0)), const(vec, value), const(vec, 0))

        return vec(vec), codegen

    return op


def _extreme(float_name: str, int_name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
        name = float_name if x.lane == "f32" else int_name
        return x(x, x), lambda ctx, b, sig, args: call(b, f"llvm.{name}.{suffix(x)}", llvm_type(x), list(args))

    return op


minimum = _extreme("minnum", "smin")
maximum = _extreme("maxnum", "smax")


@intrinsic
def absolute(typingctx: Any, x: Any) -> Any:
    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if x.lane == "f32":
            return call(b, f"llvm.fabs.{suffix(x)}", llvm_type(x), [args[0]])
        return call(b, f"llvm.abs.{suffix(x)}", llvm_type(x), [args[0], ir.Constant(ir.IntType(1), 0)])

    return x(x), codegen


@intrinsic
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z in float32 with one rounding."""
    return x(x, x, x), lambda ctx, b, sig, args: call(b, f"llvm.fma.{suffix(x)}", llvm_type(x), list(args))


@intrinsic
def sqrt(typingctx: Any, x: Any) -> Any:
    return x(x), lambda ctx, b, sig, args: call(b, f"llvm.sqrt.{suffix(x)}", llvm_type(x), [args[0]])


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x lane by lane (relative error below 2e-7); NaN stays NaN."""
    return x(x), lambda ctx, b, sig, args: emit_exp(b, args[0])


@intrinsic
def exp2_negative(typingctx: Any, x: Any) -> Any:
    """2**x lane by lane for x not above 0 nor infinite (relative error below 5e-6); NaN stays NaN."""
    return x(x), lambda ctx, b, sig, args: emit_exp2_negative(b, args[0])


# --- other lane types ---------------------------------------------------------------------------------------


@intrinsic
def to_f32(typingctx: Any, x: Any) -> Any:
    """int32 lanes as float32."""
    to = Vec("f32", x.n)
    return to(x), lambda ctx, b, sig, args: b.sitofp(args[0], llvm_type(to))


@intrinsic
def halves(typingctx: Any, x: Any) -> Any:
    """The float16 that a vector's bits hold, as float32 lanes."""
    to = Vec("f32", x.n * BITS[x.lane] // 16)

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.fpext(b.bitcast(args[0], ir.VectorType(F16T, to.n)), llvm_type(to))

    return to(x), codegen


@intrinsic
def to_i32(typingctx: Any, x: Any) -> Any:
    """float32 lanes rounded to the nearest even integer; they must fit in 31 bits."""
    to = Vec("i32", x.n)

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if ISA == "avx512vnni" and x.n == 16:  # one instruction; LLVM makes two of the lines below
            name, every = "llvm.x86.avx512.mask.cvtps2dq.512", ir.IntType(16)(0xFFFF)
            return call(b, name, llvm_type(to), [args[0], const(to, 0), every, ir.IntType(32)(4)])
        return b.fptosi(call(b, f"llvm.nearbyint.{suffix(x)}", llvm_type(x), [args[0]]), llvm_type(to))

    return to(x), codegen


def _widen(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        to = Vec({"i8": "i16", "i16": "i32"}[x.lane], x.n)
        return to(x), lambda ctx, b, sig, args: getattr(b, name)(args[0], llvm_type(to))

    return op


widen = _widen("sext")
"""Signed int8 lanes as int16, int16 as int32."""
widen_unsigned = _widen("zext")


def _as(lane: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        to = Vec(lane, x.n * BITS[x.lane] // BITS[lane])
        return to(x), lambda ctx, b, sig, args: b.bitcast(args[0], llvm_type(to))

    return op


as_f32 = _as("f32")
"""The same bits as float32 lanes."""
as_i32 = _as("i32")
as_i16 = _as("i16")
as_i8 = _as("i8")
