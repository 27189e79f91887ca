"""Activation rows as the matrix kernels read them: float32, or int8 quantized the way ggml does it.

    f32    n float32
    q8_0   [n int8 qs][n/32 float32 d][n/32 int32 sums of a block's qs][n/32 float32 d * sum]; d, and d as it was
           before times the sum, rounded to float16's 11 bits, as ggml stores both (Q8_1, for weights with a minimum)
    q8_k   [n int8 qs][n/256 float32 d][n/16 int16 sums of 16 qs][n/32 int16 sums of 32]; d = max / -127 of the
           largest magnitude, signed

A value is q * d and q is in [-127, 127]. Source: ggml's quantize_row_q8_0, _q8_1 and _q8_K. A block that holds a
NaN or an infinity gets d = NaN and zeros, so that whatever it is multiplied with is not finite either.
"""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.simd import (
    Vec,
    add,
    as_i32,
    bit_and,
    bits_f32,
    dot4,
    hmax,
    hmax_i32,
    hmin,
    hsum_i32,
    ld_f32,
    ld_i8,
    make_constant,
    make_load,
    make_shuffle2,
    make_splat,
    maximum,
    minimum,
    mul,
    round_f16,
    st_f32,
    st_i32,
    store_i8_from_i32,
    store_i16_from_i32,
    to_i32,
)

_INFINITY = 0x7F800000  # bits of float32 infinity: every NaN's are greater
_TINY = 0x0DA24260  # bits of 1e-30: below it 1 / d may overflow, and no model means it
_MAX_F16, _LARGE = np.float32(65504.0), np.float32(65536.0)  # beyond it ggml has an infinity, and so no result

_F32 = Vec("f32", 16)
_I32 = Vec("i32", 16)
_I8 = Vec("i8", 64)
_load = make_load(_F32)
_load_i8 = make_load(_I8)
_zero = make_constant(_I32, 0)
_ones = make_constant(_I8, 1)
_magnitude = make_constant(_I32, 0x7FFFFFFF)
_splat = make_splat(_F32)
_even = make_shuffle2(range(0, 32, 2))
_odd = make_shuffle2(range(1, 32, 2))
_even8, _odd8 = make_shuffle2(range(0, 16, 2)), make_shuffle2(range(1, 16, 2))


@njit(fast=True, inline=True)
def _abs_bits(x):  # type: ignore[no-untyped-def]
    return bit_and(as_i32(x), _magnitude())


@njit(fast=True)
def quantize_q8_0(x: int, act: int, n: int, first: int, last: int) -> None:
    """Quantize blocks `first` to `last`, of 32, of `n` float32 at `x` to their place in a "q8_0" row at `act`."""
    ds = act + n
    sums = ds + n // 8
    for b in range(first, last):
        x0 = _load(x + 128 * b)
        x1 = _load(x + 128 * b + 64)
        bits = hmax_i32(maximum(_abs_bits(x0), _abs_bits(x1)))
        q0 = _zero()
        q1 = _zero()
        d = bits_f32(bits)
        if bits >= _INFINITY:
            d = np.float32(np.nan)
        elif bits >= _TINY:
            inverse = _splat(np.float32(127.0) / d)
            d = d / np.float32(127.0)
            q0 = to_i32(mul(x0, inverse))
            q1 = to_i32(mul(x1, inverse))
        store_i8_from_i32(act + 32 * b, q0)
        store_i8_from_i32(act + 32 * b + 16, q1)
        total = hsum_i32(add(q0, q1))
        st_f32(ds + 4 * b, round_f16(d))
        st_i32(sums + 4 * b, total)
        scaled = d * np.float32(total)
        unit = _LARGE if abs(scaled) > _MAX_F16 else np.float32(1.0)
        st_f32(sums + n // 8 + 4 * b, round_f16(scaled / unit) * unit)


@njit(fast=True)
def dequantize_q8_0(act: int, x: int, n: int) -> None:
    """What a "q8_0" row of `n` values stands for, to float32 at x."""
    for i in range(n):
        st_f32(x + 4 * i, np.float32(ld_i8(act + i)) * ld_f32(act + n + i // 32 * 4))


@njit(fast=True, inline=True)
def _quad_sums(a, b, c, d):  # type: ignore[no-untyped-def]
    """Sums of each four neighbouring lanes of four vectors, in order."""
    ab = add(_even(a, b), _odd(a, b))
    cd = add(_even(c, d), _odd(c, d))
    return add(_even(ab, cd), _odd(ab, cd))


@njit(fast=True, inline=True)
def _sums_of_4(q):  # type: ignore[no-untyped-def]
    return dot4(_zero(), _ones(), _load_i8(q))


@njit(fast=True)
def quantize_q8_k(x: int, act: int, n: int, first: int, last: int) -> None:
    """Quantize blocks `first` to `last`, of 256, of `n` float32 at `x` to their place in a "q8_k" row at `act`."""
    ds = act + n
    sums = ds + n // 64
    for b in range(first, last):
        q = act + 256 * b
        high = _load(x + 1024 * b)
        low = high
        bits = _abs_bits(high)
        for i in range(1, 16):
            v = _load(x + 1024 * b + 64 * i)
            high = maximum(high, v)
            low = minimum(low, v)
            bits = maximum(bits, _abs_bits(v))
        largest = hmax_i32(bits)
        d = np.float32(0.0)
        scale = np.float32(0.0)
        if largest >= _INFINITY:
            d = np.float32(np.nan)
        elif largest >= _TINY:
            top = hmax(high)
            bottom = hmin(low)
            extreme = top if top >= -bottom else bottom
            scale = np.float32(-127.0) / extreme
            d = np.float32(1.0) / scale
        if scale == np.float32(0.0):
            for i in range(16):
                store_i8_from_i32(q + 16 * i, _zero())
        else:
            by = _splat(scale)
            for i in range(16):
                store_i8_from_i32(q + 16 * i, to_i32(mul(_load(x + 1024 * b + 64 * i), by)))
        st_f32(ds + 4 * b, d)
        quads = _quad_sums(_sums_of_4(q), _sums_of_4(q + 64), _sums_of_4(q + 128), _sums_of_4(q + 192))
        store_i16_from_i32(sums + 32 * b, quads)
        store_i16_from_i32(sums + n // 8 + 16 * b, add(_even8(quads, quads), _odd8(quads, quads)))
