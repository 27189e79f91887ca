"""Matrix times one activation vector for K-quants: blocks of 256 weights, "q8_k" activations.

Every kernel: (w, act, out, r0, r1, n_cols), all int64. `w` is the address of row 0 of a (rows, n_cols) matrix as the
file stores it, `act` that of a "q8_k" activation row; float32 results go to out + 4 * r for r in [r0, r1). No kernel
reads outside of a row's own bytes: a file may end there.

Each type brings a block to four vectors of 64 unsigned weights in their natural order and 16 int16 scales (or 8, each
for 32 weights), and sums in exact int32. An offset of the weights (32 in Q6_K, 4 in Q3_K) or a minimum (Q2_K, Q4_K,
Q5_K) multiplies sums of 16 activations, which the activations' row has ready. What comes once a block (scales, mins, d)
is decoded for two blocks at a time, since the vector units are what limits a kernel when two threads share a core
(Q4_K 40 -> 29 vector instructions a block). A last odd block is paired with itself at d = 0. Layouts: ggml-common.h.
"""

from __future__ import annotations

from typing import Any

from localmoe.jit import njit
from localmoe.kernels.matvec_k_pairs import rows_q4_k
from localmoe.kernels.matvec_k_ymm import row_q2_k, row_q3_k, row_q5_k, row_q6_k
from localmoe.kernels.matvec_rows import by_row, ymm
from localmoe.kernels.simd import (
    HAS_LOOKUP,
    Vec,
    as_i8,
    as_i16,
    ask_ahead,
    bit_or,
    concat,
    dot2,
    dot4,
    dot4_scaled,
    fma,
    hsum,
    ld_f32,
    load_halves_apart,
    lookup,
    make_constant,
    make_field,
    make_load,
    make_load_twice,
    make_mask,
    make_permute,
    make_shift,
    make_shuffle,
    make_splat,
    mul,
    shl,
    shr,
    st_f32,
    sub,
    to_f32,
    widen,
    widen_unsigned,
    zero_extend,
)

_B16, _B32, _B64 = Vec("i8", 16), Vec("i8", 32), Vec("i8", 64)
_H16, _H32 = Vec("i16", 16), Vec("i16", 32)
_I4, _I8, _I16 = Vec("i32", 4), Vec("i32", 8), Vec("i32", 16)
_F2, _F16 = Vec("f32", 2), Vec("f32", 16)

_load_b16 = make_load(_B16)
_load_b64 = make_load(_B64)
_load_twice = make_load_twice(_B64)
_load_sums = make_load(_H16)
_load_i4 = make_load(_I4)
_load_f2 = make_load(_F2)
_splat_f1 = make_splat(Vec("f32", 1))
_two_halves = load_halves_apart(1, 2)
_four_halves = load_halves_apart(2, 2)
_zero_i16 = make_constant(_I16, 0)
_zero_f16 = make_constant(_F16, 0)
_low4 = make_mask(_B64, 0x0F)
_first_half = make_shuffle(range(8))
_second_half = make_shuffle(range(8, 16))
_of_lane_0, _of_lane_1, _of_lane_2 = (make_shuffle([i] * 16) for i in range(3))
_of_lanes_1_3 = make_shuffle([1] * 8 + [3] * 8)
_each_twice = make_shuffle((0, 0, 1, 1))


