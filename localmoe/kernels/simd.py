"""SIMD vocabulary for kernels: vector registers as Numba values, one intrinsic an operation.

Kernels are written once over logical registers of `LANES` 32-bit lanes: 16 for AVX-512, 8 for AVX2 and AVX-VNNI,
4 for NEON and plain LLVM. LLVM splits or joins anything that is wider or narrower than the hardware. Memory is
addressed by plain int64 addresses; no access needs alignment. Only `dot4`, `dot4s` and `dot2` differ between
instruction sets, and all of them give the same int32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, register_model

from localmoe.jit import isa

ISA = isa()
LANES = {"avx512vnni": 16, "avxvnni": 8, "avx2": 8}.get(ISA, 4)

_LLVM = {
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
    "f16": ir.HalfType(),
}


class Vec(types.Type):
    """A vector of `n` lanes of type `lane` ("i8", "i16", "i32", "f16", "f32")."""

    def __init__(self, lane: str, n: int) -> None:
        self.lane = lane
        self.n = n
        super().__init__(name=f"Vec({lane}x{n})")


@register_model(Vec)
class VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, llvm_type(fe_type))


def llvm_type(vec: Vec) -> ir.VectorType:
    return ir.VectorType(_LLVM[vec.lane], vec.n)


F32 = Vec("f32", LANES)
I32 = Vec("i32", LANES)
I16 = Vec("i16", 2 * LANES)
I8 = Vec("i8", 4 * LANES)


def const(vec: Vec, value: float) -> ir.Constant:
    """The constant vector whose lanes are all `value`."""
    return ir.Constant(llvm_type(vec), [value] * vec.n)


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call the LLVM intrinsic `name`."""
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def suffix(vec: Vec) -> str:
    return f"v{vec.n}{vec.lane}"


def splat(builder: Any, scalar: Any, n: int) -> Any:
    """`n` lanes of one LLVM scalar."""
    one = ir.Constant(ir.VectorType(scalar.type, n), ir.Undefined)
    one = builder.insert_element(one, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))


def load_at(builder: Any, address: Any, kind: Any) -> Any:
    """Load `kind` from an int64 address, unaligned."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


# --- memory -------------------------------------------------------------------------------------------------


def make_load(vec: Vec) -> Any:
    """An intrinsic that loads `vec` from an address."""

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        return vec(types.int64), lambda ctx, b, sig, args: load_at(b, args[0], llvm_type(vec))

    return load


load_f32 = make_load(F32)
load_i32 = make_load(I32)
load_i16 = make_load(I16)
load_i8 = make_load(I8)


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a vector of any type at an address."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        done = b.store(args[1], b.inttoptr(args[0], args[1].type.as_pointer()))
        done.align = 1
        return ctx.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def load_f16(typingctx: Any, address: Any) -> Any:
    """LANES float16 at an address, widened to float32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        half = load_at(b, args[0], ir.VectorType(ir.HalfType(), LANES))
        return b.fpext(half, llvm_type(F32))

    return F32(types.int64), codegen


@intrinsic
def store_f16(typingctx: Any, address: Any, value: Any) -> Any:
    """Round LANES float32 to float16 (to nearest even) and store them."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        half = b.fptrunc(args[1], ir.VectorType(ir.HalfType(), LANES))
        done = b.store(half, b.inttoptr(args[0], half.type.as_pointer()))
        done.align = 1
        return ctx.get_dummy_value()

    return types.void(types.int64, F32), codegen


@intrinsic
def load_bf16(typingctx: Any, address: Any) -> Any:
    """LANES bfloat16 at an address, widened to float32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        half = load_at(b, args[0], ir.VectorType(ir.IntType(16), LANES))
        wide = b.shl(b.zext(half, llvm_type(I32)), const(I32, 16))
        return b.bitcast(wide, llvm_type(F32))

    return F32(types.int64), codegen


