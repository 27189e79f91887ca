"""A row times one activation vector in vectors of 32 bytes, for TQ1_0 and TQ2_0: int16 holds a block's sums.

A byte of TQ1_0 is a fraction of 256 whose first five digits to base 3 are weights. Of bytes as the high half of int16,
a product with 9 has two digits as one number in its high half, which a byte shuffle takes apart, and in its low half
what is left of the fraction. Layouts: ggml-common.h.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from llvmlite import ir

from localmoe.kernels.grids import join, of_sixteen, pick
from localmoe.kernels.matvec_k_ymm import make_row, of_bytes
from localmoe.kernels.matvec_ymm import I8V, I16V, I32V, dot2, products, unseen
from localmoe.kernels.simd import call, emit_lookup, emit_pair_sums, lanes
from localmoe.kernels.tile import I32T, Value, zero

_QUAD = ir.VectorType(I32T, 4)
_SKIP = 0x80  # an index of a byte shuffle that gives 0
_PAIRS = [i // 3 for i in range(9)], [i % 3 for i in range(9)]


def _total(pairs: list[Value]) -> Value:
    """int32 sums of all of those int16."""
    both = reduce(lambda x, y: x + y, pairs)
    return dot2(zero(both.b, I32V), both, Value(both.b, ir.Constant(I16V, [1] * 16)))


# --- TQ1_0: qs[48] qh[4] d ------------------------------------------------------------------------------------------


# bytes as high halves: of the last 16 of qs, beside qh twice; and what they are multiplied by to get at their digits
_LAST = [[at for i in [*range(first, first + 8), *[*range(12, 16)] * 2] for at in (_SKIP, i)] for first in (0, 8)]
_POWERS = [[81] * 8 + [3**n] * 4 + [3 ** (n + 1)] * 4 for n in (0, 2)]
_TQ1_0_TABLE = [of_bytes(_LAST), np.array([*_POWERS, [1] * 8 + [9] * 8], np.uint16).view(np.uint8).ravel()]


def _raised(x: Value) -> list[Value]:
    """Bytes as the high halves of int16: the first eight of each half, then the others."""
    nothing = zero(x.b, I8V)
    masks = [[at for half in (0, 16) for i in range(first, first + 8) for at in (32, half + i)] for first in (0, 8)]
    return [Value(x.b, lanes(x.b, x.v, nothing.v, mask)).bits(I16V) for mask in masks]


def _times(fractions: list[Value], by: int) -> Value:
    """What is whole of 32 fractions times a number, as bytes."""
    b = fractions[0].b
    whole = [call(b, "llvm.x86.avx2.pmulhu.w", I16V, [x.v, x.constant(by)]) for x in fractions]
    return Value(b, call(b, "llvm.x86.avx2.packuswb", I8V, whole))


def _digits(fractions: list[Value]) -> list[Value]:
    """The first two digits of 32 fractions."""
    return [of_sixteen([*digit, *[0] * 7], _times(fractions, 9)) for digit in _PAIRS]


def _tq1_0_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    b = o.b
    first = _raised(o.load(I8V))
    weights = [*_digits(first), *_digits([x * 9 for x in first]), _times([x * 81 for x in first], 3)]
    pairs = [products(u, q + 32 * n) for n, u in enumerate(weights)]
    pairs[0] = pairs[0] - sums.load(I16V)
    tail = (o + 32).load(_QUAD)
    short = _raised(unseen(pick(tail, [*range(4)] * 2).bits(I8V)))
    for k, u in enumerate(_digits([x * (table + 128).load(I16V) for x in short])):
        acts = join(*((q + (160 + 16 * k + 32 * half)).load(_QUAD) for half in (0, 1))).bits(I8V)
        pairs.append(Value(b, emit_pair_sums(b, u.v, acts.v)))
    rest = unseen(join(tail, (o + 36).load(_QUAD)).bits(I8V))
    last = [Value(b, emit_lookup(b, rest.v, (table + 32 * i).load(I8V).v)).bits(I16V) for i in (0, 1)]
    last = [x * (table + (64 + 32 * i)).load(I16V) for i, x in enumerate(last)]
    return _total([*pairs, products(_times(last, 3), q + 224)])


# --- TQ2_0: qs[64] d ------------------------------------------------------------------------------------------------


def _tq2_0_sums(o: Value, q: Value, sums: Value, table: Value) -> Value:
    """Every second field is multiplied where it lies in its byte, two bits higher."""
    found: tuple[list[Value], list[Value]] = [], []
    for n in range(2):
        x = (o + 32 * n).load(I8V)
        for j, y in enumerate((x, (x.bits(I16V) >> 4).bits(I8V))):
            for k, pairs in enumerate(found):
                pairs.append(products(y & (3 << 2 * k), q + 32 * (4 * n + 2 * j + k)))
    high = reduce(lambda x, y: x + y, found[1])
    down = Value(o.b, o.b.ashr(high.v, high.constant(2)))
    return _total([found[0][0] - sums.load(I16V), *found[0][1:], down])


row_tq1_0 = make_row(54, _tq1_0_sums, 52, 1, _TQ1_0_TABLE)
row_tq2_0 = make_row(66, _tq2_0_sums, 64, 1)
