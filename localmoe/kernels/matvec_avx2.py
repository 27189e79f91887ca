"""A row times one activation vector on AVX2, for blocks of 32 weights: eight blocks at a time.

Such a processor has neither a dot product nor many instructions a cycle for vectors of 32 bytes, so their number is
what counts. The sums of pairs of eight blocks are added up across each other, as a transposition does it: what comes
out is one vector with a block a lane, whose offset, scale and conversion take one instruction each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from localmoe.kernels.grids import half_power_of_two, of_sixteen, pick
from localmoe.kernels.simd import AHEAD, Vec, call, emit_dot2, emit_pair_sums, intrinsic, lanes, suffix
from localmoe.kernels.tile import F16T, F32T, F32V, I8V, I16T, I16V, I32T, I32V, Cells, Value, fma, loop, zero

_NIBBLES = [0] * 4 + [4] * 4
_QUAD = ir.VectorType(I32T, 4)

Pairs = Callable[[Value, Value], Value]
"""int16 sums of pairs of 32 products: of a block's address and its activations'."""


def products(unsigned: Value, q: Value) -> Value:
    return Value(q.b, emit_pair_sums(q.b, unsigned.v, q.load(I8V).v))


def dot2(total: Value, pairs: Value, by: Value) -> Value:
    """int32 sums, plus those of two int16 products each."""
    return Value(total.b, emit_dot2(total.b, total.v, pairs.v, by.v))


def unseen(x: Value) -> Value:
    """x, of which LLVM knows nothing: it would make one shuffle of several registers' out of two of one's."""
    return Value(x.b, x.b.asm(ir.FunctionType(x.v.type, [x.v.type]), "", "=x,0", [x.v], side_effect=False))


def word(x: Value, i: int) -> Value:
    """Word i of each half's four in all of that half, as int16: a shuffle whose mask is in the instruction."""
    return pick(x.bits(I32V), [i] * 4 + [4 + i] * 4).bits(I16V)


# of Q4_K and Q5_K: 6-bit scales and minima, from the words of d and dmin and of scales; four and four of both
K4_SCALES = [[0, 0, 0, 4] * 2, [0x3F3F3F3F, 0x0F0F0F0F] * 4, [0, 0x30303030] * 4]


def k4_scales(words: Value, table: Value) -> Value:
    """Eight scales and eight minima from the first 16 bytes of a block, in each half; K4_SCALES are at `table`."""
    words = unseen(words)
    low = (pick(words, [1, 3, 2, 3, 5, 7, 6, 7]) >> table.load(I32V)) & (table + 32).load(I32V)
    return (low | (pick(words, [1, 1, 2, 2, 5, 5, 6, 6]) >> 2) & (table + 64).load(I32V)).bits(I8V)


def signed_products(x: Value, q: Value) -> Value:
    """Of bytes of the full range."""
    b = q.b
    signed = call(b, "llvm.x86.avx2.psign.b", I8V, [q.load(I8V).v, x.v])
    magnitude = call(b, "llvm.abs.v32i8", I8V, [x.v, ir.Constant(ir.IntType(1), 0)])
    return Value(b, emit_pair_sums(b, magnitude, signed))


def nibbles(at: Value) -> Value:
    """The low nibbles of 16 bytes, then the high ones: each half of the vector is shifted by itself."""
    twice = pick(at.load(_QUAD), [*range(4)] * 2)
    return (twice >> Value(at.b, ir.Constant(I32V, _NIBBLES))).bits(I8V) & 0x0F


def four_bits(at: int) -> Pairs:
    return lambda o, q: products(nibbles(o + at), q)