@intrinsic
def store_i8_from_i32(typingctx: Any, address: Any, value: Any) -> Any:
    """Store the low byte of each of LANES int32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        low = b.trunc(args[1], ir.VectorType(ir.IntType(8), LANES))
        done = b.store(low, b.inttoptr(args[0], low.type.as_pointer()))
        done.align = 1
        return ctx.get_dummy_value()

    return types.void(types.int64, I32), codegen


@intrinsic
def broadcast4(typingctx: Any, address: Any) -> Any:
    """The four bytes at an address in every 32-bit lane."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.bitcast(splat(b, load_at(b, args[0], ir.IntType(32)), LANES), llvm_type(I8))

    return I8(types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, for reading."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        fn = cgutils.get_or_insert_function(b.module, signature, "llvm.prefetch.p0")
        b.call(fn, [pointer, i32(0), i32(3), i32(1)])
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
            v = args[1] if narrow is None else narrow(b, args[1])
            done = b.store(v, b.inttoptr(args[0], kind.as_pointer()))
            done.align = 1
            return ctx.get_dummy_value()

        return types.void(types.int64, operand), codegen

    return put


_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
ld_f32 = _scalar_load(ir.FloatType(), types.float32)
ld_f16 = _scalar_load(ir.HalfType(), types.float32, lambda b, v: b.fpext(v, ir.FloatType()))
ld_bf16 = _scalar_load(_I16, types.float32, lambda b, v: b.bitcast(b.shl(b.zext(v, _I32), _I32(16)), ir.FloatType()))
ld_i8 = _scalar_load(_I8, types.int32, lambda b, v: b.sext(v, _I32))
ld_u8 = _scalar_load(_I8, types.int32, lambda b, v: b.zext(v, _I32))
ld_i16 = _scalar_load(_I16, types.int32, lambda b, v: b.sext(v, _I32))
ld_u16 = _scalar_load(_I16, types.int32, lambda b, v: b.zext(v, _I32))
ld_i32 = _scalar_load(_I32, types.int32)
ld_u32 = _scalar_load(_I32, types.uint32)
ld_i64 = _scalar_load(_I64, types.int64)
st_f32 = _scalar_store(ir.FloatType(), types.float32)
st_f16 = _scalar_store(ir.HalfType(), types.float32, lambda b, v: b.fptrunc(v, ir.HalfType()))
st_i8 = _scalar_store(_I8, types.int32, lambda b, v: b.trunc(v, _I8))
st_i16 = _scalar_store(_I16, types.int32, lambda b, v: b.trunc(v, _I16))
st_i32 = _scalar_store(_I32, types.int32)
st_i64 = _scalar_store(_I64, types.int64)


@intrinsic
def round_f16(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to the nearest float16, as float32."""
    half = ir.HalfType()
    return types.float32(types.float32), lambda ctx, b, sig, args: b.fpext(b.fptrunc(args[0], half), ir.FloatType())


# --- making vectors -----------------------------------------------------------------------------------------


def _make_splat(vec: Vec, scalar: Any) -> Any:
    @intrinsic
    def make(typingctx: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            v = args[0]
            if vec.lane in ("i8", "i16"):
                v = b.trunc(v, _LLVM[vec.lane])
            return splat(b, v, vec.n)

        return vec(scalar), codegen

    return make


def _make_zero(vec: Vec) -> Any:
    @intrinsic
    def make(typingctx: Any) -> Any:
        return vec(), lambda ctx, b, sig, args: const(vec, 0)

    return make


splat_f32 = _make_splat(F32, types.float32)
splat_i32 = _make_splat(I32, types.int32)
splat_i16 = _make_splat(I16, types.int32)
splat_i8 = _make_splat(I8, types.int32)
zero_f32 = _make_zero(F32)
zero_i32 = _make_zero(I32)


# --- lane by lane -------------------------------------------------------------------------------------------


def _binary(float_op: str, int_op: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
        name = float_op if x.lane == "f32" else int_op
        return x(x, x), lambda ctx, b, sig, args: getattr(b, name)(*args)

    return op


def _bitwise(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any, y: Any) -> Any:
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
bit_and = _bitwise("and_")
bit_or = _bitwise("or_")
bit_xor = _bitwise("xor")
shl = _shift("shl")
shr = _shift("lshr")
sar = _shift("ashr")


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
    return F32(F32, F32, F32), lambda ctx, b, sig, args: call(b, f"llvm.fma.{suffix(F32)}", llvm_type(F32), list(args))


@intrinsic
def to_f32(typingctx: Any, x: Any) -> Any:
    return F32(I32), lambda ctx, b, sig, args: b.sitofp(args[0], llvm_type(F32))


@intrinsic
def to_i32(typingctx: Any, x: Any) -> Any:
    """float32 lanes rounded to the nearest even integer; they must fit in 31 bits."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.fptosi(call(b, f"llvm.nearbyint.{suffix(F32)}", llvm_type(F32), [args[0]]), llvm_type(I32))

    return I32(F32), codegen


@intrinsic
def as_f32(typingctx: Any, x: Any) -> Any:
    """The same bits as float32 lanes."""
    return F32(x), lambda ctx, b, sig, args: b.bitcast(args[0], llvm_type(F32))


@intrinsic
def as_i32(typingctx: Any, x: Any) -> Any:
    """The same bits as int32 lanes."""
    return I32(x), lambda ctx, b, sig, args: b.bitcast(args[0], llvm_type(I32))


@intrinsic
def as_i8(typingctx: Any, x: Any) -> Any:
    """The same bits as int8 lanes."""
    return I8(x), lambda ctx, b, sig, args: b.bitcast(args[0], llvm_type(I8))


@intrinsic
def sqrt(typingctx: Any, x: Any) -> Any:
    return F32(F32), lambda ctx, b, sig, args: call(b, f"llvm.sqrt.{suffix(F32)}", llvm_type(F32), [args[0]])


# --- across lanes -------------------------------------------------------------------------------------------

_FLOAT_REDUCE = {"add": "fadd", "max": "fmax"}


def _reduce_f32(name: str) -> Any:
    @intrinsic
    def op(typingctx: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            f32 = ir.FloatType()
            start = [ir.Constant(f32, 0.0)] if name == "fadd" else []
            signature = ir.FunctionType(f32, [a.type for a in start] + [llvm_type(F32)])
            fn = cgutils.get_or_insert_function(b.module, signature, f"llvm.vector.reduce.{name}.{suffix(F32)}")
            return b.call(fn, [*start, args[0]], fastmath=("reassoc",) if name == "fadd" else ())

        return types.float32(F32), codegen

    return op


hsum = _reduce_f32("fadd")
hmax = _reduce_f32("fmax")


@intrinsic
def hsum_i32(typingctx: Any, x: Any) -> Any:
    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return call(b, f"llvm.vector.reduce.add.{suffix(I32)}", ir.IntType(32), [args[0]])

    return types.int32(I32), codegen


# --- integer dot products -----------------------------------------------------------------------------------


def emit_dot4(b: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """LLVM for acc[i] += sum over j < 4 of unsigned[4i+j] * signed[4i+j]; unsigned lanes must be <= 128.

    The bound keeps AVX2's 16-bit pair sums from saturating: 2 * 128 * 127 < 2**15.
    """
    i32 = ir.VectorType(_I32, acc.type.count)
    if ISA == "avx512vnni" and acc.type.count in (4, 8, 16):
        return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", i32, [acc, unsigned, signed])
    if ISA == "avxvnni" and acc.type.count in (4, 8):
        return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}", i32, [acc, unsigned, signed])
    if ISA == "avx2" and acc.type.count == 8:
        i16 = ir.VectorType(_I16, 16)
        pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", i16, [unsigned, signed])
        return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", i32, [pairs, ir.Constant(i16, [1] * 16)]))
    return _emit_dot4_plain(b, acc, b.zext, unsigned, signed)


def _emit_dot4_plain(b: Any, acc: Any, widen: Any, x: Any, y: Any) -> Any:
    n = acc.type.count
    wide = ir.VectorType(_I32, 4 * n)
    products = b.mul(widen(x, wide), b.sext(y, wide))
    for j in range(4):
        mask = ir.Constant(ir.VectorType(_I32, n), [4 * i + j for i in range(n)])
        acc = b.add(acc, b.shuffle_vector(products, products, mask))
    return acc


def emit_dot4s(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """LLVM for acc[i] += sum over j < 4 of x[4i+j] * y[4i+j], both signed, y never -128."""
    n = x.type.count
    if ISA == "neon" and n == 16:
        i32 = ir.VectorType(_I32, 4)
        return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", i32, [acc, x, y])
    if ISA == "generic" or ISA == "neon":
        return _emit_dot4_plain(b, acc, b.sext, x, y)
    if ISA == "avx2" and n == 32:
        signed = call(b, "llvm.x86.avx2.psign.b", x.type, [y, x])
    else:
        zero = ir.Constant(x.type, [0] * n)
        signed = b.select(b.icmp_signed("<", x, zero), b.sub(zero, y), y)
    magnitude = call(b, f"llvm.abs.v{n}i8", x.type, [x, ir.Constant(ir.IntType(1), 0)])
    return emit_dot4(b, acc, magnitude, signed)


@intrinsic
def dot4(typingctx: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """acc[i] + sum over j < 4 of unsigned[4i+j] * signed[4i+j]; unsigned lanes at most 128."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if ISA == "neon" and unsigned.n == 16:  # bytes up to 127 are the same signed
            return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", args[0].type, list(args))
        return emit_dot4(b, *args)

    return acc(acc, unsigned, signed), codegen


@intrinsic
def dot4s(typingctx: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] + sum over j < 4 of x[4i+j] * y[4i+j], both signed, y never -128."""
    return acc(acc, x, y), lambda ctx, b, sig, args: emit_dot4s(b, *args)


@intrinsic
def dot2(typingctx: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] + x[2i] * y[2i] + x[2i+1] * y[2i+1] in int16 -> int32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        n = acc.n
        i16 = ir.VectorType(_I16, 2 * n)
        a, x16, y16 = args[0], b.bitcast(args[1], i16), b.bitcast(args[2], i16)
        i32 = ir.VectorType(_I32, n)
        if ISA in ("avx512vnni", "avxvnni") and n in (4, 8, 16) and (n < 16 or ISA == "avx512vnni"):
            return call(b, f"llvm.x86.avx512.vpdpwssd.{32 * n}", i32, [a, x16, y16])
        if ISA == "avx2" and n == 8:
            return b.add(a, call(b, "llvm.x86.avx2.pmadd.wd", i32, [x16, y16]))
        wide = ir.VectorType(_I32, 2 * n)
        products = b.mul(b.sext(x16, wide), b.sext(y16, wide))
        for j in range(2):
            mask = ir.Constant(i32, [2 * i + j for i in range(n)])
            a = b.add(a, b.shuffle_vector(products, products, mask))
        return a

    return acc(acc, x, y), codegen


# --- float functions ----------------------------------------------------------------------------------------


def emit_exp(b: Any, x: Any) -> Any:
    """LLVM for e**x on float32 lanes, relative error below 2e-7, 0 below -87.3 and finite up to 88.3.

    Cody-Waite reduction to |r| <= ln(2)/2, a degree-6 polynomial (Cephes expf), then 2**n through the exponent bits.
    """
    n = x.type.count
    f32, i32 = ir.VectorType(ir.FloatType(), n), ir.VectorType(_I32, n)

    def c(value: float) -> ir.Constant:
        return ir.Constant(f32, [value] * n)

    def madd(p: Any, q: Any, r: Any) -> Any:
        return call(b, f"llvm.fma.v{n}f32", f32, [p, q, r])

    low = b.fcmp_ordered("<", x, c(-87.33654))
    y = b.select(b.fcmp_ordered(">", x, c(88.37626)), c(88.37626), b.select(low, c(-87.33654), x))
    k = call(b, f"llvm.nearbyint.v{n}f32", f32, [b.fmul(y, c(1.44269504088896341))])
    r = madd(k, c(-0.693359375), y)
    r = madd(k, c(2.12194440e-4), r)
    p = c(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = madd(p, r, c(coefficient))
    p = b.fadd(madd(p, b.fmul(r, r), r), c(1.0))
    power = b.bitcast(b.shl(b.add(b.fptosi(k, i32), ir.Constant(i32, [127] * n)), ir.Constant(i32, [23] * n)), f32)
    value = b.select(low, c(0.0), b.fmul(p, power))
    return b.select(b.fcmp_unordered("uno", x, x), x, value)


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """e**x lane by lane (relative error below 2e-7); NaN stays NaN."""
    return F32(F32), lambda ctx, b, sig, args: emit_exp(b, args[0])


@intrinsic
def call_address(typingctx: Any, address: Any, args: Any) -> Any:
    """Call the C function at `address` with a tuple of int64 arguments."""
    n = args.count

    def codegen(ctx: Any, b: Any, sig: Any, values: Any) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [_I64] * n)
        pointer = b.inttoptr(values[0], signature.as_pointer())
        b.call(pointer, cgutils.unpack_tuple(b, values[1], n))
        return ctx.get_dummy_value()

    return types.void(types.int64, args), codegen