def spreads(count: int, first: int) -> list[Any]:
    """How the scales, from lane `first` on, lie beside each 64 weights: two int16 lanes every four weights."""
    return [make_permute([first + (64 * k + 2 * i) // count for i in range(32)]) for k in range(4)]


def _make_dot(spreads: list[Any]) -> Any:
    """start + 256 weights u0..u3 times the activations at q, in 16 int32 lanes."""
    s0, s1, s2, s3 = spreads

    @njit(fast=True, inline=True)
    def dot(start, scales, u0, u1, u2, u3, q):  # type: ignore[no-untyped-def]
        t = dot4_scaled(start, u0, _load_b64(q), s0(scales))
        t = dot4_scaled(t, u1, _load_b64(q + 64), s1(scales))
        t = dot4_scaled(t, u2, _load_b64(q + 128), s2(scales))
        return dot4_scaled(t, u3, _load_b64(q + 192), s3(scales))

    return dot


# the scales of two blocks: 16 and 16, or 8 and 8 mins and 8 and 8 mins
_dot_16_first, _dot_16_second = _make_dot(spreads(16, 0)), _make_dot(spreads(16, 16))
_dot_32_first, _dot_32_second = _make_dot(spreads(32, 0)), _make_dot(spreads(32, 16))


def make_matvec_row(pair: Any, size: int) -> Any:
    """One row's product: `pair(acc, o0, o1, q0, q1, s0, s1, da)` adds two blocks' to 16 float32 lanes.

    o0, o1 are the blocks' addresses, q0, q1 their activations', s0, s1 their sums', da the activations' two scales.
    """
    lines = -(-2 * size // 64)

    @njit(fast=True, inline=True)
    def row(o, act, n):  # type: ignore[no-untyped-def]
        n_blocks = n // 256
        q = act
        ds = act + n
        s = ds + 4 * n_blocks
        acc = _zero_f16()
        for _ in range(n_blocks // 2):
            for line in range(lines):
                ask_ahead(o + 64 * line)
            acc = pair(acc, o, o + size, q, q + 256, s, s + 32, _load_f2(ds))
            o += 2 * size
            q += 512
            ds += 8
            s += 64
        if n_blocks % 2:
            acc = pair(acc, o, o, q, q, s, s, zero_extend(_splat_f1(ld_f32(ds))))
        return hsum(acc)

    return row


# --- Q6_K: ql[128] qh[64] scales[16] d --------------------------------------------------------------------------

_q6_high_of_low = make_field((-4, -2), 0x30)
_q6_high_of_high = make_field((0, 2), 0x30)
_high4 = make_field((4,), 0x0F)
_minus_32 = make_constant(_I16, -32)


@njit(fast=True, inline=True)
def _q6_low(ql, qh):  # type: ignore[no-untyped-def]
    return bit_or(_low4(ql), _q6_high_of_low(qh))


@njit(fast=True, inline=True)
def _q6_high(ql, qh):  # type: ignore[no-untyped-def]
    return bit_or(_high4(ql), _q6_high_of_high(qh))


def _make_q6_block(dot: Any) -> Any:
    @njit(fast=True, inline=True)
    def block(start, scales, o, q):  # type: ignore[no-untyped-def]
        l0 = _load_b64(o)
        l1 = _load_b64(o + 64)
        h0 = _load_twice(o + 128)
        h1 = _load_twice(o + 160)
        return to_f32(dot(start, scales, _q6_low(l0, h0), _q6_high(l0, h0), _q6_low(l1, h1), _q6_high(l1, h1), q))

    return block


_q6_first, _q6_second = _make_q6_block(_dot_16_first), _make_q6_block(_dot_16_second)


@njit(fast=True, inline=True)
def _q6_pair(acc, o0, o1, q0, q1, s0, s1, da):  # type: ignore[no-untyped-def]
    scales = widen(concat(_load_b16(o0 + 192), _load_b16(o1 + 192)))
    start = mul(dot2(_zero_i16(), scales, concat(_load_sums(s0), _load_sums(s1))), _minus_32())
    d = mul(_two_halves(o0 + 208, o1 + 208), da)
    acc = fma(_q6_first(zero_extend(_first_half(start)), scales, o0, q0), _of_lane_0(d), acc)
    return fma(_q6_second(zero_extend(_second_half(start)), scales, o1, q1), _of_lane_1(d), acc)


# --- Q3_K: hmask[32] qs[64] scales[12] d ------------------------------------------------------------------------

_q3_low = make_shuffle((1, 2, 1, 2, 5, 6, 5, 6))
_q3_high = make_shuffle((3, 3, 3, 3, 7, 7, 7, 7))
_q3_low_shift = make_shift("lshr", _I8, (0, 0, 4, 4) * 2)
_q3_high_shift = make_shift("lshr", _I8, (0, 2, 4, 6) * 2)
_nibbles = make_mask(_I8, 0x0F0F0F0F)
_pairs = make_mask(_I8, 0x03030303)
_thirty_two = make_constant(_B32, 32)
_minus_4 = make_constant(_I16, -4)
_low2_0, _low2_1 = make_field((0, 2), 3), make_field((4, 6), 3)
_third_0, _third_1, _third_2, _third_3 = (make_field((2 * c - 2, 2 * c - 1), 4) for c in range(4))


@njit(fast=True, inline=True)
def _q3_scales(o0, o1):  # type: ignore[no-untyped-def]
    """Sixteen 6-bit scales less 32 of each of two blocks, as int16; reads from the last four bytes of qs."""
    tails = concat(_load_i4(o0 + 92), _load_i4(o1 + 92))
    low = _nibbles(_q3_low_shift(_q3_low(tails)))
    high = shl(_pairs(_q3_high_shift(_q3_high(tails))), 4)
    return widen(sub(as_i8(bit_or(low, high)), _thirty_two()))


def _make_q3_block(dot: Any) -> Any:
    @njit(fast=True, inline=True)
    def block(start, scales, o, q):  # type: ignore[no-untyped-def]
        h = _load_twice(o)
        l0 = _load_twice(o + 32)
        l1 = _load_twice(o + 64)
        u0 = bit_or(_low2_0(l0), _third_0(h))
        u1 = bit_or(_low2_1(l0), _third_1(h))
        u2 = bit_or(_low2_0(l1), _third_2(h))
        u3 = bit_or(_low2_1(l1), _third_3(h))
        return to_f32(dot(start, scales, u0, u1, u2, u3, q))

    return block


_q3_first, _q3_second = _make_q3_block(_dot_16_first), _make_q3_block(_dot_16_second)


@njit(fast=True, inline=True)
def _q3_pair(acc, o0, o1, q0, q1, s0, s1, da):  # type: ignore[no-untyped-def]
    scales = _q3_scales(o0, o1)
    start = mul(dot2(_zero_i16(), scales, concat(_load_sums(s0), _load_sums(s1))), _minus_4())
    d = mul(_two_halves(o0 + 108, o1 + 108), da)
    acc = fma(_q3_first(zero_extend(_first_half(start)), scales, o0, q0), _of_lane_0(d), acc)
    return fma(_q3_second(zero_extend(_second_half(start)), scales, o1, q1), _of_lane_1(d), acc)


# --- Q4_K: d dmin scales[12] qs[128]; Q5_K: d dmin scales[12] qh[32] qs[128] ------------------------------------

_scale_low = make_shuffle((1, 3, 2, 3, 5, 7, 6, 7))
_scale_high = make_shuffle((1, 1, 2, 2, 5, 5, 6, 6))
_scale_shift = make_shift("lshr", _I8, (0, 0, 0, 4) * 2)
_mask_low = make_mask(_I8, (0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F) * 2)
_mask_high = make_mask(_I8, (0, 0x30303030, 0, 0x30303030) * 2)
_mins_twice = make_permute([8 + i // 2 for i in range(16)] + [24 + i // 2 for i in range(16)])
_nibble_halves = make_field((0, 4), 0x0F)
_fifth_0, _fifth_1, _fifth_2, _fifth_3 = (make_field((2 * c - 4, 2 * c - 3), 0x10) for c in range(4))


@njit(fast=True, inline=True)
def _scales_mins(o0, o1):  # type: ignore[no-untyped-def]
    """Eight 6-bit scales, then eight 6-bit mins, of each of two blocks, as int16."""
    heads = concat(_load_i4(o0), _load_i4(o1))
    low = _mask_low(_scale_shift(_scale_low(heads)))
    return widen_unsigned(as_i8(bit_or(low, _mask_high(shr(_scale_high(heads), 2)))))


@njit(fast=True, inline=True)
def _q4(at):  # type: ignore[no-untyped-def]
    """64 weights from 32 bytes: the low nibbles, then the high ones."""
    return _nibble_halves(_load_twice(at))


def _make_q4_block(dot: Any) -> Any:
    @njit(fast=True, inline=True)
    def block(scales, o, q):  # type: ignore[no-untyped-def]
        return to_f32(dot(_zero_i16(), scales, _q4(o + 16), _q4(o + 48), _q4(o + 80), _q4(o + 112), q))

    return block


def _make_q5_block(dot: Any) -> Any:
    @njit(fast=True, inline=True)
    def block(scales, o, q):  # type: ignore[no-untyped-def]
        h = _load_twice(o + 16)
        u0 = bit_or(_q4(o + 48), _fifth_0(h))
        u1 = bit_or(_q4(o + 80), _fifth_1(h))
        u2 = bit_or(_q4(o + 112), _fifth_2(h))
        u3 = bit_or(_q4(o + 144), _fifth_3(h))
        return to_f32(dot(_zero_i16(), scales, u0, u1, u2, u3, q))

    return block


def _make_q45_pair(make_block: Any) -> Any:
    first, second = make_block(_dot_32_first), make_block(_dot_32_second)

    @njit(fast=True, inline=True)
    def pair(acc, o0, o1, q0, q1, s0, s1, da):  # type: ignore[no-untyped-def]
        scales = _scales_mins(o0, o1)
        mins = dot2(_zero_i16(), _mins_twice(scales), concat(_load_sums(s0), _load_sums(s1)))
        d = mul(_four_halves(o0, o1), _each_twice(da))
        acc = fma(first(scales, o0, q0), _of_lane_0(d), acc)
        acc = fma(second(scales, o1, q1), _of_lane_2(d), acc)
        return sub(acc, mul(to_f32(mins), _of_lanes_1_3(d)))

    return pair


# --- Q2_K: scales[16] (scale, min << 4) qs[64] d dmin ------------------------------------------------------------

_low4_b32 = make_mask(_B32, 0x0F)
_index_0, _index_1, _index_2, _index_3 = (make_field((2 * s, 2 * s + 2), 3, 4 * k) for k, s in enumerate((0, 2) * 2))
_q2_0, _q2_1 = make_field((0, 2), 3), make_field((4, 6), 3)
_low4_h32 = make_mask(_H32, 0x000F)
_multiples = make_constant(_H32, [0x0100, 0x0302] * 16)
_columns_first, _columns_second = (
    make_shuffle([first + 4 * (i // 4 % 4) + i // 16 for i in range(64)]) for first in (0, 16)
)


@njit(fast=True, inline=True)
def _q2_products(columns, o, q):  # type: ignore[no-untyped-def]
    """256 weights by a table of scale * (0, 1, 2, 3): dword k of 16-byte lane j is that of scale 4k + j.

    Bytes of `columns` are the scales (low halves), four times each, in that order.
    """
    table = as_i8(mul(_low4_h32(as_i16(columns)), _multiples()))
    l0 = _load_twice(o + 16)
    l1 = _load_twice(o + 48)
    t = dot4(_zero_i16(), lookup(table, _index_0(l0)), _load_b64(q))
    t = dot4(t, lookup(table, _index_1(l0)), _load_b64(q + 64))
    t = dot4(t, lookup(table, _index_2(l1)), _load_b64(q + 128))
    return to_f32(dot4(t, lookup(table, _index_3(l1)), _load_b64(q + 192)))


@njit(fast=True, inline=True)
def _q2_looked_up(both, o0, o1, q0, q1, d, acc):  # type: ignore[no-untyped-def]
    acc = fma(_q2_products(_columns_first(both), o0, q0), _of_lane_0(d), acc)
    return fma(_q2_products(_columns_second(both), o1, q1), _of_lane_2(d), acc)


def _make_q2_block(dot: Any) -> Any:
    @njit(fast=True, inline=True)
    def block(scales, o, q):  # type: ignore[no-untyped-def]
        l0 = _load_twice(o + 16)
        l1 = _load_twice(o + 48)
        return to_f32(dot(_zero_i16(), scales, _q2_0(l0), _q2_1(l0), _q2_0(l1), _q2_1(l1), q))

    return block


_q2_first, _q2_second = _make_q2_block(_dot_16_first), _make_q2_block(_dot_16_second)


@njit(fast=True, inline=True)
def _q2_multiplied(both, o0, o1, q0, q1, d, acc):  # type: ignore[no-untyped-def]
    scales = widen_unsigned(_low4_b32(both))
    acc = fma(_q2_first(scales, o0, q0), _of_lane_0(d), acc)
    return fma(_q2_second(scales, o1, q1), _of_lane_2(d), acc)


_q2_sums = _q2_looked_up if HAS_LOOKUP else _q2_multiplied


@njit(fast=True, inline=True)
def _q2_pair(acc, o0, o1, q0, q1, s0, s1, da):  # type: ignore[no-untyped-def]
    both = concat(_load_b16(o0), _load_b16(o1))
    mins = dot2(_zero_i16(), widen_unsigned(_high4(both)), concat(_load_sums(s0), _load_sums(s1)))
    d = mul(_four_halves(o0 + 80, o1 + 80), _each_twice(da))
    acc = _q2_sums(both, o0, o1, q0, q1, d, acc)
    return sub(acc, mul(to_f32(mins), _of_lanes_1_3(d)))


# --- the kernels ------------------------------------------------------------------------------------------------

_row_q2_k = row_q2_k if ymm("q2_k") else make_matvec_row(_q2_pair, 84)
_row_q3_k = row_q3_k if ymm("q3_k") else make_matvec_row(_q3_pair, 110)
_rows_q4_k = rows_q4_k if ymm("q4_k") else by_row(make_matvec_row(_make_q45_pair(_make_q4_block), 144), 256, 144)
_row_q5_k = row_q5_k if ymm("q5_k") else make_matvec_row(_make_q45_pair(_make_q5_block), 176)
_row_q6_k = row_q6_k if ymm("q6_k") else make_matvec_row(_q6_pair, 210)


def matvec_q2_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q2_k(w + r * (n_cols // 256 * 84), act, n_cols))


def matvec_q3_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q3_k(w + r * (n_cols // 256 * 110), act, n_cols))


def matvec_q4_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    _rows_q4_k((w, act, out, r0, r1, n_cols))


def matvec_q5_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q5_k(w + r * (n_cols // 256 * 176), act, n_cols))


def matvec_q6_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    for r in range(r0, r1):
        st_f32(out + 4 * r, _row_q6_k(w + r * (n_cols // 256 * 210), act, n_cols))
