"""A row times one activation vector in vectors of 32 bytes, for the IQ types with a code book.

Indices that have to be put together are stored while the block before is multiplied: to load a part of what was just
stored takes long, and a block cannot begin before it has them. Entries of four or eight bytes are blended out of loads
that each have another one in its place; a code book has room before it and behind it for their neighbours. What signs
negate is activations, which takes two instructions. Scales come out of a register that has them in both halves, in the
instruction that adds pairs. Layouts: ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from localmoe.kernels import blocks256
from localmoe.kernels.blocks256 import Block256
from localmoe.kernels.grids import Index, eighth_sign, join, pick, sevens_of, table_of, truncate
from localmoe.kernels.matvec_k_ymm import Early, make_row, of_bytes
from localmoe.kernels.matvec_ymm import I8V, I16V, I32V, dot2, unseen, word
from localmoe.kernels.simd import emit_lookup, emit_pair_sums, hidden, in_memory, lanes
from localmoe.kernels.tile import I32T, I64T, Value, zero
from localmoe.quants.codebooks import grid

_I8, _I16 = ir.IntType(8), ir.IntType(16)
_WORDS8, _QUAD = ir.VectorType(_I16, 8), ir.VectorType(I32T, 4)
_DOUBLE, _TWO, _FOUR = ir.DoubleType(), ir.VectorType(I64T, 2), ir.VectorType(I64T, 4)
_ROOM = 32
_SPREADS = of_bytes([[2 * j + i % 16 // 8 for i in range(32)] for j in range(8)])

Place = Callable[[int], tuple[Value, Any]]
"""The address of an entry's index in a block, and the index's type."""


def _met(spread: Value) -> Value:
    """Bytes of ones where bit i % 8 of byte i is set."""
    b, ones = spread.b, Value(spread.b, ir.Constant(I8V, [1 << i % 8 for i in range(32)]))
    return Value(b, b.sext(b.icmp_unsigned("==", (spread & ones).v, ones.v), I8V))


def _eighths(x: Value, table: Value) -> Callable[[int], Value]:
    """Bytes 4 j to 4 j + 3 of 32, eight times each: by the shuffles at `table`, of x with the first two of every four
    in its low half."""
    apart = unseen(pick(x, [4 * j + 2 * half + i for half in (0, 1) for j in range(8) for i in (0, 1)]))
    return lambda j: Value(x.b, emit_lookup(x.b, apart.v, (table + 32 * j).load(I8V).v))


# --- indices --------------------------------------------------------------------------------------------------------


def _words(low: Value, high: Value) -> list[Value]:
    """Indices of 32 low bytes and 32 high ones, in the order in which those come together."""
    halves = [range(first + half, first + half + 8) for first in (0, 8) for half in (0, 16)]
    masks = [[at + of for half in halves[2 * k : 2 * k + 2] for at in half for of in (0, 32)] for k in (0, 1)]
    return [Value(low.b, lanes(low.b, low.v, high.v, mask)) for mask in masks]


def _of_words(kept: Value) -> Place:
    """Where `_words` has them."""
    return lambda i: (kept + 64 * (i // 32) + 32 * (i % 16 // 8) + 2 * (i % 32 // 16 * 8 + i % 8), _I16)


def _in_order(kept: Value) -> Place:
    return lambda i: (kept + 2 * i, _I16)


def _two_bytes(index: Callable[[Value], Index]) -> Early:
    """Indices whose low and high bytes `index` gives."""

    def words(o: Value) -> list[Value]:
        low, high = index(o)
        assert high is not None
        return _words(low, high)

    return words


def _iq2_xs_words(o: Value) -> list[Value]:
    return [(o + at).load(I16V) & 511 for at in (2, 34)]


def _iq3_s_places(o: Value) -> Place:
    """Made with the block: a block earlier was no faster."""
    found = []
    for k in (0, 1):
        bits = pick((o + (66 + 4 * k)).load_splat(I32T, 8).bits(I8V), [16 * (i // 16) + i // 8 for i in range(32)])
        found += _words((o + (2 + 32 * k)).load(I8V), _met(bits) & 1)
    return _of_words(Value(o.b, in_memory(o.b, join(*found).v)))


# --- signs ----------------------------------------------------------------------------------------------------------


def _iq2_xxs_signs(o: Value) -> Value:
    words = (o + 2).load(ir.VectorType(I32T, 16))
    return eighth_sign(sevens_of(pick(words, range(1, 16, 2))))


def _iq2_xs_signs(o: Value) -> Value:
    low, high = ((o + at).load(I16V) >> 9 for at in (2, 34))
    return eighth_sign(truncate(Value(o.b, lanes(o.b, low.v, high.v, range(32))), 8))


# --- sums of a block ------------------------------------------------------------------------------------------------


def _make_entries(name: str, values: np.ndarray, places: Callable[[Value], Place], *, blended: bool = False) -> Any:
    """of_block(o)(j): the 32 bytes of a sub-block, entries of the code book `values`."""
    width = values.shape[1]
    room, per = np.zeros(_ROOM, np.uint8), 16 // width
    table = np.concatenate([room, values.astype(np.uint8).ravel(), room])

    def of_block(o: Value) -> Callable[[int], Value]:
        b, place = o.b, places(o)
        base = Value(b, hidden(b, table_of(b, f"avx2.{name}", table).v)) + _ROOM

        def entry(number: int) -> Value:
            at, kind = place(number)
            return base + Value(b, b.zext(at.load(kind).v, I64T)) * width

        def sixteen(first: int) -> Value:
            if width == 8:  # a load and a shuffle in one, and no load of two cache lines
                both = [entry(first + k).load(_DOUBLE).v for k in (0, 1)]
                pair = ir.Constant(ir.VectorType(_DOUBLE, 2), ir.Undefined)
                for k in (0, 1):
                    pair = b.insert_element(pair, both[k], I32T(k))
                return Value(b, b.bitcast(pair, _QUAD))
            found = entry(first).load(_QUAD)
            for k in range(1, 4):
                mask = [lane + 4 * (lane == k) for lane in range(4)]
                found = Value(b, lanes(b, found.v, (entry(first + k) - 4 * k).load(_QUAD).v, mask))
            return found

        def thirty_two(first: int) -> Value:
            """Two instructions for the last two entries, whose loads may be of two cache lines."""
            low = sixteen(first).bits(_TWO)
            both = lanes(b, low.v, entry(first + 2).load(_TWO).v, range(4))
            return Value(b, lanes(b, both, (entry(first + 3) - 24).load(_FOUR).v, [0, 1, 2, 7])).bits(I8V)

        def of_sub_block(j: int) -> Value:
            if blended:
                return thirty_two(4 * j)
            low, high = (sixteen((2 * j + half) * per) for half in (0, 1))
            return Value(b, lanes(b, low.v, high.v, range(8))).bits(I8V)

        return of_sub_block

    return of_block


def _scaled(kind: Block256, o: Value, total: Value, pairs: Callable[[int], Value]) -> Value:
    """The total plus eight sub-blocks' sums of pairs times their scales."""
    scales = kind.scales(o)
    fours = [[first + 2 * i + half for half in (0, 1) for i in (0, 0, 1, 1, 2, 2, 3, 3)] for first in (0, 8)]
    apart = [unseen(pick(scales, four)) for four in fours]
    for j in range(8):
        total = dot2(total, pairs(j), word(apart[j // 4], j % 4))
    return total


def _make_signed(
    kind: Block256, name: str, places: Callable[[Value], Place], signs: Callable[[Value], Value],
    early: Early | None = None,
) -> Any:  # fmt: skip
    entries = _make_entries(name, grid(name), places)

    def sums(o: Value, q: Value, act_sums: Value, table: Value, *kept: Value) -> Value:
        b, entry, negative = o.b, entries(*(kept or [o])), _eighths(signs(o), table)

        def pairs(j: int) -> Value:
            met = unseen(_met(negative(j)))
            turned = ((q + 32 * j).load(I8V) ^ met) - met
            return Value(b, emit_pair_sums(b, entry(j).v, turned.v))

        return _scaled(kind, o, zero(b, I32V), pairs)

    sums.__name__ = f"{name}_sums"
    return make_row(kind.size, sums, kind.half, 1 / kind.factor, [_SPREADS], early=early)


def _iq1_s_sums(o: Value, q: Value, sums: Value, table: Value, kept: Value) -> Value:
    """Entries plus 1, times 8; what that adds is taken away, and an eighth added or taken, by the sums of 16."""
    b, entry = o.b, _iq1_s_entries(kept)
    lowered = pick((o + 34).load(_WORDS8), [i // 2 for i in range(16)])
    lowered = Value(b, b.ashr(lowered.v, lowered.constant(15)))
    away = blocks256.IQ1_S.scales(o) * ((lowered << 1) - 7)
    total = dot2(zero(b, I32V), sums.load(I16V), away)
    return _scaled(
        blocks256.IQ1_S, o, total,
        lambda j: Value(b, emit_pair_sums(b, entry(j).v, (q + 32 * j).load(I8V).v)),
    )  # fmt: skip


def _iq1_m_sums(o: Value, q: Value, sums: Value, table: Value, kept: Value) -> Value:
    """The same, but an eighth is added or taken for each entry: 8 * entry + 10, or 2 less."""
    b, entry = o.b, _iq1_m_entries(kept)
    nibbles = blocks256.interleaved_nibbles((o + 32).load(ir.VectorType(_I8, 16)))
    lowered = _eighths((nibbles & 8) >> 2, table)

    def pairs(j: int) -> Value:
        values = entry(j) - lowered(j)
        return Value(b, emit_pair_sums(b, values.v, (q + 32 * j).load(I8V).v))

    away = blocks256.IQ1_M.scales(o) * -9
    return _scaled(blocks256.IQ1_M, o, dot2(zero(b, I32V), sums.load(I16V), away), pairs)


_iq1_s_entries = _make_entries("IQ1_S", 8 * grid("IQ1_S") + 8, _of_words, blended=True)
_iq1_m_entries = _make_entries("IQ1_M", 8 * grid("IQ1_S") + 10, _of_words, blended=True)

row_iq3_s = _make_signed(blocks256.IQ3_S, "IQ3_S", _iq3_s_places, lambda o: (o + 74).load(I8V))
row_iq3_xxs = _make_signed(
    blocks256.IQ3_XXS,
    "IQ3_XXS",
    lambda o: lambda i: (o + (2 + i), _I8),
    lambda o: eighth_sign(sevens_of((o + 66).load(ir.VectorType(I32T, 8)))),
)
row_iq2_s = _make_signed(
    blocks256.IQ2_S, "IQ2_S", _of_words, lambda o: (o + 34).load(I8V), _two_bytes(blocks256.iq2_s_index)
)
row_iq2_xs = _make_signed(blocks256.IQ2_XS, "IQ2_XS", _in_order, _iq2_xs_signs, _iq2_xs_words)
row_iq2_xxs = _make_signed(
    blocks256.IQ2_XXS, "IQ2_XXS", lambda o: lambda i: (o + (2 + 8 * (i // 4) + i % 4), _I8), _iq2_xxs_signs
)
row_iq1_s = make_row(50, _iq1_s_sums, blocks256.IQ1_S.half, 8, [_SPREADS], early=_two_bytes(blocks256.iq1_s_index))
row_iq1_m = make_row(56, _iq1_m_sums, blocks256.IQ1_M.half, 8, [_SPREADS], early=_two_bytes(blocks256.iq1_m_index))
