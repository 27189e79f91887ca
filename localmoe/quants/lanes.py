# ruff: noqa: ARG001, ARG005
"""Sixteen blocks side by side: vector values whose lane i belongs to block i, for encoders that must be bit-exact.

ggml's encoders work on one block in plain order without FMA. The same operations on lanes give the same bits, so
nothing here reorders a sum or contracts a multiplication: operators lower to single IEEE instructions. Memory is
addressed by plain int64 addresses and needs no alignment.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, extending, types
from numba.core.datamodel import models
from numba.core.extending import lower_builtin, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

N = 16

intrinsic: Any = extending.intrinsic

_F32, _I32, _I16, _I8, _I1, _HALF = (
    ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8), ir.IntType(1), ir.HalfType()
)  # fmt: skip
_LLVM = {"f32": _F32, "i32": _I32, "i1": _I1}


class Lanes(types.Type):
    """Sixteen lanes of "f32", "i32" or "i1"."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        super().__init__(name=f"Lanes({lane})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """A Lanes value is one LLVM vector."""

    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, _vector(_LLVM[fe_type.lane]))


def _vector(lane: Any) -> ir.VectorType:
    return ir.VectorType(lane, N)


def _const(lane: Any, value: float) -> ir.Constant:
    return ir.Constant(_vector(lane), [value] * N)


def _call(b: Any, name: str, result: Any, args: list[Any]) -> Any:
    signature_ = ir.FunctionType(result, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, signature_, name), args)


FLOATS, INTS, MASK = Lanes("f32"), Lanes("i32"), Lanes("i1")

# --- operators ----------------------------------------------------------------------------------------------

_OPERATORS: tuple[tuple[Any, Lanes, Lanes, Callable[[Any, Any, Any], Any]], ...] = (
    (operator.add, FLOATS, FLOATS, lambda b, x, y: b.fadd(x, y)),
    (operator.sub, FLOATS, FLOATS, lambda b, x, y: b.fsub(x, y)),
    (operator.mul, FLOATS, FLOATS, lambda b, x, y: b.fmul(x, y)),
    (operator.truediv, FLOATS, FLOATS, lambda b, x, y: b.fdiv(x, y)),
    (operator.lt, FLOATS, MASK, lambda b, x, y: b.fcmp_ordered("<", x, y)),
    (operator.gt, FLOATS, MASK, lambda b, x, y: b.fcmp_ordered(">", x, y)),
    (operator.eq, FLOATS, MASK, lambda b, x, y: b.fcmp_ordered("==", x, y)),
    (operator.gt, INTS, MASK, lambda b, x, y: b.icmp_signed(">", x, y)),
    (operator.ne, INTS, MASK, lambda b, x, y: b.icmp_signed("!=", x, y)),
    (operator.add, INTS, INTS, lambda b, x, y: b.add(x, y)),
    (operator.and_, INTS, INTS, lambda b, x, y: b.and_(x, y)),
    (operator.or_, INTS, INTS, lambda b, x, y: b.or_(x, y)),
    (operator.lshift, INTS, INTS, lambda b, x, y: b.shl(x, y)),
    (operator.rshift, INTS, INTS, lambda b, x, y: b.lshr(x, y)),
    (operator.and_, MASK, MASK, lambda b, x, y: b.and_(x, y)),
    (operator.or_, MASK, MASK, lambda b, x, y: b.or_(x, y)),
)


