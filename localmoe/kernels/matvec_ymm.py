"""Rows times one activation vector in vectors of 32 bytes, for blocks of 32 weights: eight blocks at a time.

AVX2 and AVX-VNNI have none that are wider, and a Zen 4 takes two turns for those; three or four instructions a cycle
are all that such a processor starts, so their number is what counts (matvec_rows.py says who takes these rows). Two
blocks share their vectors, a half each: one has the first 16 weights of both, another the last 16, as nibbles lie in a
block, and a copy of the activations is brought into that order once for many rows. The sums of eight blocks are then
added up across each other, as a transposition does it: what comes out is one vector with a block a lane, whose offset,
scale and conversion take one instruction each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from llvmlite import ir

from localmoe.kernels.grids import half_power_of_two, join, of_sixteen, pick
from localmoe.kernels.simd import VNNI, Vec, call, emit_dot2, emit_dot4, emit_pair_sums, hidden, lanes, suffix
from localmoe.kernels.tile import (
    F16T,
    F32T,
    I16T,
    I32T,
    I64T,
    Cells,
    Value,
    compiled,
    fma,
    loop,
    zero,
)

I8V, I16V, I32V, F32V = (
    ir.VectorType(t, 32 // size) for t, size in ((ir.IntType(8), 1), (I16T, 2), (I32T, 4), (F32T, 4))
)
_QUAD, _PAIR = ir.VectorType(I32T, 4), ir.VectorType(I64T, 2)

Weights = Callable[[Value, Value], tuple[Value, Value]]
"""The first 16 weights of two blocks and the last 16, of the blocks' addresses."""


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


def _nibbles(o0: Value, o1: Value) -> tuple[Value, Value]:
    """The low nibbles at two addresses of 16 bytes each, and the high ones."""
    both = join(o0.load(_QUAD), o1.load(_QUAD))
    return both.bits(I8V) & 0x0F, (both.bits(I16V) >> 4).bits(I8V) & 0x0F


def four_bits(at: int) -> Weights:
    return lambda o0, o1: _nibbles(o0 + at, o1 + at)


