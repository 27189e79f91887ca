"""Rows times one activation vector in vectors of 32 bytes, Q4_K: two blocks at a time, activations in another order.

Of four sub-blocks a, b, c and d of 32 weights (64 bytes, a and c in their low bits and b and d in the high ones)
vectors are made of the first 16 and of the last 16 weights of a and c, and of b and d: products of both vectors then
belong to the same scales lane by lane, int16 holds their sum, and one multiplication serves 64 weights instead of 32. A
copy of the activations is brought into that order once for many rows, with sums of 32 and scales of two blocks side by
side: what comes once a block (scales, minima, conversion, multiply-add) comes once for two. A last odd block is paired
with itself at scale 0. Layouts: ggml-common.h.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from llvmlite import ir

from localmoe.kernels.grids import join, pick, table_of
from localmoe.kernels.matvec_ymm import (
    F32V,
    I8V,
    I16V,
    I32V,
    K4_SCALES,
    dot2,
    k4_scales,
    on_stack,
    products,
    row_sum,
    unseen,
    word,
)
from localmoe.kernels.simd import emit_lookup, hidden, lanes, splat
from localmoe.kernels.tile import F16T, F32T, I32T, Cells, Value, compiled, fma, loop, zero

_QUAD = ir.VectorType(I32T, 4)
_SIZE = 144
_SUMS, _SCALES, _PITCH = 512, 544, 576  # of two blocks' activations: int8, sums of 32 as int16, scales as float32

# bytes as int16 twice each: word i of a half is what the vectors of sub-blocks i % 2 + 4 * (i // 2) and two more take
_SPREAD = [at for first in (0, 2) for i in (0, 1, 4, 5) for at in (first + i, 0x80) * 2]
_TABLE = np.concatenate([np.array(_SPREAD, np.uint8), np.array(K4_SCALES, "<u4").ravel().view(np.uint8)])


def _both(x: Value, y: Value, mask: list[int]) -> Value:
    return Value(x.b, lanes(x.b, x.v, y.v, mask))


def _crosswise(x: Value, y: Value) -> Value:
    """The low half of x and the high half of y."""
    n = x.v.type.count
    return _both(x, y, [*range(n // 2), *range(n + n // 2, 2 * n)])


def _copy(act: Value, n: Value, copy: Value) -> None:
    """Write that copy of a "q8_k" row: `_PITCH` bytes for two blocks."""
    b, n_blocks, ds = act.b, n >> 8, act + n
    ones = Value(b, ir.Constant(I16V, [1] * 16))
    with loop(b, (n_blocks + 1) >> 1) as pair:
        i, to = pair << 1, copy + pair * _PITCH
        second = (i + 1) < n_blocks
        numbers = [i, second.choose(i + 1, i)]
        for k, number in enumerate(numbers):
            for four, high, half, side in product((0, 1), repeat=4):
                at = 256 * k + 128 * four + 64 * high + 32 * half + 16 * side
                sub_block = 4 * four + 2 * side + high
                (to + at).store((act + number * 256 + 32 * sub_block + 16 * half).load(_QUAD))
        sums = [dot2(zero(b, I32V), (ds + n_blocks * 4 + number * 32).load(I16V), ones) for number in numbers]
        (to + _SUMS).store(Value(b, b.trunc(join(*sums).v, ir.VectorType(ir.IntType(16), 16))))
        d = [(ds + number * 4).load(F32T) for number in numbers]
        d[1] = second.choose(d[1], Value(b, F32T(0.0)))
        (to + _SCALES).store(join(*(Value(b, splat(b, x.v, 4)) for x in d)))


def _block(o: Value, q: Value, scales: Value) -> Value:
    """int32 sums of a block's products, each times its scale."""
    total = zero(o.b, I32V)
    for n in range(2):
        pieces = [(o + 16 + 64 * n + 16 * i).load(I8V) for i in range(3)]
        halves = [_crosswise(pieces[i], pieces[i + 1]) for i in (0, 1)]  # the first 16 bytes of both, and the second
        for high in (0, 1):
            u = [((half.bits(I16V) >> 4).bits(I8V) if high else half) & 0x0F for half in halves]
            x, y = (products(u[i], q + 128 * n + 64 * high + 32 * i) for i in (0, 1))
            total = dot2(total, x + y, word(scales, 2 * n + high))
    return total


def _scales(o0: Value, o1: Value, table: Value) -> tuple[Value, Value]:
    """Eight scales and eight minima of two blocks, a half each; then what d and dmin are, alternating."""
    b = o0.b
    scales = k4_scales(join(o0.load(_QUAD), o1.load(_QUAD)), table + 32)
    heads = unseen(_crosswise(*(Value(b, splat(b, o.load(I32T).v, 4)) for o in (o0, o1))))
    return scales, Value(b, b.fpext(b.bitcast(heads.v, ir.VectorType(F16T, 8)), F32V))


def _minima(scales: Value) -> Value:
    """The last eight bytes of each half as int16."""
    nothing = zero(scales.b, I8V)
    picks = [at for half in (8, 24) for i in range(8) for at in (half + i, 32)]
    return _both(scales, nothing, picks).bits(I16V)


def _emit_rows(w: Value, act: Value, out: Value, r0: Value, r1: Value, n: Value) -> None:
    b, n_blocks = w.b, n >> 8
    n_pairs, stride = (n_blocks + 1) >> 1, n_blocks * _SIZE
    q = on_stack(b, n_pairs * _PITCH)
    _copy(act, n, q)
    constants = table_of(b, "k_pairs", _TABLE)
    with loop(b, r1 - r0) as index:
        first = w + (r0 + index) * stride
        last = first + (n_blocks - 1) * _SIZE
        sums = Cells([zero(b, F32V), zero(b, F32V)])
        with loop(b, n_pairs) as pair:
            o0, at = first + pair * (2 * _SIZE), q + pair * _PITCH
            for line in range(-(-2 * _SIZE // 64)):
                (o0 + 64 * line).ask_ahead()
            o1 = (o0 < last).choose(o0 + _SIZE, o0)
            table = Value(b, hidden(b, constants.v))
            scales, d = _scales(o0, o1, table)
            d = d * (at + _SCALES).load(F32V)
            found: list[Value] = []
            for k, o in enumerate((o0, o1)):
                half = pick(scales.bits(I32V), [*range(4 * k, 4 * k + 4)] * 2).bits(I8V)
                spread = Value(b, emit_lookup(b, half.v, table.load(I8V).v))
                found.append(_block(o, at + 256 * k, unseen(spread)))
            folded = _crosswise(found[0], found[1]) + _both(found[0], found[1], [*range(4, 12)])
            minima = dot2(zero(b, I32V), _minima(scales), (at + _SUMS).load(I16V))
            total, less = sums.get()
            total = fma(folded.to_f32(), pick(d, [0, 0, 2, 2, 4, 4, 6, 6]), total)
            less = fma(minima.to_f32(), pick(d, [1, 1, 3, 3, 5, 5, 7, 7]), less)
            sums.put([total, less])
        total, less = sums.get()
        (out + (r0 + index) * 4).store(row_sum(total - less))


rows_q4_k = compiled(_emit_rows, 6)
"""rows_q4_k((w, act, out, r0, r1, n_cols)): a matvec."""