def five_bits(at: int) -> Pairs:
    """Nibbles from byte `at` on, their fifth bits in the four bytes before."""

    def pairs(o: Value, q: Value) -> Value:
        b = q.b
        fifth = (o + (at - 4)).load_splat(I32T).bits(I8V)
        mask = Value(b, ir.Constant(I8V, [1 << i % 8 for i in range(32)]))
        bits = pick(fifth, [i // 8 for i in range(32)]) & mask
        met = Value(b, b.sext(b.icmp_unsigned("==", bits.v, mask.v), I8V))
        return products(nibbles(o + at) | (met & 0x10), q)

    return pairs


def of_values(at: int, values: Sequence[int], *, signed: bool) -> Pairs:
    """Nibbles that stand for 16 values."""
    multiply = signed_products if signed else products
    return lambda o, q: multiply(of_sixteen([value & 0xFF for value in values], nibbles(o + at)), q)


# --- eight blocks' sums -------------------------------------------------------------------------------------


def _quads(pairs: Value) -> Value:
    """int32 sums of two int16 each."""
    b = pairs.b
    return dot2(zero(b, I32V), pairs, Value(b, ir.Constant(I16V, [1] * 16)))


def _packed(x: Value, y: Value) -> Value:
    """int32 as int16, each half of x beside the same of y."""
    return Value(x.b, call(x.b, "llvm.x86.avx2.packssdw", I16V, [x.v, y.v]))


def _added(x: Value, y: Value) -> Value:
    """Sums of neighbours of x beside those of y, in each half."""
    masks = [[4 * half + 8 * of + i + odd for half in (0, 1) for of in (0, 1) for i in (0, 2)] for odd in (0, 1)]
    even, odd = (Value(x.b, lanes(x.b, x.v, y.v, mask)) for mask in masks)
    return even + odd


def _four_sums(blocks: list[Callable[[], Value]], small: bool) -> Value:
    """Sums of four blocks' pairs, in both halves of a vector what that half's were."""
    if len(blocks) == 1:
        return blocks[0]() if small else _quads(blocks[0]())
    half = len(blocks) // 2
    x, y = _four_sums(blocks[:half], small), _four_sums(blocks[half:], small)
    if not small:
        return _added(x, y)
    both = _packed(_quads(x), _quads(y))
    return both if len(blocks) == 2 else _quads(both)


def eight_sums(blocks: list[Callable[[], Value]], small: bool) -> Value:
    """int32 sums of eight blocks, one a lane. Of `small` weights, up to 31, sums of eight products fit in int16."""
    x, y = _four_sums(blocks[:4], small), _four_sums(blocks[4:], small)
    low, high = (Value(x.b, lanes(x.b, x.v, y.v, [*range(i, i + 4), *range(8 + i, 12 + i)])) for i in (0, 4))
    return low + high


# --- rows -----------------------------------------------------------------------------------------------------


def _halves(addresses: list[Value]) -> Value:
    """The float16 at eight addresses, as float32."""
    b, words = addresses[0].b, ir.Constant(ir.VectorType(I16T, 8), ir.Undefined)
    for i, address in enumerate(addresses):
        words = b.insert_element(words, address.load(I16T).v, I32T(i))
    return Value(b, b.fpext(b.bitcast(words, ir.VectorType(F16T, 8)), F32V))


def _powers(addresses: list[Value]) -> Value:
    """2 ** (e - 128) of the exponents at eight addresses."""
    b, exponents = addresses[0].b, ir.Constant(ir.VectorType(ir.IntType(8), 8), ir.Undefined)
    for i, address in enumerate(addresses):
        exponents = b.insert_element(exponents, address.load(ir.IntType(8)).v, I32T(i))
    return half_power_of_two(Value(b, b.zext(exponents, I32V)))


def row_sum(x: Value) -> Value:
    """The sum of eight lanes."""
    name = "fadd" if x.v.type.element == F32T else "add"
    start = [ir.Constant(F32T, 0.0)] if name == "fadd" else []
    kind = Vec("f32" if start else "i32", 8)
    return Value(x.b, call(x.b, f"llvm.vector.reduce.{name}.{suffix(kind)}", x.v.type.element, [*start, x.v]))


def make_row(
    size: int, pairs: Pairs, *, offset: int = 0, minimum: bool = False, small: bool = True, power: bool = False
) -> Any:
    """An intrinsic row(o, act, n): one row's product from blocks of `size` bytes.

    Weights stand `offset` too high, or have a `minimum`, the float16 behind the scale; a `power` of two may be the
    scale.
    """

    def sums_and_scales(blocks: list[Value], q: Value) -> tuple[Value, Value]:
        sums = eight_sums([lambda i=i, o=o: pairs(o, q + 32 * i) for i, o in enumerate(blocks)], small)  # type: ignore[misc]
        return sums, (_powers if power else _halves)(blocks)

    def emit(o: Value, act: Value, n: Value) -> Value:
        b = o.b
        n_blocks, nothing = n >> 5, zero(b, F32V)
        ds = act + n
        ss = ds + n_blocks * 4
        totals = Cells([nothing, nothing])
        with loop(b, n_blocks >> 3) as i:
            at = o + i * (8 * size)
            for line in range(-(-8 * size // 64)):
                (at + AHEAD + 64 * line).prefetch(near=True)
            blocks = [at + size * k for k in range(8)]
            sums, d = sums_and_scales(blocks, act + i * 256)
            total, mins = totals.get()
            if offset:
                sums = sums - (ss + i * 32).load(I32V) * offset
            total = fma(sums.to_f32(), d * (ds + i * 32).load(F32V), total)
            if minimum:
                m = _halves([block + 2 for block in blocks])
                mins = fma(m, (ss + n_blocks * 4 + i * 32).load(F32V), mins)
            totals.put([total, mins])
        total, mins = totals.get()
        rest = Cells([row_sum(total + mins)])
        first = n_blocks & -8
        with loop(b, n_blocks & 7) as k:
            i = first + k
            at = o + i * size
            found = row_sum(_quads(pairs(at, act + i * 32)))
            if offset:
                found = found - (ss + i * 4).load(I32T) * offset
            d = _powers([at] * 8) if power else _halves([at] * 8)
            term = Value(b, b.extract_element(d.v, I32T(0))) * (ds + i * 4).load(F32T)
            term = Value(b, b.fmul(b.sitofp(found.v, F32T), term.v))
            if minimum:
                m = Value(b, b.extract_element(_halves([at + 2] * 8).v, I32T(0)))
                term = term + m * (ss + n_blocks * 4 + i * 4).load(F32T)
            rest.put([rest.get()[0] + term])
        return rest.get()[0]

    @intrinsic
    def row(typingctx: Any, o: Any, act: Any, n: Any) -> Any:
        signature = types.float32(types.int64, types.int64, types.int64)
        return signature, lambda ctx, b, sig, args: emit(*(Value(b, arg) for arg in args)).v

    return row
