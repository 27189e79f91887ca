"""Matrix times one activation vector for K-quants: blocks of 256 weights, "q8_k" activations.

Every kernel: (w, act, out, r0, r1, n_cols), all int64. `w` is the address of row 0 of a (rows, n_cols) matrix as the
file stores it, `act` that of a "q8_k" activation row; float32 results go to out + 4 * r for r in [r0, r1). No kernel
reads outside of a row's own bytes: a file may end there.

Each type brings a block to four vectors of 64 unsigned weights in their natural order and 16 int16 scales (or 8, each
for 32 weights); `_dot_16` and `_dot_32` do the rest in exact int32. An offset of the weights (32 in Q6_K, 4 in Q3_K) or
a minimum (Q2_K, Q4_K, Q5_K) multiplies sums of 16 activations, which the activations' row has ready. Layouts:
ggml-common.h.
"""

from __future__ import annotations

from localmoe.jit import njit
from localmoe.kernels.simd import (
    Vec,
    as_i8,
    bit_or,
    dot2,
    dot4_scaled,
    fma,
    fold,
    hsum,
    ld_f16,
    ld_f32,
    make_bit_pick,
    make_constant,
    make_load,
    make_load_f16,
    make_load_twice,
    make_mask,
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

_B16, _B64 = Vec("i8", 16), Vec("i8", 64)
_H16, _H32 = Vec("i16", 16), Vec("i16", 32)
_I4, _I8, _I16 = Vec("i32", 4), Vec("i32", 8), Vec("i32", 16)
_F4, _F8, _F16 = Vec("f32", 4), Vec("f32", 8), Vec("f32", 16)

_load_b16 = make_load(_B16)
_load_b64 = make_load(_B64)
_load_b32_twice = make_load_twice(_B64)
_load_sums = make_load(_H16)
_load_i4 = make_load(_I4)
_load_halves = make_load_f16(4)
_splat_f4 = make_splat(_F4)
_splat_f16 = make_splat(_F16)
_zero_i8 = make_constant(_I8, 0)
_zero_i16 = make_constant(_I16, 0)
_zero_f8 = make_constant(_F8, 0)
_zero_f16 = make_constant(_F16, 0)
_low4 = make_mask(_B64, 0x0F)
_low2 = make_mask(_B64, 0x03)


def _shift_halves(name: str, low: int, high: int):  # type: ignore[no-untyped-def]
    """Shift the first 32 bytes by `low` bits and the others by `high`, through 16-bit lanes: mask the result."""
    return make_shift(name, _H32, [low] * 16 + [high] * 16)


_left_4_2 = _shift_halves("shl", 4, 2)
_right_0_2 = _shift_halves("lshr", 0, 2)
_right_0_4 = _shift_halves("lshr", 0, 4)
_right_4_6 = _shift_halves("lshr", 4, 6)


def _spread(count: int, k: int):  # type: ignore[no-untyped-def]
    """The scales of the k-th 64 weights, each for `count` of them, two int16 lanes every four weights."""
    return make_shuffle([(64 * k + 2 * i) // count for i in range(32)])


_s16_0, _s16_1, _s16_2, _s16_3 = (_spread(16, k) for k in range(4))
_s32_0, _s32_1, _s32_2, _s32_3 = (_spread(32, k) for k in range(4))


@njit(fast=True, inline=True)
def _dot_16(start, scales, u0, u1, u2, u3, q):  # type: ignore[no-untyped-def]
    """`start` + 256 weights times activations at `q`, 16 int32 lanes; scales: 16 int16, one every 16 weights."""
    t = dot4_scaled(start, u0, _load_b64(q), _s16_0(scales))
    t = dot4_scaled(t, u1, _load_b64(q + 64), _s16_1(scales))
    t = dot4_scaled(t, u2, _load_b64(q + 128), _s16_2(scales))
    return dot4_scaled(t, u3, _load_b64(q + 192), _s16_3(scales))


@njit(fast=True, inline=True)
def _dot_32(scales, u0, u1, u2, u3, q):  # type: ignore[no-untyped-def]
    """256 weights times activations at `q`, 16 int32 lanes; scales: int16, the first eight for 32 weights each."""
    t = dot4_scaled(_zero_i16(), u0, _load_b64(q), _s32_0(scales))
    t = dot4_scaled(t, u1, _load_b64(q + 64), _s32_1(scales))
    t = dot4_scaled(t, u2, _load_b64(q + 128), _s32_2(scales))
    return dot4_scaled(t, u3, _load_b64(q + 192), _s32_3(scales))


# --- Q6_K: ql[128] qh[64] scales[16] d --------------------------------------------------------------------------

_high2 = make_mask(_B64, 0x30)
_minus_32 = make_constant(_I8, -32)


@njit(fast=True, inline=True)
def _q6_low(ql, qh):  # type: ignore[no-untyped-def]
    return bit_or(_low4(ql), _high2(_left_4_2(qh)))


@njit(fast=True, inline=True)
def _q6_high(ql, qh):  # type: ignore[no-untyped-def]
    return bit_or(shr(ql, 4), _high2(_right_0_2(qh)))


def matvec_q6_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    n_blocks = n_cols // 256
    ds = act + n_cols
    bsums = ds + 4 * n_blocks
    for r in range(r0, r1):
        o = w + r * n_blocks * 210
        acc = _zero_f16()
        for b in range(n_blocks):
            scales = widen(_load_b16(o + 192))
            start = zero_extend(mul(dot2(_zero_i8(), scales, _load_sums(bsums + 32 * b)), _minus_32()))
            l0 = _load_b64(o)
            l1 = _load_b64(o + 64)
            h0 = _load_b32_twice(o + 128)
            h1 = _load_b32_twice(o + 160)
            q = act + 256 * b
            t = _dot_16(start, scales, _q6_low(l0, h0), _q6_high(l0, h0), _q6_low(l1, h1), _q6_high(l1, h1), q)
            acc = fma(to_f32(t), _splat_f16(ld_f16(o + 208) * ld_f32(ds + 4 * b)), acc)
            o += 210
        st_f32(out + 4 * r, hsum(acc))


# --- Q4_K: d dmin scales[12] qs[128]; Q5_K: d dmin scales[12] qh[32] qs[128] ------------------------------------

_scale_low = make_shuffle((1, 3, 2, 3))
_scale_high = make_shuffle((1, 1, 2, 2))
_scale_shift = make_shift("lshr", _I4, (0, 0, 0, 4))
_mask_low = make_mask(_I4, (0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F))
_mask_high = make_mask(_I4, (0, 0x30303030, 0, 0x30303030))
_mins_twice = make_shuffle([8 + i // 2 for i in range(16)])
_first_f16 = make_shuffle([0] * 16)
_second_f8 = make_shuffle([1] * 8)


@njit(fast=True, inline=True)
def _scales_mins(o):  # type: ignore[no-untyped-def]
    """Eight 6-bit scales, then eight 6-bit mins, of a Q4_K or Q5_K block, as 16 int16."""
    head = _load_i4(o)
    low = _mask_low(_scale_shift(_scale_low(head)))
    return widen_unsigned(as_i8(bit_or(low, _mask_high(shr(_scale_high(head), 2)))))


@njit(fast=True, inline=True)
def _q4(at):  # type: ignore[no-untyped-def]
    """64 weights from 32 bytes: the low nibbles, then the high ones."""
    return _low4(_right_0_4(_load_b32_twice(at)))


def matvec_q4_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    n_blocks = n_cols // 256
    ds = act + n_cols
    bsums = ds + 4 * n_blocks
    for r in range(r0, r1):
        o = w + r * n_blocks * 144
        acc = _zero_f16()
        offset = _zero_f8()
        for b in range(n_blocks):
            scales = _scales_mins(o)
            t = _dot_32(scales, _q4(o + 16), _q4(o + 48), _q4(o + 80), _q4(o + 112), act + 256 * b)
            m = dot2(_zero_i8(), _mins_twice(scales), _load_sums(bsums + 32 * b))
            d = mul(_load_halves(o), _splat_f4(ld_f32(ds + 4 * b)))
            acc = fma(to_f32(t), _first_f16(d), acc)
            offset = fma(to_f32(m), _second_f8(d), offset)
            o += 144
        st_f32(out + 4 * r, hsum(sub(fold(acc), offset)))


def _bit_pair(c: int, value: int):  # type: ignore[no-untyped-def]
    """`value` where bit c is set in the first 32 bytes, or bit c + 1 in the others."""
    return make_bit_pick(_B64, [1 << c] * 32 + [2 << c] * 32, value)


_fifth_0, _fifth_1, _fifth_2, _fifth_3 = (_bit_pair(2 * c, 16) for c in range(4))


def matvec_q5_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    n_blocks = n_cols // 256
    ds = act + n_cols
    bsums = ds + 4 * n_blocks
    for r in range(r0, r1):
        o = w + r * n_blocks * 176
        acc = _zero_f16()
        offset = _zero_f8()
        for b in range(n_blocks):
            scales = _scales_mins(o)
            h = _load_b32_twice(o + 16)
            u0 = bit_or(_q4(o + 48), _fifth_0(h))
            u1 = bit_or(_q4(o + 80), _fifth_1(h))
            u2 = bit_or(_q4(o + 112), _fifth_2(h))
            u3 = bit_or(_q4(o + 144), _fifth_3(h))
            t = _dot_32(scales, u0, u1, u2, u3, act + 256 * b)
            m = dot2(_zero_i8(), _mins_twice(scales), _load_sums(bsums + 32 * b))
            d = mul(_load_halves(o), _splat_f4(ld_f32(ds + 4 * b)))
            acc = fma(to_f32(t), _first_f16(d), acc)
            offset = fma(to_f32(m), _second_f8(d), offset)
            o += 176
        st_f32(out + 4 * r, hsum(sub(fold(acc), offset)))


# --- Q3_K: hmask[32] qs[64] scales[12] d ------------------------------------------------------------------------

_q3_low = make_shuffle((1, 2, 1, 2))
_q3_high = make_shuffle((3, 3, 3, 3))
_q3_low_shift = make_shift("lshr", _I4, (0, 0, 4, 4))
_q3_high_shift = make_shift("lshr", _I4, (0, 2, 4, 6))
_nibbles = make_mask(_I4, 0x0F0F0F0F)
_pairs = make_mask(_I4, 0x03030303)
_thirty_two = make_constant(_B16, 32)
_minus_4 = make_constant(_I8, -4)
_third_0, _third_1, _third_2, _third_3 = (_bit_pair(2 * c, 4) for c in range(4))


@njit(fast=True, inline=True)
def _q3_scales(o):  # type: ignore[no-untyped-def]
    """Sixteen 6-bit scales less 32 of a Q3_K block, as int16; reads from the last four bytes of qs."""
    tail = _load_i4(o + 92)
    low = _nibbles(_q3_low_shift(_q3_low(tail)))
    high = shl(_pairs(_q3_high_shift(_q3_high(tail))), 4)
    return widen(sub(as_i8(bit_or(low, high)), _thirty_two()))


def matvec_q3_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    n_blocks = n_cols // 256
    ds = act + n_cols
    bsums = ds + 4 * n_blocks
    for r in range(r0, r1):
        o = w + r * n_blocks * 110
        acc = _zero_f16()
        for b in range(n_blocks):
            scales = _q3_scales(o)
            start = zero_extend(mul(dot2(_zero_i8(), scales, _load_sums(bsums + 32 * b)), _minus_4()))
            h = _load_b32_twice(o)
            l0 = _load_b32_twice(o + 32)
            l1 = _load_b32_twice(o + 64)
            u0 = bit_or(_low2(_right_0_2(l0)), _third_0(h))
            u1 = bit_or(_low2(_right_4_6(l0)), _third_1(h))
            u2 = bit_or(_low2(_right_0_2(l1)), _third_2(h))
            u3 = bit_or(_low2(_right_4_6(l1)), _third_3(h))
            t = _dot_16(start, scales, u0, u1, u2, u3, act + 256 * b)
            acc = fma(to_f32(t), _splat_f16(ld_f16(o + 108) * ld_f32(ds + 4 * b)), acc)
            o += 110
        st_f32(out + 4 * r, hsum(acc))


# --- Q2_K: scales[16] (scale, min << 4) qs[64] d dmin ------------------------------------------------------------

_low4_b16 = make_mask(_B16, 0x0F)
_third_f16 = make_shuffle([2] * 16)
_fourth_f8 = make_shuffle([3] * 8)


def matvec_q2_k(w: int, act: int, out: int, r0: int, r1: int, n_cols: int) -> None:
    n_blocks = n_cols // 256
    ds = act + n_cols
    bsums = ds + 4 * n_blocks
    for r in range(r0, r1):
        o = w + r * n_blocks * 84
        acc = _zero_f16()
        offset = _zero_f8()
        for b in range(n_blocks):
            both = _load_b16(o)
            scales = widen_unsigned(_low4_b16(both))
            m = dot2(_zero_i8(), widen_unsigned(shr(both, 4)), _load_sums(bsums + 32 * b))
            l0 = _load_b32_twice(o + 16)
            l1 = _load_b32_twice(o + 48)
            u0 = _low2(_right_0_2(l0))
            u1 = _low2(_right_4_6(l0))
            u2 = _low2(_right_0_2(l1))
            u3 = _low2(_right_4_6(l1))
            t = _dot_16(_zero_i16(), scales, u0, u1, u2, u3, act + 256 * b)
            d = mul(_load_halves(o + 76), _splat_f4(ld_f32(ds + 4 * b)))
            acc = fma(to_f32(t), _third_f16(d), acc)
            offset = fma(to_f32(m), _fourth_f8(d), offset)
            o += 84
        st_f32(out + 4 * r, hsum(sub(fold(acc), offset)))
