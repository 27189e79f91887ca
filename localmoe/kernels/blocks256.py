"""Blocks of 256 weights of the IQ and TQ types as bytes and int16 scales: what matvec and matmul share of a type.

Functions here run while code is generated, over `Value`s (tile.py), and take a block's address. A weight is
d * factor * scale * (byte - offset); bytes are in their natural order, four vectors of 64. They are at most 127, or of
the full range where the type's values are (IQ4_XS): then they are what `dot4_biased`
multiplies. Layouts: ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from localmoe.kernels.grids import (
    I8,
    I16,
    I32,
    U8X32,
    U8X64,
    Index,
    choose_by_bits,
    constant,
    eighth_sign,
    entries,
    join,
    of_sixteen,
    pick,
    sevens_of,
    truncate,
    zero_extend,
)
from localmoe.kernels.simd import DOT4_BIAS, emit_field
from localmoe.kernels.tile import Value
from localmoe.quants.codebooks import nonlinear

_U8X4, _U8X8, _U8X16 = (ir.VectorType(I8, n) for n in (4, 8, 16))
_U16X4, _U16X8, _U16X16, _U16X32 = (ir.VectorType(I16, n) for n in (4, 8, 16, 32))
_U32X8, _U32X16 = ir.VectorType(I32, 8), ir.VectorType(I32, 16)
_EACH_TWICE = [i // 2 for i in range(16)]


Weights = Callable[[Sequence[Value]], list[list[Value]]]


@dataclass(frozen=True)
class Block256:
    """One type: its block's bytes, the code that reads one, and what the numbers that come out stand for.

    `weights` gives four vectors of 64 bytes for each of one or two blocks, `scales` 16 int16, `half` the 16 bits of d.
    `sub` weights share a scale.
    """

    size: int
    weights: Weights
    scales: Callable[[Value], Value]
    half: Callable[[Value], Value]
    factor: float
    offset: int
    most: int
    sub: int

    @property
    def signed(self) -> bool:
        """Whether bytes are of the full range."""
        return self.most > 127


def _each(weights: Callable[[Value], list[Value]]) -> Weights:
    return lambda blocks: [weights(o) for o in blocks]


def _of_grid(
    name: str, index: Callable[[Value], Index], finish: Callable[[Value, list[Value]], list[Value]],
    times: int, plus: int,
) -> Weights:  # fmt: skip
    """Entries of a code book, of which `finish(o, vectors)` makes the bytes."""

    def weights(blocks: Sequence[Value]) -> list[list[Value]]:
        found = entries(name, [index(o) for o in blocks], times, plus)
        return [finish(o, vectors) for o, vectors in zip(blocks, found, strict=True)]

    return weights


def _half_at(at: int) -> Callable[[Value], Value]:
    return lambda o: (o + at).load(I16)


def interleaved_nibbles(x: Value) -> Value:
    """Bytes as twice as many: each one's low half, then its high one."""
    wide = zero_extend(x, 16)
    return ((wide & 0x0F) | ((wide << 4) & 0x0F00)).bits(ir.VectorType(I8, 2 * x.v.type.count))


def _odd(scales: Value) -> Value:
    """2 * scale + 1 for 16 int16."""
    return (scales << 1) + 1


def _low_16_bits(words: Value) -> Value:
    return pick(truncate(words, 16), _EACH_TWICE)


def _negated(vectors: list[Value], signs: Value, offset: int) -> list[Value]:
    """Bytes offset + x as offset - x where the sign's bit is set."""
    b = signs.b
    turned = [Value(b, b.sub(v.constant(2 * offset), v.v)) for v in vectors]
    return [choose_by_bits(signs, c, yes, no) for c, (yes, no) in enumerate(zip(turned, vectors, strict=True))]


def _lowered(vectors: list[Value], down: Value) -> list[Value]:
    """Two less where the bit is set: an eighth of 8 * entry up becomes one down."""
    return [choose_by_bits(down, c, v - 2, v) for c, v in enumerate(vectors)]


# --- IQ4_XS: d scales_h[2] scales_l[4] qs[128] ----------------------------------------------------------------

_IQ4 = [(int(v) + DOT4_BIAS) & 0xFF for v in nonlinear()]


def _iq4_xs_weights(o: Value) -> list[Value]:
    vectors = []
    for c in range(4):
        q = (o + 8 + 32 * c).load(U8X32)
        twice = pick(q, [*range(16), *range(16), *range(16, 32), *range(16, 32)])
        vectors.append(of_sixteen(_IQ4, Value(o.b, emit_field(o.b, twice.v, [0, 4, 0, 4], 0x0F, 0))))
    return vectors