def five_bits(at: int) -> Weights:
    """Nibbles from byte `at` on, their fifth bits in the four bytes before."""

    def weights(o0: Value, o1: Value) -> tuple[Value, Value]:
        b = o0.b
        fifths = join(*((o + (at - 4)).load(_QUAD) for o in (o0, o1))).bits(I8V)
        mask = Value(b, ir.Constant(I8V, [1 << i % 8 for i in range(32)]))
        found = []
        for side, four in enumerate(_nibbles(o0 + at, o1 + at)):
            bits = pick(fifths, [i // 16 * 16 + 2 * side + i % 16 // 8 for i in range(32)]) & mask
            met = Value(b, b.sext(b.icmp_unsigned("==", bits.v, mask.v), I8V))
            found.append(four | (met & 0x10))
        return found[0], found[1]

    return weights


def of_values(at: int, values: Sequence[int]) -> Weights:
    """Nibbles that stand for 16 values."""
    table = [value & 0xFF for value in values]

    def weights(o0: Value, o1: Value) -> tuple[Value, Value]:
        first, last = (of_sixteen(table, four) for four in _nibbles(o0 + at, o1 + at))
        return first, last

    return weights


# --- eight blocks' sums -------------------------------------------------------------------------------------


def _ones(b: Any) -> Value:
    return Value(b, ir.Constant(I16V, [1] * 16))


def _quads(pairs: Value) -> Value:
    """int32 sums of two int16 each."""
    return Value(pairs.b, call(pairs.b, "llvm.x86.avx2.pmadd.wd", I32V, [pairs.v, _ones(pairs.b).v]))


def _packed(x: Value, y: Value) -> Value:
    """int32 as int16, each half of x beside the same of y."""
    return Value(x.b, call(x.b, "llvm.x86.avx2.packssdw", I16V, [x.v, y.v]))


def _added(x: Value, y: Value) -> Value:
    """Sums of neighbours of x beside those of y, in each half."""
    masks = [[4 * half + 8 * of + i + odd for half in (0, 1) for of in (0, 1) for i in (0, 2)] for odd in (0, 1)]
    even, odd = (Value(x.b, lanes(x.b, x.v, y.v, mask)) for mask in masks)
    return even + odd


def _two_sums(weights: tuple[Value, Value], q: Value, bits: int) -> Value:
    """Two blocks' sums, a half each, of eight products as int32; with VNNI, of weights that are not negative."""
    if VNNI:
        b, total = q.b, zero(q.b, I32V).v
        for at, weight in enumerate(weights):
            total = emit_dot4(b, total, weight.v, (q + 32 * at).load(I8V).v)
        return Value(b, total)
    if bits <= 5:
        return _quads(products(weights[0], q) + products(weights[1], q + 32))
    first, last = signed_products(weights[0], q), signed_products(weights[1], q + 32)
    return dot2(_quads(first), last, _ones(q.b))


def _eight_sums(weights: Weights, blocks: list[Value], q: Value, bits: int) -> Value:
    """int32 sums of eight blocks, one a lane, of weights of so many bits and activations from `_copy_blocks`.

    The sum of 8 products with weights of 5 bits fits in int16, that of 16 with weights of 4.
    """

    def two(k: int) -> Value:
        return _two_sums(weights(blocks[k], blocks[k + 4]), q + 64 * k, bits)

    if bits > 5:
        return _added(_added(two(0), two(1)), _added(two(2), two(3)))
    x, y = (_quads(_packed(two(k), two(k + 1))) for k in (0, 2))
    return _quads(_packed(x, y)) if bits == 4 else _added(x, y)


# --- activations ----------------------------------------------------------------------------------------------


def on_stack(b: Any, n_bytes: Value) -> Value:
    """The address of so many bytes, of which LLVM knows nothing."""
    place = b.alloca(ir.IntType(8), n_bytes.v)
    place.align = 64
    return Value(b, hidden(b, b.ptrtoint(place, I64T)))


def _copy_blocks(act: Value, n_blocks: Value, to: Value) -> None:
    """Eights of blocks in the order of `_eight_sums`; then each that is left over, 16 zeros behind every 16 bytes."""
    b, eights = act.b, n_blocks >> 3
    with loop(b, eights) as i:
        for block, side in product(range(8), (0, 1)):
            at = i * 256 + (32 * block + 16 * side)
            (to + i * 256 + (64 * (block % 4) + 32 * side + 16 * (block // 4))).store((act + at).load(_QUAD))
    with loop(b, n_blocks & 7) as k:
        for side in (0, 1):
            half = (act + (eights << 8) + k * 32 + 16 * side).load(_QUAD)
            (to + (eights << 8) + k * 64 + 32 * side).store(join(half, zero(b, _QUAD)))


# --- rows -----------------------------------------------------------------------------------------------------


def _blended(addresses: list[Value], kind: Any) -> Value:
    """A vector of what lies at the addresses, lanes of `kind` in their order.

    Each comes with its neighbours, from as many bytes before as its lane is from the first: what lies there are blocks
    before it.
    """
    b, n = addresses[0].b, len(addresses)
    vector, size = ir.VectorType(kind, n), kind.width // 8
    x = addresses[0].load(vector)
    for i, address in enumerate(addresses[1:], 1):
        mask = [n + lane if lane == i else lane for lane in range(n)]
        x = Value(b, lanes(b, x.v, (address - size * i).load(vector).v, mask))
    return x


def _floats(halves: Value) -> Value:
    """The float16 in eight int16 lanes, as float32."""
    return Value(halves.b, halves.b.fpext(halves.b.bitcast(halves.v, ir.VectorType(F16T, 8)), F32V))


def _scales(blocks: list[Value]) -> list[Value]:
    """Of eight blocks that lie one behind the other: the float16 at their start."""
    b, words = blocks[0].b, ir.Constant(ir.VectorType(I16T, 8), ir.Undefined)
    for i, block in enumerate(blocks):
        words = b.insert_element(words, block.load(I16T).v, I32T(i))
    return [_floats(Value(b, words))]


def _scales_and_minima(blocks: list[Value]) -> list[Value]:
    """The two float16 at their start."""
    b = blocks[0].b
    parts = [(_blended(blocks[i : i + 4], I32T)).bits(ir.VectorType(I16T, 8)) for i in (0, 4)]
    x, y = (pick(part, [0, 2, 4, 6, 1, 3, 5, 7]).bits(_PAIR) for part in parts)
    return [_floats(Value(b, lanes(b, x.v, y.v, [i, 2 + i])).bits(ir.VectorType(I16T, 8))) for i in (0, 1)]


def _powers(blocks: list[Value]) -> list[Value]:
    """2 ** (e - 128) of the exponents in their first byte."""
    b = blocks[0].b
    exponents = _blended(blocks, I16T) & 0xFF
    return [half_power_of_two(Value(b, b.zext(exponents.v, I32V)))]


def row_sum(x: Value) -> Value:
    """The sum of eight lanes."""
    name = "fadd" if x.v.type.element == F32T else "add"
    start = [ir.Constant(F32T, 0.0)] if name == "fadd" else []
    kind = Vec("f32" if start else "i32", 8)
    return Value(x.b, call(x.b, f"llvm.vector.reduce.{name}.{suffix(kind)}", x.v.type.element, [*start, x.v]))


def make_rows(
    name: str, size: int, weights: Weights, bits: int, *, offset: int = 0, minimum: bool = False, power: bool = False
) -> Any:
    """An intrinsic rows((w, act, out, r0, r1, n_cols)): a matvec of blocks of `size` bytes.

    Weights of up to 5 `bits`, and of more with VNNI, are not negative: they stand `offset` too high, or have a
    `minimum`, the float16 behind the scale; a `power` of two may be the scale.
    """
    scales = _powers if power else _scales_and_minima if minimum else _scales

    def alone(o: Value) -> list[Value]:
        """One block's scale and minimum."""
        b = o.b
        if power:
            exponents = Value(b, b.zext(o.load_splat(ir.IntType(8), 8).v, I32V))
            return [Value(b, b.extract_element(half_power_of_two(exponents).v, I32T(0)))]
        return [Value(b, b.fpext((o + at).load(F16T).v, F32T)) for at in (0, 2)[: 1 + minimum]]

    def row(o: Value, q: Value, ds: Value, n_blocks: Value) -> Value:
        b, nothing = o.b, zero(o.b, F32V)
        ss = ds + n_blocks * 4
        totals = Cells([nothing, nothing])
        with loop(b, n_blocks >> 3) as i:
            at = o + i * (8 * size)
            for line in range(-(-8 * size // 64)):
                (at + 64 * line).ask_ahead()
            blocks = [at + size * k for k in range(8)]
            sums = _eight_sums(weights, blocks, q + i * 256, bits)
            total, mins = totals.get()
            if offset:
                sums = sums - (ss + i * 32).load(I32V) * offset
            d, *m = scales(blocks)
            total = fma(sums.to_f32(), d * (ds + i * 32).load(F32V), total)
            if m:
                mins = fma(m[0], (ss + n_blocks * 4 + i * 32).load(F32V), mins)
            totals.put([total, mins])
        total, mins = totals.get()
        rest = Cells([row_sum(total + mins)])
        first = n_blocks & -8
        with loop(b, Value(b, hidden(b, (n_blocks & 7).v))) as k:
            i = first + k
            at = o + i * size
            sums = _two_sums(weights(at, at), q + first * 32 + k * 64, bits)
            found = row_sum(sums)
            if offset:
                found = found - (ss + i * 4).load(I32T) * offset
            d, *m = alone(at)
            term = Value(b, b.fmul(b.sitofp(found.v, F32T), (d * (ds + i * 4).load(F32T)).v))
            if m:
                term = term + m[0] * (ss + n_blocks * 4 + i * 4).load(F32T)
            rest.put([rest.get()[0] + term])
        return rest.get()[0]

    def emit(w: Value, act: Value, out: Value, r0: Value, r1: Value, n: Value) -> None:
        b, n_blocks = w.b, n >> 5
        q = on_stack(b, n + (n_blocks & 7) * 32)
        _copy_blocks(act, n_blocks, q)
        with loop(b, r1 - r0) as index:
            r = r0 + index
            (out + r * 4).store(row(w + r * (n_blocks * size), q, act + n, n_blocks))

    emit.__qualname__ = name
    return compiled(emit, 6)
