"""LLVM for the SIMD vocabulary: vector types, small builders, and what differs between instruction sets.

Only the integer dot products are written per instruction set. Vectors wider than the hardware are cut into pieces here
where an operation is a machine instruction; LLVM cuts everything else by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, extending, types
from numba.core.datamodel import models

from localmoe.kernels.shapes import ISA, LANES
from localmoe.target import is_zen, target_features

X86 = ISA in ("avx512vnni", "avxvnni", "avx2")
VNNI = ISA in ("avx512vnni", "avxvnni")
GFNI = VNNI and "gfni" in target_features()
VBMI = ISA == "avx512vnni" and "avx512vbmi" in target_features()

I8T, I16T, I32T, I64T = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16T, F32T = ir.HalfType(), ir.FloatType()
BITS = {"i8": 8, "i16": 16, "i32": 32, "f32": 32, "f16": 16}
LLVM = {"i8": I8T, "i16": I16T, "i32": I32T, "f32": F32T, "f16": F16T}


# Numba's own annotation describes the Python function given; calls look different
intrinsic: Any = extending.intrinsic


class Vec(types.Type):
    """A vector of `n` lanes of type `lane` ("i8", "i16", "i32", "f16", "f32")."""

    def __init__(self, lane: str, n: int) -> None:
        self.lane = lane
        self.n = n
        super().__init__(name=f"Vec({lane}x{n})")


@extending.register_model(Vec)
class VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, llvm_type(fe_type))


def llvm_type(vec: Vec) -> ir.VectorType:
    return ir.VectorType(LLVM[vec.lane], vec.n)


def const(vec: Vec, value: float) -> ir.Constant:
    """The constant vector whose lanes are all `value`."""
    return ir.Constant(llvm_type(vec), [value] * vec.n)


def suffix(vec: Vec) -> str:
    return f"v{vec.n}{vec.lane}"


def call(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call the LLVM intrinsic `name`."""
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def lanes(builder: Any, x: Any, y: Any, mask: Any) -> Any:
    """Lanes `mask` of x, then y."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32T, len(mask)), list(mask)))


def splat(builder: Any, scalar: Any, n: int) -> Any:
    """`n` lanes of one LLVM scalar."""
    one = ir.Constant(ir.VectorType(scalar.type, n), ir.Undefined)
    one = builder.insert_element(one, scalar, ir.Constant(I32T, 0))
    return lanes(builder, one, one, [0] * n)


def wide(builder: Any, x: Any, n: int) -> Any:
    """x with undefined lanes up to `n`, a power of two times as many as it has."""
    while x.type.count < n:
        x = lanes(builder, x, ir.Constant(x.type, ir.Undefined), range(2 * x.type.count))
    return x


def opaque(builder: Any, kind: Any, values: Any) -> Any:
    """A vector constant that LLVM does not see through: loaded from a weak global, which a linker might replace."""
    text = "_".join(str(v) for v in values)
    name = f"localmoe.{kind.count}.{hashlib.sha1(text.encode()).hexdigest()[:12]}"
    module = builder.module
    constant = module.globals.get(name)
    if constant is None:
        constant = ir.GlobalVariable(module, kind, name)
        constant.linkage = "weak"
        constant.initializer = ir.Constant(kind, list(values))
    value = builder.load(constant)
    value.align = 1
    value.set_metadata("invariant.load", module.add_metadata([]))
    return value


def hidden(builder: Any, address: Any) -> Any:
    """An address of which LLVM knows nothing here: it loads from there anew, and loads what it would make itself."""
    return builder.asm(ir.FunctionType(I64T, [I64T]), "", "=r,0,~{memory}", [address], side_effect=True)


def in_memory(builder: Any, x: Any) -> Any:
    """The address of a copy of x on the stack, hidden from LLVM, which would shuffle registers instead of loading."""
    slot = cgutils.alloca_once(builder, x.type)
    builder.store(x, slot)
    return hidden(builder, builder.ptrtoint(slot, I64T))


def load_at(builder: Any, address: Any, kind: Any) -> Any:
    """Load `kind` from an int64 address, unaligned."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store_at(builder: Any, address: Any, value: Any) -> None:
    """Store `value` at an int64 address, unaligned."""
    done = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    done.align = 1


AHEAD = ((8192, 2), (2048, 1)) if X86 and not is_zen() else ((4096, 1),)
"""How many bytes ahead of a row's read it is asked for, and into which level of the caches: past the page that the
hardware's own prefetch ends at.

A line asked for into the first level keeps one of a core's few miss buffers until memory has answered. Cores of Intel's
have the second level ask for more at a time, so it is to ask first; benchmarks/RESULTS.md has what that brings.
"""


