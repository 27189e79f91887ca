"""A row times one activation vector in vectors of 32 bytes, for K-quants and IQ4_XS: few instructions a block.

Fields of two bits are multiplied where they lie in their byte, which saves the shift, and scales stand higher by as
much where a field stands lower: sums are a multiple of what they mean, and the last one is divided. Sums of 16 weights
take their scale in the instruction that adds up pairs. Layouts: ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types

from localmoe.kernels.grids import of_sixteen, pick, table_of
from localmoe.kernels.matvec_ymm import (
    F32V,
    I8V,
    I16V,
    I32V,
    K4_SCALES,
    dot2,
    k4_scales,
    products,
    row_sum,
    signed_products,
    unseen,
    word,
)
from localmoe.kernels.simd import emit_lookup, hidden, in_memory, intrinsic, lanes, splat
from localmoe.kernels.tile import F16T, F32T, I16T, I32T, I64T, Cells, Value, fma, loop, zero
from localmoe.quants.codebooks import nonlinear

_QUAD, _OCTET = ir.VectorType(I32T, 4), ir.VectorType(I16T, 8)
_SKIP = 0x80  # an index of a byte shuffle that gives 0

Sums = Callable[..., Value]
"""int32 sums of a block: of its address, its activations', that of their sums of 16, that of a table and, where there
is something, that of what was made early."""


Early = Callable[[Value], list[Value]]
"""Vectors of a block, of its address: a power of two of them."""


def _bytes(x: Value, picks: Value) -> Value:
    """Bytes of each half of x, as int16."""
    return Value(x.b, emit_lookup(x.b, x.v, picks.v)).bits(I16V)


def _picks(*, high: bool) -> list[list[int]]:
    """Sixteen bytes as the low or high halves of int16: two each beside 32 weights, eight times, and all in order."""
    scales = [[2 * v + i // 8 for i in range(16)] for v in range(8)] + [[*range(16)]]
    return [[byte for i in row for byte in ((_SKIP, i) if high else (i, _SKIP))] for row in scales]


def _twice(at: Value) -> Value:
    """Sixteen bytes in both halves of a vector."""
    return pick(at.load(_QUAD), [*range(4)] * 2).bits(I8V)


def _nibbles(at: Value) -> Value:
    """The low nibbles of 16 bytes, then the high ones: each half of the vector is shifted by itself."""
    return (_twice(at).bits(I32V) >> Value(at.b, ir.Constant(I32V, [0] * 4 + [4] * 4))).bits(I8V) & 0x0F


def _down(x: Value, by: int) -> Value:
    """Bytes moved by some bits; others come in from their neighbours."""
    return (x.bits(I16V) >> by).bits(I8V)


def _beside(total: Value, mins: Value) -> Value:
    """Half as many sums in even lanes, and what is taken away in odd ones."""
    low, high = (
        [first + 4 * half + i + 8 * of for half in (0, 1) for i in (0, 1) for of in (0, 1)] for first in (0, 2)
    )
    return Value(total.b, lanes(total.b, total.v, mins.v, low)) + Value(total.b, lanes(total.b, total.v, mins.v, high))


def _up(x: Value, by: int) -> Value:
    return (x.bits(I16V) << by).bits(I8V)


def of_bytes(rows: list[list[int]]) -> npt.NDArray[np.uint8]:
    return np.array(rows, np.uint8).ravel()


def _of_words(rows: list[list[int]]) -> npt.NDArray[np.uint8]:
    return np.array(rows, "<u4").view(np.uint8).ravel()


# --- Q2_K: scales[16] (scale, min << 4) qs[64] d dmin; sums are 16 times as large ----------------------------------


def _q2_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    both = _twice(o)
    scales = ((both & 0x0F).bits(I16V) * Value(o.b, ir.Constant(I16V, [16, 4, 1, 1] * 4))).bits(I8V)
    total = zero(o.b, I32V)
    for n in range(2):
        x = (o + 16 + 32 * n).load(I8V)
        for j, u in enumerate((x & 0x03, x & 0x0C, x & 0x30, _down(x, 2) & 0x30)):
            v = 4 * n + j
            total = dot2(total, products(u, q + 32 * v), _bytes(scales, (table + 32 * v).load(I8V)))
    mins = dot2(zero(o.b, I32V), _bytes(both & 0xF0, (table + 256).load(I8V)), sums.load(I16V))
    return _beside(total, mins)


# --- Q3_K: hmask[32] qs[64] scales[12] d; scales stand 8 bits higher -------------------------------------------------


_Q3_SCALES = [[0, 0, 4, 4] * 2, [0x0F0F0F0F] * 8, [0, 2, 4, 6] * 2, [0x30303030] * 8, [0x20202020] * 8]


def _q3_scales(o: Value, table: Value) -> Value:
    """Sixteen 6-bit scales less 32, in both halves; reads from the last four bytes of qs."""
    tail = pick((o + 92).load(_QUAD), [*range(4)] * 2)
    shift, mask, high_shift, high_mask, middle = ((table + 32 * i).load(I32V) for i in range(5))
    low = (pick(tail, [1, 2, 1, 2, 5, 6, 5, 6]) >> shift) & mask
    high = ((pick(tail, [3] * 4 + [7] * 4) >> high_shift) << 4) & high_mask
    return (low | high).bits(I8V) - middle.bits(I8V)


def _q3_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    b, scales, mask = o.b, _q3_scales(o, table + 288), o.load(I8V)
    thirds = [[(i >> first & 1) << 2 | (i >> first + 2 & 1) << 6 for i in range(16)] for first in (0, 1)]
    total = dot2(zero(b, I32V), _bytes(scales, (table + 256).load(I8V)), sums.load(I16V))
    total = zero(b, I32V) - (total << 2)
    for n in range(2):
        x = (o + 32 + 32 * n).load(I8V)
        bits = (_down(mask, 4) if n else mask) & 0x0F
        # bytes of two fields of three bits each: weights 0 and 2 of four, and 1 and 3
        fields = [(y & 0x33) | of_sixteen(third, bits) for y, third in zip((x, _down(x, 2)), thirds, strict=True)]
        for j in range(4):
            v = 4 * n + j
            u = (_down(fields[j % 2], 4) if j >= 2 else fields[j % 2]) & 0x07
            total = dot2(total, products(u, q + 32 * v), _bytes(scales, (table + 32 * v).load(I8V)))
    return total


# --- Q5_K: d dmin scales[12] qh[32] qs[128] -----------------------------------------------------------------------


# bytes as int16: four scales twice each, four more, and the minima beside two sums of 16 each
_Q5_BYTES = [*([first + i // 2 for i in range(8)] * 2 for first in (0, 4)), [8 + i // 2 for i in range(16)]]
_Q5_TABLE = [of_bytes([[at for i in row for at in (i, _SKIP)] for row in _Q5_BYTES]), _of_words(K4_SCALES)]


def _q5_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    b, fifths = o.b, (o + 16).load(I8V)
    both, total = k4_scales(pick(o.load(_QUAD), [*range(4)] * 2), table + 96), zero(b, I32V)
    scales = [unseen(_bytes(both, (table + 32 * i).load(I8V))) for i in range(2)]
    for n in range(4):
        x = (o + 48 + 32 * n).load(I8V)
        for v, u in ((2 * n, x & 0x0F), (2 * n + 1, _down(x, 4) & 0x0F)):
            fifth = _down(fifths, v - 4) if v >= 4 else _up(fifths, 4 - v)
            total = dot2(total, products(u | (fifth & 0x10), q + 32 * v), word(scales[n // 2], v % 4))
    return _beside(total, dot2(zero(b, I32V), _bytes(both, (table + 64).load(I8V)), sums.load(I16V)))


# --- Q6_K: ql[128] qh[64] scales[16] d; weights stand 32 higher ------------------------------------------------------


# bytes as the high half of int16: even ones twice each in a low half and odd ones in a high half, eight of sixteen
_Q6_PICKS = [[first + half + 2 * (i // 2) for half in (0, 1) for i in range(8)] for first in (0, 8)]
_Q6_TABLE = [of_bytes([[at for i in row for at in (_SKIP, i)] for row in _Q6_PICKS])]


def _q6_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    b = o.b
    scales = (o + 192).load(ir.VectorType(ir.IntType(8), 16)).signed(I16V)
    total = zero(b, I32V) - (dot2(zero(b, I32V), scales, sums.load(I16V)) << 5)
    both = unseen(_twice(o + 192))
    for n in range(2):
        beside = _bytes(both, (table + 32 * n).load(I8V))
        beside = unseen(Value(b, b.ashr(beside.v, beside.constant(8))))
        low = [(o + 64 * n + 32 * i).load(I8V) for i in range(2)]
        high = (o + 128 + 32 * n).load(I8V)
        lows = (low[0] & 0x0F, low[1] & 0x0F, _down(low[0], 4) & 0x0F, _down(low[1], 4) & 0x0F)
        highs = (_up(high, 4), _up(high, 2), high, _down(high, 2))
        for j in range(4):
            total = dot2(total, products(lows[j] | (highs[j] & 0x30), q + 32 * (4 * n + j)), word(beside, j))
    return total


# --- IQ4_XS: d scales_h[2] scales_l[4] qs[128] ----------------------------------------------------------------------


_IQ4_XS_SCALES = [[*range(0, 32, 4)], [0x0F] * 8, [*range(12, 28, 2)], [0x30] * 8, [32] * 8]


def _iq4_xs_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    b, total = o.b, zero(o.b, I32V)
    low, high = (o + 4).load_splat(I32T, 8), o.load_splat(I32T, 8)
    low = (low >> table.load(I32V)) & (table + 32).load(I32V)
    high = (high >> (table + 64).load(I32V)) & (table + 96).load(I32V)
    scales = (low | high) - (table + 128).load(I32V)
    at = Value(b, in_memory(b, _bytes(scales.bits(I8V), (table + 160).load(I8V)).v))
    values = [int(value) & 0xFF for value in nonlinear()]
    for i in range(8):
        pairs = signed_products(of_sixteen(values, _nibbles(o + 8 + 16 * i)), q + 32 * i)
        total = dot2(total, pairs, (at + 4 * i).load_splat(I32T, 8).bits(I16V))
    return total


# --- rows -----------------------------------------------------------------------------------------------------------


def _make_early(first: Value, early: Early, last: Value) -> Callable[[Value], list[Value]]:
    """of(next): where the vectors of a block are, after those of the one behind it have been made; `last` has none."""
    b = first.b
    vectors = early(first)
    room = 32 * len(vectors)
    place = cgutils.alloca_once(b, ir.ArrayType(ir.IntType(8), 2 * room))
    place.align = 2 * room
    slots = Cells([Value(b, hidden(b, b.ptrtoint(place, I64T)))])

    def keep(vectors: list[Value], at: Value) -> None:
        for k, vector in enumerate(vectors):
            (at + 32 * k).store(vector)

    keep(vectors, slots.get()[0])

    def of(o: Value) -> list[Value]:
        slot = slots.get()[0]
        other = slot ^ room
        keep(early((o < last).choose(o, last)), other)
        slots.put([other])
        return [Value(b, hidden(b, slot.v))]

    return of


def make_row(
    size: int, sums: Sums, scale: int | Callable[[Value], Value], divisor: float,
    table: Sequence[npt.NDArray[np.uint8]] = (), *, minimum: bool = False, early: Early | None = None,
) -> Any:  # fmt: skip
    """An intrinsic row(o, act, n): one row's product from blocks of `size` bytes.

    At `scale` is a block's float16 scale, or code gives its bits; with a `minimum`, that of what odd lanes of `sums`
    take away is behind it.
    """
    kind = I32T if minimum else I16T
    signs = [1 / divisor, -1 / divisor if minimum else 1 / divisor] * 4

    def emit(o: Value, act: Value, n: Value) -> Value:
        b, n_blocks, ds = o.b, n >> 8, act + n
        constants = table_of(b, f"{sums.__name__}", np.concatenate(table)) if table else zero(b, I64T)
        total = Cells([zero(b, F32V)])
        early_of = _make_early(o, early, o + (n_blocks - 1) * size) if early else lambda _: []
        with loop(b, n_blocks) as i:
            at = o + i * size
            kept = early_of(at + size)
            for line in range(-(-size // 64)):
                (at + 64 * line).ask_ahead()
            found = sums(at, act + i * 256, ds + n_blocks * 4 + i * 32, Value(b, hidden(b, constants.v)), *kept)
            bits = scale(at) if callable(scale) else (at + scale).load(kind)
            halves = splat(b, bits.v, 128 // kind.width)
            d = Value(b, b.fpext(b.bitcast(halves, ir.VectorType(F16T, 8)), F32V)) * (ds + i * 4).load_splat(F32T, 8)
            total.put([fma(found.to_f32(), d, total.get()[0])])
        return row_sum(total.get()[0] * Value(b, ir.Constant(F32V, signs)))

    @intrinsic
    def row(typingctx: Any, o: Any, act: Any, n: Any) -> Any:
        signature = types.float32(types.int64, types.int64, types.int64)
        return signature, lambda ctx, b, sig, args: emit(*(Value(b, arg) for arg in args)).v

    return row


_TWICE = [4 * (i // 4) % 16 + i % 2 for i in range(32)]  # the low half of each int32 of a half, as both halves

row_q2_k = make_row(84, _q2_sums, 80, 16, [of_bytes(_picks(high=False))], minimum=True)
row_q3_k = make_row(110, _q3_sums, 108, 256, [of_bytes(_picks(high=True)), _of_words(_Q3_SCALES)])
row_q5_k = make_row(176, _q5_sums, 0, 1, _Q5_TABLE, minimum=True)
row_q6_k = make_row(210, _q6_sums, 208, 1, _Q6_TABLE)
row_iq4_xs = make_row(136, _iq4_xs_sums, 0, 1, [_of_words(_IQ4_XS_SCALES), of_bytes([_TWICE])])