def _register(op: Any, operand: Lanes, result: Lanes, emit: Callable[[Any, Any, Any], Any]) -> None:
    @infer_global(op)
    class _(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(result, operand, operand) if tuple(args) == (operand, operand) and not kws else None

    @lower_builtin(op, operand, operand)
    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return emit(b, *args)


for _row in _OPERATORS:
    _register(*_row)

# --- memory -------------------------------------------------------------------------------------------------


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _make_load(lane: Any, result: Any, widen: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        return result(types.int64), lambda ctx, b, sig, args: widen(b, _load(b, args[0], lane))

    return load


def _make_store(operand: Any, narrow: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            v = narrow(b, args[1])
            done = b.store(v, b.inttoptr(args[0], v.type.as_pointer()))
            done.align = 1
            return ctx.get_dummy_value()

        return types.void(types.int64, operand), codegen

    return store


def _bf16_up(b: Any, v: Any) -> Any:
    return b.bitcast(b.shl(b.zext(v, _vector(_I32)), _const(_I32, 16)), _vector(_F32))


def _keep(b: Any, v: Any) -> Any:
    return v


load_f = _make_load(_vector(_F32), FLOATS, _keep)
load_i = _make_load(_vector(_I32), INTS, _keep)
load_f16 = _make_load(_vector(_HALF), FLOATS, lambda b, v: b.fpext(v, _vector(_F32)))
load_bf16 = _make_load(_vector(_I16), FLOATS, _bf16_up)
load_u16 = _make_load(_vector(_I16), INTS, lambda b, v: b.zext(v, _vector(_I32)))
load_u8 = _make_load(_vector(_I8), INTS, lambda b, v: b.zext(v, _vector(_I32)))
store_f = _make_store(FLOATS, _keep)
store_i = _make_store(INTS, _keep)
store_u16 = _make_store(INTS, lambda b, v: b.trunc(v, _vector(_I16)))
store_u8 = _make_store(INTS, lambda b, v: b.trunc(v, _vector(_I8)))
store_f16 = _make_store(FLOATS, lambda b, v: b.fptrunc(v, _vector(_HALF)))

# one element
get_f = _make_load(_F32, types.float32, _keep)
get_f16 = _make_load(_HALF, types.float32, lambda b, v: b.fpext(v, _F32))
get_bf16 = _make_load(_I16, types.float32, lambda b, v: b.bitcast(b.shl(b.zext(v, _I32), _I32(16)), _F32))
get_u16 = _make_load(_I16, types.int32, lambda b, v: b.zext(v, _I32))
get_u64 = _make_load(ir.IntType(64), types.uint64, _keep)
get_i = _make_load(_I32, types.int32, _keep)
get_u8 = _make_load(_I8, types.int32, lambda b, v: b.zext(v, _I32))
put_f = _make_store(types.float32, _keep)
put_f16 = _make_store(types.float32, lambda b, v: b.fptrunc(v, _HALF))
put_u8 = _make_store(types.int32, lambda b, v: b.trunc(v, _I8))
put_u32 = _make_store(types.int32, _keep)
put_u64_byte = _make_store(types.uint64, lambda b, v: b.trunc(v, _I8))

# --- lane by lane -------------------------------------------------------------------------------------------


def _make_splat(lane: Any, result: Lanes, scalar: Any) -> Any:
    @intrinsic
    def splat(typingctx: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            one = b.insert_element(ir.Constant(_vector(lane), ir.Undefined), args[0], _I32(0))
            return b.shuffle_vector(one, one, ir.Constant(_vector(_I32), [0] * N))

        return result(scalar), codegen

    return splat


splat_f = _make_splat(_F32, FLOATS, types.float32)
splat_i = _make_splat(_I32, INTS, types.int32)


@intrinsic
def numbers(typingctx: Any) -> Any:
    """0, 1, 2, ... as int32 lanes."""
    return INTS(), lambda ctx, b, sig, args: ir.Constant(_vector(_I32), list(range(N)))


@intrinsic
def select(typingctx: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask is set, else y."""
    return x(MASK, x, x), lambda ctx, b, sig, args: b.select(*args)


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether any lane of the mask is set."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.icmp_unsigned("!=", b.bitcast(args[0], _I16), _I16(0))

    return types.boolean(MASK), codegen


@intrinsic
def absolute(typingctx: Any, x: Any) -> Any:
    """The lanes without their sign."""
    return FLOATS(FLOATS), lambda ctx, b, sig, args: _call(b, "llvm.fabs.v16f32", _vector(_F32), list(args))


@intrinsic
def sqrt(typingctx: Any, x: Any) -> Any:
    """The correctly rounded square root."""
    return FLOATS(FLOATS), lambda ctx, b, sig, args: _call(b, "llvm.sqrt.v16f32", _vector(_F32), list(args))


@intrinsic
def negative(typingctx: Any, x: Any) -> Any:
    """The lanes with their sign flipped."""
    return FLOATS(FLOATS), lambda ctx, b, sig, args: b.fneg(args[0])


@intrinsic
def to_f(typingctx: Any, x: Any) -> Any:
    """int32 lanes as float32."""
    return FLOATS(INTS), lambda ctx, b, sig, args: b.sitofp(args[0], _vector(_F32))


@intrinsic
def bits(typingctx: Any, x: Any) -> Any:
    """float32 lanes' bits as int32."""
    return INTS(FLOATS), lambda ctx, b, sig, args: b.bitcast(args[0], _vector(_I32))


@intrinsic
def clamp(typingctx: Any, x: Any, low: Any, high: Any) -> Any:
    """max(low, min(high, x)) on int32 lanes."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        capped = _call(b, "llvm.smin.v16i32", _vector(_I32), [args[2], args[0]])
        return _call(b, "llvm.smax.v16i32", _vector(_I32), [args[1], capped])

    return INTS(INTS, INTS, INTS), codegen


@intrinsic
def largest(typingctx: Any, x: Any) -> Any:
    """The largest of the int32 lanes."""
    return types.int32(INTS), lambda ctx, b, sig, args: _call(b, "llvm.vector.reduce.smax.v16i32", _I32, list(args))


@intrinsic
def smallest(typingctx: Any, x: Any) -> Any:
    """The smallest of the int32 lanes."""
    return types.int32(INTS), lambda ctx, b, sig, args: _call(b, "llvm.vector.reduce.smin.v16i32", _I32, list(args))


@intrinsic
def larger(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of two int32 lanes."""
    return INTS(INTS, INTS), lambda ctx, b, sig, args: _call(b, "llvm.smax.v16i32", _vector(_I32), list(args))


_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the value rounded half to even in the low bits


def _nearest(b: Any, value: Any, f32: Any, i32: Any) -> Any:
    moved = b.bitcast(b.fadd(value, f32(_MAGIC)), i32(0).type)
    return b.sub(b.and_(moved, i32(0x007FFFFF)), i32(0x00400000))


@intrinsic
def nearest(typingctx: Any, x: Any) -> Any:
    """ggml's nearest_int: half to even for |x| < 2**22, and its very bits for anything else."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return _nearest(b, args[0], lambda v: _const(_F32, v), lambda v: _const(_I32, v))

    return INTS(FLOATS), codegen


@intrinsic
def nearest_1(typingctx: Any, x: Any) -> Any:
    """`nearest` of one float32."""
    return types.int32(types.float32), lambda ctx, b, sig, args: _nearest(b, args[0], _F32, _I32)


@intrinsic
def divide_1(typingctx: Any, x: Any, y: Any) -> Any:
    """x / y in float32 by IEEE's rules, also by zero."""
    return types.float32(types.float32, types.float32), lambda ctx, b, sig, args: b.fdiv(*args)


@intrinsic
def from_bits_1(typingctx: Any, x: Any) -> Any:
    """int32 bits as one float32."""
    return types.float32(types.int32), lambda ctx, b, sig, args: b.bitcast(args[0], _F32)


@intrinsic
def truncate(typingctx: Any, x: Any) -> Any:
    """float32 lanes to int32 towards zero; what does not fit, and NaN, becomes -2**31 as x86's cvttps2dq has it."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        size = _call(b, "llvm.fabs.v16f32", _vector(_F32), [args[0]])
        fits = b.fcmp_ordered("<", size, _const(_F32, 2147483648.0))
        whole = b.fptosi(b.select(fits, args[0], _const(_F32, 0.0)), _vector(_I32))
        return b.select(fits, whole, _const(_I32, -(2**31)))

    return INTS(FLOATS), codegen


@intrinsic
def round_away(typingctx: Any, x: Any) -> Any:
    """C's roundf: to the nearest whole number, half away from zero."""
    return FLOATS(FLOATS), lambda ctx, b, sig, args: _call(b, "llvm.round.v16f32", _vector(_F32), list(args))