def emit_prefetch(b: Any, address: Any, level: int, write: bool = False) -> None:
    """Ask for the cache line at an int64 address, which need not be there, into the first or the second level."""
    pointer = b.inttoptr(address, I8T.as_pointer())
    fn = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [pointer.type, I32T, I32T, I32T]), "llvm.prefetch.p0"
    )
    b.call(fn, [pointer, I32T(int(write)), I32T(4 - level), I32T(1)])


def emit_ahead(b: Any, address: Any) -> None:
    """Ask for what a row's read at an int64 address will come to, AHEAD of it."""
    for distance, level in AHEAD:
        emit_prefetch(b, b.add(address, I64T(distance)), level)


def in_pieces(b: Any, emit: Callable[..., Any], *args: Any) -> Any:
    """`emit(b, *args)` on pieces whose first argument has at most the hardware's LANES; the pieces joined."""
    n = args[0].type.count
    if n <= LANES:
        return emit(b, *args)
    parts = []
    for half in range(2):
        cut = [lanes(b, a, a, range(half * (k := a.type.count // 2), (half + 1) * k)) for a in args]
        parts.append(in_pieces(b, emit, *cut))
    return lanes(b, parts[0], parts[1], range(n))


def plain_dot(b: Any, acc: Any, widen: Any, x: Any, y: Any) -> Any:
    """acc[i] plus the dot product of group i of x (widened by `widen`) and y (signed), in plain LLVM vectors."""
    n, m = acc.type.count, x.type.count
    wide = ir.VectorType(I32T, m)
    products = b.mul(widen(x, wide), b.sext(y, wide))
    for j in range(m // n):
        acc = b.add(acc, lanes(b, products, products, range(j, m, m // n)))
    return acc


def _accumulated(b: Any, name: str, acc: Any, x: Any, y: Any) -> Any:
    """VNNI's instruction, with bytes and int16 as int32: LLVM takes no others before 22, and since then both."""
    return call(b, f"llvm.x86.avx512.{name}", acc.type, [acc, b.bitcast(x, acc.type), b.bitcast(y, acc.type)])


def _dot4(b: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    n = acc.type.count
    if (ISA == "avx512vnni" and n in (4, 8, 16)) or (ISA == "avxvnni" and n in (4, 8)):
        return _accumulated(b, f"vpdpbusd.{32 * n}", acc, unsigned, signed)
    if ISA == "avx2" and n == 8:
        return _dot2(b, acc, _pair_sums(b, unsigned, signed), ir.Constant(ir.VectorType(I16T, 16), [1] * 16))
    if ISA == "neon" and n == 4:  # bytes up to 127 are the same signed
        return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, unsigned, signed])
    return plain_dot(b, acc, b.zext, unsigned, signed)


def _dot4s(b: Any, acc: Any, x: Any, y: Any) -> Any:
    n = x.type.count
    if ISA == "neon" and n == 16:
        return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, [acc, x, y])
    if ISA in ("generic", "neon"):
        return plain_dot(b, acc, b.sext, x, y)
    if ISA == "avx2" and n == 32:
        signed = call(b, "llvm.x86.avx2.psign.b", x.type, [y, x])
    else:
        zero = ir.Constant(x.type, [0] * n)
        signed = b.select(b.icmp_signed("<", x, zero), b.sub(zero, y), y)
    magnitude = call(b, f"llvm.abs.v{n}i8", x.type, [x, ir.Constant(ir.IntType(1), 0)])
    return _dot4(b, acc, magnitude, signed)


def _dot2(b: Any, acc: Any, x: Any, y: Any) -> Any:
    n = acc.type.count
    if (ISA == "avx512vnni" and n in (4, 8, 16)) or (ISA == "avxvnni" and n in (4, 8)):
        return _accumulated(b, f"vpdpwssd.{32 * n}", acc, x, y)
    if ISA == "avx2" and n == 8:
        return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [x, y]))
    return plain_dot(b, acc, b.sext, x, y)


def _pair_sums(b: Any, unsigned: Any, signed: Any) -> Any:
    """int16 sums of pairs of products of 32 or 64 bytes, on x86."""
    name = {32: "llvm.x86.avx2.pmadd.ub.sw", 64: "llvm.x86.avx512.pmaddubs.w.512"}[unsigned.type.count]
    return call(b, name, ir.VectorType(I16T, unsigned.type.count // 2), [unsigned, signed])


def _dot4_scaled(b: Any, acc: Any, unsigned: Any, signed: Any, scale: Any) -> Any:
    n = acc.type.count
    if X86 and n in (8, 16):
        return _dot2(b, acc, _pair_sums(b, unsigned, signed), scale)
    by = b.sext(lanes(b, scale, scale, range(0, 2 * n, 2)), acc.type)
    return b.add(acc, b.mul(by, _dot4(b, ir.Constant(acc.type, [0] * n), unsigned, signed)))


def _dot4_full_scaled(b: Any, acc: Any, x: Any, y: Any, scale: Any) -> Any:
    if ISA == "avx2" and x.type.count == 32:
        magnitude = call(b, "llvm.abs.v32i8", x.type, [x, ir.Constant(ir.IntType(1), 0)])
        return _dot2(b, acc, _pair_sums(b, magnitude, call(b, "llvm.x86.avx2.psign.b", x.type, [y, x])), scale)
    zero = ir.Constant(acc.type, [0] * acc.type.count)
    product = _dot4(b, zero, x, y) if VNNI else _dot4s(b, zero, x, y)
    by = b.ashr(b.bitcast(scale, acc.type), ir.Constant(acc.type, [16] * acc.type.count))
    return b.add(acc, b.mul(by, product))


def emit_dot4(b: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """LLVM for acc[i] += sum over j < 4 of unsigned[4i+j] * signed[4i+j]; unsigned lanes must be <= 127.

    The bound keeps AVX2's 16-bit pair sums from saturating (2 * 127 * 127 < 2**15) and NEON's bytes positive.
    """
    return in_pieces(b, _dot4, acc, unsigned, signed)


def emit_dot4s(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """LLVM for acc[i] += sum over j < 4 of x[4i+j] * y[4i+j], both signed, y never -128."""
    return in_pieces(b, _dot4s, acc, x, y)


def emit_dot2(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """LLVM for acc[i] += x[2i] * y[2i] + x[2i+1] * y[2i+1] in int16 -> int32."""
    return in_pieces(b, _dot2, acc, x, y)


def emit_dot4_scaled(b: Any, acc: Any, unsigned: Any, signed: Any, scale: Any) -> Any:
    """LLVM for acc[i] += scale[2i] * sum over j < 4 of unsigned[4i+j] * signed[4i+j].

    unsigned lanes must be <= 127 and int16 lanes 2i and 2i+1 of `scale` equal: x86 multiplies sums of pairs.
    """
    return in_pieces(b, _dot4_scaled, acc, unsigned, signed, scale)


def emit_dot4_full_scaled(b: Any, acc: Any, x: Any, y: Any, scale: Any) -> Any:
    """As `emit_dot4_scaled` for bytes of the full range, plus 128 where the hardware wants them unsigned (VNNI)."""
    return in_pieces(b, _dot4_full_scaled, acc, x, y, scale)


def emit_pair_sums(b: Any, unsigned: Any, signed: Any) -> Any:
    """LLVM for int16 lanes unsigned[2i] * signed[2i] + unsigned[2i+1] * signed[2i+1] of a hardware vector, on x86."""
    return _pair_sums(b, unsigned, signed)


def emit_field(b: Any, x: Any, shifts: Any, mask: int, plus: int) -> Any:
    """LLVM for ((x >> shift) & mask) ^ plus on bytes, one shift each part of the lanes; to the left if shift < 0.

    GFNI does it in one instruction: a bit matrix a byte gives any bits of it in any order; row 7 - i of its eight bytes
    says which bits make bit i.
    """
    n = x.type.count
    if GFNI and n <= 4 * LANES:
        rows = [
            [1 << (i + shift) if mask >> i & 1 and 0 <= i + shift < 8 else 0 for i in reversed(range(8))]
            for shift in shifts
        ]
        matrix = ir.Constant(x.type, [v for row in rows for _ in range(n // 8 // len(shifts)) for v in row])
        return call(b, f"llvm.x86.vgf2p8affineqb.{8 * n}", x.type, [x, matrix, I8T(plus)])
    if len(shifts) > 1:
        k, m = n // 2, len(shifts) // 2
        both = [emit_field(b, lanes(b, x, x, range(i * k, i * k + k)), shifts[i * m :][:m], mask, plus) for i in (0, 1)]
        return lanes(b, both[0], both[1], range(n))
    i16 = ir.VectorType(I16T, n // 2)
    move = b.lshr if shifts[0] >= 0 else b.shl
    moved = b.bitcast(move(b.bitcast(x, i16), ir.Constant(i16, [abs(shifts[0])] * (n // 2))), x.type)
    field = b.and_(moved, ir.Constant(x.type, [mask] * n))
    return b.xor(field, ir.Constant(x.type, [plus] * n)) if plus else field


_LOOKUPS = {
    "avx512vnni": {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"},
    "avxvnni": {32: "llvm.x86.avx2.pshuf.b"},
    "avx2": {32: "llvm.x86.avx2.pshuf.b"},
    "neon": {16: "llvm.aarch64.neon.tbl1.v16i8"},
}
HAS_LOOKUP = ISA in _LOOKUPS


def emit_lookup(b: Any, table: Any, index: Any) -> Any:
    """LLVM for table[16 * (i // 16) + index[i]] on bytes."""
    n = index.type.count
    if n in _LOOKUPS[ISA]:
        return call(b, _LOOKUPS[ISA][n], index.type, [table, index])
    k = n // 2
    halves = [emit_lookup(b, *(lanes(b, a, a, range(i, i + k)) for a in (table, index))) for i in (0, k)]
    return lanes(b, halves[0], halves[1], range(n))


def emit_exp(b: Any, x: Any) -> Any:
    """LLVM for e**x on float32 lanes, error below 2 units in the last place, 0 below -87.3 and finite up to 88.3.

    Cody-Waite reduction to |r| <= ln(2)/2 and a degree-5 polynomial with the constants and the order of Arm's
    optimized routines (v_expf), which ggml's ggml_v_expf follows too: softmax weights then round alike.
    """
    n = x.type.count
    f32, i32 = ir.VectorType(F32T, n), ir.VectorType(I32T, n)

    def c(value: float) -> ir.Constant:
        return ir.Constant(f32, [value] * n)

    def madd(p: Any, q: Any, r: Any) -> Any:
        return call(b, f"llvm.fma.v{n}f32", f32, [p, q, r])

    def hexed(text: str) -> ir.Constant:
        return c(float.fromhex(text))

    low = b.fcmp_ordered("<", x, c(-87.33654))
    y = b.select(b.fcmp_ordered(">", x, c(88.37626)), c(88.37626), b.select(low, c(-87.33654), x))
    magic = hexed("0x1.8p23")  # adding it rounds to the nearest integer
    k = b.fsub(madd(y, hexed("0x1.715476p+0"), magic), magic)
    r = madd(k, hexed("-0x1.62e4p-1"), y)
    r = madd(k, hexed("-0x1.7f7d1cp-20"), r)
    square = b.fmul(r, r)
    high = madd(hexed("0x1.0e4020p-7"), r, hexed("0x1.573e2ep-5"))
    middle = madd(hexed("0x1.555e66p-3"), r, hexed("0x1.fffdb6p-2"))
    p = madd(madd(high, square, middle), square, madd(hexed("0x1.ffffecp-1"), r, c(1.0)))
    power = b.bitcast(b.shl(b.add(b.fptosi(k, i32), ir.Constant(i32, [127] * n)), ir.Constant(i32, [23] * n)), f32)
    value = b.select(low, c(0.0), b.fmul(p, power))
    return b.select(b.fcmp_unordered("uno", x, x), x, value)


EXP2_POLYNOMIAL = (0.00957010128, 0.0559178591, 0.240247443, 0.693121791, 0.999999285)  # highest power first


def emit_exp2_negative(b: Any, x: Any) -> Any:
    """LLVM for 2**x on float32 lanes that are not above 0, nor infinite: relative error below 5e-6; NaN stays NaN.

    2**f for |f| <= 0.5 by a polynomial of degree 4 fitted to its relative error.
    """
    n = x.type.count
    f32, i32 = ir.VectorType(F32T, n), ir.VectorType(I32T, n)

    def c(value: float) -> ir.Constant:
        return ir.Constant(f32, [value] * n)

    scalef = ISA == "avx512vnni" and n == 16  # one instruction that puts an exponent in, down to 0
    bounded = x if scalef else b.select(b.fcmp_ordered("<", x, c(-126.0)), c(-126.0), x)
    k = call(b, f"llvm.nearbyint.v{n}f32", f32, [bounded])
    f = b.fsub(bounded, k)
    p = c(EXP2_POLYNOMIAL[0])
    for factor in EXP2_POLYNOMIAL[1:]:
        p = call(b, f"llvm.fma.v{n}f32", f32, [p, f, c(factor)])
    if scalef:
        return call(b, "llvm.x86.avx512.mask.scalef.ps.512", f32, [p, k, p, ir.IntType(16)(0xFFFF), I32T(4)])
    power = b.shl(b.fptosi(k, i32), ir.Constant(i32, [23] * n))
    value = b.bitcast(b.add(b.bitcast(p, i32), power), f32)
    value = b.select(b.fcmp_ordered("<", x, c(-126.0)), c(0.0), value)
    return b.select(b.fcmp_unordered("uno", x, x), x, value)