def _iq4_xs_scales(o: Value) -> Value:
    low = zero_extend(interleaved_nibbles((o + 4).load(_U8X4)), 16)
    word = (o + 2).load(ir.VectorType(I16, 1))
    high = pick(word, [0] * 8)
    high = (high >> constant(high, range(0, 16, 2))) & 3
    return pick((low | (high << 4)) - 32, _EACH_TWICE)


# --- IQ3_S: d qs[64] qh[8] signs[32] scales[4]; IQ3_XXS: d qs[64] (scale and signs)[32] -----------------------


def _iq3_s_index(o: Value) -> Index:
    repeated = pick((o + 66).load(_U8X8), [i // 8 for i in range(64)])
    ones = constant(repeated, [1 << (i % 8) for i in range(64)])
    met = o.b.icmp_unsigned("!=", (repeated & ones).v, repeated.constant(0))
    return (o + 2).load(U8X64), Value(o.b, o.b.zext(met, U8X64))


def _signed_at(at: int, offset: int) -> Callable[[Value, list[Value]], list[Value]]:
    """Signs are 32 bytes of the block."""
    return lambda o, vectors: _negated(vectors, (o + at).load(U8X32), offset)


def _iq3_s_scales(o: Value) -> Value:
    return _odd(pick(zero_extend(interleaved_nibbles((o + 106).load(_U8X4)), 16), _EACH_TWICE))


def _iq3_xxs_index(o: Value) -> Index:
    return (o + 2).load(U8X64), None


def _iq3_xxs_signed(o: Value, vectors: list[Value]) -> list[Value]:
    return _negated(vectors, eighth_sign(sevens_of((o + 66).load(_U32X8))), 62)


def _iq3_xxs_scales(o: Value) -> Value:
    return _odd(_low_16_bits((o + 66).load(_U32X8) >> 28))


# --- IQ2_XXS: d (indices[4], scale and signs[4])[8]; IQ2_XS: d qs[32] of 16 bits, scales[8] ---------------------


def _iq2_xxs_words(o: Value, odd: int) -> Value:
    return pick((o + 2).load(_U32X16), range(odd, 16, 2))


def _iq2_xxs_index(o: Value) -> Index:
    return _iq2_xxs_words(o, 0).bits(U8X32), None


def _iq2_xxs_signed(o: Value, vectors: list[Value]) -> list[Value]:
    return _negated(vectors, eighth_sign(sevens_of(_iq2_xxs_words(o, 1))), 43)


def _iq2_xxs_scales(o: Value) -> Value:
    return _odd(_low_16_bits(_iq2_xxs_words(o, 1) >> 28))


def _iq2_xs_bytes(o: Value, odd: int) -> Value:
    return pick(pick((o + 2).load(U8X64), [*range(0, 64, 2), *range(1, 64, 2)]), range(32 * odd, 32 * odd + 32))


def _iq2_xs_index(o: Value) -> Index:
    return _iq2_xs_bytes(o, 0), _iq2_xs_bytes(o, 1) & 1


def _iq2_xs_signed(o: Value, vectors: list[Value]) -> list[Value]:
    return _negated(vectors, eighth_sign(_iq2_xs_bytes(o, 1) >> 1), 43)


def _nibble_scales(at: int) -> Callable[[Value], Value]:
    """Sixteen scales of 4 bits in 8 bytes."""
    return lambda o: _odd(zero_extend(interleaved_nibbles((o + at).load(_U8X8)), 16))


# --- IQ2_S: d qs[32] signs[32] qh[8] scales[8] ----------------------------------------------------------------


def iq2_s_index(o: Value) -> Index:
    h = zero_extend((o + 66).load(_U8X8), 32)
    return (o + 2).load(U8X32), ((h | (h << 6) | (h << 12) | (h << 18)) & 0x03030303).bits(U8X32)


# --- IQ1_S: d qs[32] qh[8] of 16 bits; IQ1_M: qs[32] qh[16] scales[4] of 16 bits; bytes are 8 * entry +- 1, plus 9 ---


def iq1_s_index(o: Value) -> Index:
    h = zero_extend((o + 34).load(_U16X8), 32)
    parts = [(h << (5 * k)) & (7 << (8 * k)) for k in range(4)]
    return (o + 2).load(U8X32), (parts[0] | parts[1] | parts[2] | parts[3]).bits(U8X32)


def _iq1_s_lowered(o: Value, vectors: list[Value]) -> list[Value]:
    h = zero_extend((o + 34).load(_U16X8), 32) << 16
    return _lowered(vectors, Value(o.b, o.b.ashr(h.v, h.constant(31))).bits(U8X32))


def _iq1_s_scales(o: Value) -> Value:
    return _odd(pick(((o + 34).load(_U16X8) >> 12) & 7, _EACH_TWICE))


def iq1_m_index(o: Value) -> Index:
    return o.load(U8X32), interleaved_nibbles((o + 32).load(_U8X16)) & 7


def _iq1_m_lowered(o: Value, vectors: list[Value]) -> list[Value]:
    eighth = interleaved_nibbles((o + 32).load(_U8X16)) & 8
    met = o.b.icmp_unsigned("!=", eighth.v, eighth.constant(0))
    return _lowered(vectors, Value(o.b, o.b.sext(met, U8X32)))


def _iq1_m_scales(o: Value) -> Value:
    words = pick((o + 48).load(_U16X4), [i // 4 for i in range(16)])
    return _odd((words >> constant(words, [0, 3, 6, 9] * 4)) & 7)


def _iq1_m_half(o: Value) -> Value:
    s = [(o + 48 + 2 * i).load(I16) for i in range(4)]
    return (s[0] >> 12) | ((s[1] >> 8) & 0x00F0) | ((s[2] >> 4) & 0x0F00) | (s[3] & 0xF000)


# --- TQ1_0: qs[48] qh[4] d; TQ2_0: qs[64] d -------------------------------------------------------------------


def _trits(packed: Value, power: list[int]) -> Value:
    """One trit, 0 .. 2, of each byte."""
    wide = zero_extend(packed, 16)
    return truncate(((wide * constant(wide, power)) & 0xFF) * 3 >> 8, 8)


def _tq1_0_weights(o: Value) -> list[Value]:
    long, short, last = o.load(U8X32), (o + 32).load(_U8X16), (o + 48).load(_U8X4)
    p = [_trits(long, [3**n] * 32) for n in range(5)]
    r = [_trits(short, [3**n] * 16) for n in range(5)]
    end = _trits(pick(last, [i % 4 for i in range(16)]), [3 ** (i // 4) for i in range(16)])
    return [join(p[0], p[1]), join(p[2], p[3]), join(p[4], join(r[0], r[1])), join(r[2], r[3], r[4], end)]


def _tq2_0_weights(o: Value) -> list[Value]:
    vectors = []
    for half in range(2):
        q = (o + 32 * half).load(U8X32)
        twice = join(q, q)
        vectors += [Value(o.b, emit_field(o.b, twice.v, shifts, 3, 0)) for shifts in ([0, 2], [4, 6])]
    return vectors


def _ones(o: Value) -> Value:
    return Value(o.b, ir.Constant(_U16X16, [1] * 16))


_iq3_s = _of_grid("IQ3_S", _iq3_s_index, _signed_at(74, 15), 1, 15)
_iq3_xxs = _of_grid("IQ3_XXS", _iq3_xxs_index, _iq3_xxs_signed, 1, 62)
_iq2_s = _of_grid("IQ2_S", iq2_s_index, _signed_at(34, 43), 1, 43)
_iq2_xs = _of_grid("IQ2_XS", _iq2_xs_index, _iq2_xs_signed, 1, 43)
_iq2_xxs = _of_grid("IQ2_XXS", _iq2_xxs_index, _iq2_xxs_signed, 1, 43)
_iq1_s = _of_grid("IQ1_S", iq1_s_index, _iq1_s_lowered, 8, 10)
_iq1_m = _of_grid("IQ1_S", iq1_m_index, _iq1_m_lowered, 8, 10)

# size, weights, scales, d, factor, offset, most, sub
IQ4_XS = Block256(136, _each(_iq4_xs_weights), _iq4_xs_scales, _half_at(0), 1.0, DOT4_BIAS, 255, 32)
IQ3_S = Block256(110, _iq3_s, _iq3_s_scales, _half_at(0), 1.0, 15, 30, 32)
IQ3_XXS = Block256(98, _iq3_xxs, _iq3_xxs_scales, _half_at(0), 0.25, 62, 124, 32)
IQ2_S = Block256(82, _iq2_s, _nibble_scales(74), _half_at(0), 0.125, 43, 86, 16)
IQ2_XS = Block256(74, _iq2_xs, _nibble_scales(66), _half_at(0), 0.125, 43, 86, 16)
IQ2_XXS = Block256(66, _iq2_xxs, _iq2_xxs_scales, _half_at(0), 0.125, 43, 86, 32)
IQ1_S = Block256(50, _iq1_s, _iq1_s_scales, _half_at(0), 0.125, 9, 18, 32)
IQ1_M = Block256(56, _iq1_m, _iq1_m_scales, _iq1_m_half, 0.125, 9, 18, 16)
TQ1_0 = Block256(54, _each(_tq1_0_weights), _ones, _half_at(52), 1.0, 1, 2, 256)
TQ2_0 = Block256(66, _each(_tq2_0_weights), _ones, _half_at(64), 1.0, 1, 3, 256)
