"""Q2_K and Q3_K encoding, and Q2_K ... Q6_K with an importance matrix, sixteen blocks side by side.

Source: ggml-quants.c, `quantize_row_q*_K_ref` and `quantize_row_q*_K_impl`. Encoders take addresses: n blocks of 256
float32 at `x`, blocks at `out`, `SCRATCH` bytes of scratch; with an importance matrix also one row of importances,
`period` blocks long, that each row of x is weighed by.
"""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit

from .fit import (
    affine_steps,
    fit_affine,
    fit_by_descent,
    fit_positive,
    fit_signed,
    positive_steps,
    signed_level,
    signed_steps,
)  # fmt: skip
from .lanes import (
    N,
    absolute,
    clamp,
    divide_1,
    get_f,
    get_f16,
    get_u8,
    load_f,
    load_i,
    nearest_1,
    put_f,
    put_f16,
    put_u8,
    splat_i,
    store_f,
    store_i,
    store_u8,
)  # fmt: skip
from .sixteen import (
    AUX,
    BLOCK,
    IMPORTANCE,
    LEVELS,
    MINIMA,
    MINIMUM_LEVELS,
    SCALE_LEVELS,
    SCALES,
    SCRATCH,
    SUMS,
    WEIGHTS,
    X,
    final_affine,
    final_signed,
    get_scale_6,
    load_blocks,
    mean_square,
    pack_bits,
    pack_nibbles,
    pack_pairs,
    pack_sixes,
    put_scale_3,
    put_scales_6,
    searched_affine,
    weigh,
)  # fmt: skip

__all__ = ["SCRATCH"]

_STEPS_2 = affine_steps(-0.5, 0.1, 15, 3)
_WEIGHTED_2, _WEIGHTED_4, _WEIGHTED_5 = (affine_steps(-0.9, 0.05, 36, top) for top in (3, 15, 31))
_SCALES_2, _SCALES_4 = positive_steps(15), positive_steps(63)
_SIGNED_3, _SIGNED_6 = signed_steps(4), signed_steps(32)


# --- Q2_K -------------------------------------------------------------------------------------------------------


@njit
def _search_q2(scratch: int) -> None:
    """Scales and minima of the 16 sub-blocks, by the magnitude of errors weighed by |x|."""
    for j in range(16):
        tile, weights = scratch + X + 1024 * j, scratch + WEIGHTS
        for i in range(16):
            store_f(weights + 64 * i, absolute(load_f(tile + 64 * i)))
        scale, minimum, inverse, base = fit_affine(tile, weights, scratch + AUX, 16, 3, _STEPS_2, False)
        store_f(scratch + SCALES + 64 * j, scale)
        store_f(scratch + MINIMA + 64 * j, minimum)
        searched_affine(scratch, 16 * j, 16, 3, inverse, base)


@njit
def _put_d(values: int, lane: int, top: float, d: int) -> np.float32:
    """The largest of a block's 16 numbers / top as float16 to `d`; what brings the numbers to 0 .. top, or 0."""
    most = np.float32(0)
    for j in range(16):
        v = get_f(values + 64 * j + 4 * lane)
        if v > most:
            most = v
    put_f16(d, divide_1(most, np.float32(top)))
    return divide_1(np.float32(top), most) if most > 0 else np.float32(0)


@njit
def _scale_q2(scratch: int, out: int, first: int, last: int) -> None:
    """16 bytes of scale and minimum, d and dmin; the numbers they stand for go back to SCALES and MINIMA."""
    for lane in range(min(N, last + 1 - first)):
        block = out + 84 * (first + lane)
        to_scale = _put_d(scratch + SCALES, lane, 15.0, block + 80)
        to_minimum = _put_d(scratch + MINIMA, lane, 15.0, block + 82)
        for j in range(16):
            at = 64 * j + 4 * lane
            level = np.int32(0)
            if to_scale != 0:
                level = nearest_1(to_scale * get_f(scratch + SCALES + at))
            if to_minimum != 0:
                level = np.int32(level | (nearest_1(to_minimum * get_f(scratch + MINIMA + at)) << 4))
            put_u8(block + j, level)
        _decode_q2(scratch, block, lane)


@njit
def _decode_q2(scratch: int, block: int, lane: int) -> None:
    d, dmin = get_f16(block + 80), get_f16(block + 82)
    for j in range(16):
        at, byte = 64 * j + 4 * lane, get_u8(block + j)
        put_f(scratch + SCALES + at, d * np.float32(byte & 15))
        put_f(scratch + MINIMA + at, dmin * np.float32(byte >> 4))


@njit
def _finish_q2(scratch: int, out: int, first: int, last: int) -> None:
    for j in range(16):
        final_affine(scratch, 16 * j, 16, 3, load_f(scratch + SCALES + 64 * j), load_f(scratch + MINIMA + 64 * j))
    pack_pairs(scratch, out, first, last, 84, 16)


@njit
def encode_q2_k(x: int, out: int, n: int, scratch: int) -> None:
    """Sixteen sub-blocks of 16 in 2 bits with 4-bit scales and minima."""
    for first in range(0, n, N):
        load_blocks(x, scratch + X, first, n - 1, n)
        _search_q2(scratch)
        _scale_q2(scratch, out, first, n - 1)
        _finish_q2(scratch, out, first, n - 1)


# --- Q3_K -------------------------------------------------------------------------------------------------------


@njit
def _search_q3(scratch: int) -> None:
    for j in range(16):
        scale = fit_by_descent(scratch + X + 1024 * j, scratch + AUX, 16, 4)
        store_f(scratch + SCALES + 64 * j, scale)
        for i in range(16):
            store_u8(scratch + LEVELS + N * (16 * j + i), load_i(scratch + AUX + 64 * i))


@njit
def _extreme_scale(scratch: int, lane: int) -> np.float32:
    """The first of a block's 16 scales that has the largest magnitude."""
    most, extreme = np.float32(0), np.float32(0)
    for j in range(16):
        scale = get_f(scratch + SCALES + 64 * j + 4 * lane)
        if abs(scale) > most:
            most, extreme = abs(scale), scale
    return extreme


@njit
def _clear(at: int, n: int) -> None:
    for i in range(n):
        put_u8(at + i, np.int32(0))


@njit
def _scale_q3(scratch: int, out: int, first: int, last: int) -> None:
    """Twelve bytes of scales and d from the scale of largest magnitude; levels of scales to SCALE_LEVELS."""
    for lane in range(min(N, last + 1 - first)):
        block = out + 110 * (first + lane)
        _clear(block + 96, 12)
        extreme = _extreme_scale(scratch, lane)
        d = np.float32(0)
        if extreme != 0:
            inverse = divide_1(np.float32(-32), extreme)
            d = divide_1(np.float32(1), inverse)
            for j in range(16):
                level = nearest_1(inverse * get_f(scratch + SCALES + 64 * j + 4 * lane)) & 255
                level = level - 256 if level > 127 else level  # an int8 in ggml
                put_scale_3(block + 96, j, np.int32(max(-32, min(31, level)) + 32))
        put_f16(block + 108, d)
        _decode_q3(scratch, block, lane)


@njit
def _decode_q3(scratch: int, block: int, lane: int) -> None:
    d = get_f16(block + 108)
    for j in range(16):
        low = (get_u8(block + 96 + j % 8) >> (4 * (j // 8))) & 15
        high = (get_u8(block + 104 + j % 4) >> (2 * (j // 4))) & 3
        put_f(scratch + SCALES + 64 * j + 4 * lane, d * np.float32((low | (high << 4)) - 32))


@njit
def _finish_q3(scratch: int, out: int, first: int, last: int) -> None:
    for j in range(16):
        final_signed(scratch, 16 * j, 16, 4, load_f(scratch + SCALES + 64 * j))
    pack_bits(scratch, 2, out, first, last, 110, 0)
    pack_pairs(scratch, out, first, last, 110, 32)


@njit
def encode_q3_k(x: int, out: int, n: int, scratch: int) -> None:
    """Sixteen sub-blocks of 16 in 3 bits with 6-bit scales."""
    for first in range(0, n, N):
        load_blocks(x, scratch + X, first, n - 1, n)
        _search_q3(scratch)
        _scale_q3(scratch, out, first, n - 1)
        _finish_q3(scratch, out, first, n - 1)


# --- with an importance matrix ----------------------------------------------------------------------------------


@njit
def _load(x: int, importance: int, scratch: int, first: int, n: int, period: int) -> None:
    load_blocks(x, scratch + X, first, n - 1, n)
    load_blocks(importance, scratch + IMPORTANCE, first, n - 1, period)


@njit
def _search_affine(scratch: int, count: int, top: int, factor: np.float32, steps: np.ndarray) -> None:
    """Scales and minima of `count` sub-blocks, and the sums of their weights."""
    size = 256 // count
    sigma2 = mean_square(scratch, factor)
    for j in range(count):
        store_f(scratch + SUMS + 64 * j, weigh(scratch, size * j, size, sigma2))
        tile = scratch + X + 64 * size * j
        fitted = fit_affine(tile, scratch + WEIGHTS, scratch + AUX, size, top, steps, True)
        store_f(scratch + SCALES + 64 * j, fitted[0])
        store_f(scratch + MINIMA + 64 * j, fitted[1])
        searched_affine(scratch, size * j, size, top, fitted[2], fitted[3])


@njit
def _fit_scales(scratch: int, count: int, top: int, steps: np.ndarray) -> None:
    """Levels of scales and minima, and d and dmin (float32) to BLOCK."""
    sums = scratch + SUMS
    store_f(scratch + BLOCK, fit_positive(scratch + SCALES, sums, scratch + SCALE_LEVELS, count, top, steps))
    store_f(scratch + BLOCK + 64, fit_positive(scratch + MINIMA, sums, scratch + MINIMUM_LEVELS, count, top, steps))


@njit
def weighted_q2_k(x: int, out: int, n: int, scratch: int, importance: int, period: int, sigmas: int) -> None:  # noqa: ARG001
    """Q2_K with weights importance * sqrt(mean x^2 + x^2)."""
    for first in range(0, n, N):
        _load(x, importance, scratch, first, n, period)
        _search_affine(scratch, 16, 3, np.float32(1), _WEIGHTED_2)
        _fit_scales(scratch, 16, 15, _SCALES_2)
        for lane in range(min(N, n - first)):
            block = out + 84 * (first + lane)
            put_f16(block + 80, get_f(scratch + BLOCK + 4 * lane))
            put_f16(block + 82, get_f(scratch + BLOCK + 64 + 4 * lane))
            for j in range(16):
                at = 64 * j + 4 * lane
                high = get_u8(scratch + MINIMUM_LEVELS + at) << 4
                put_u8(block + j, np.int32(get_u8(scratch + SCALE_LEVELS + at) | high))
            _decode_q2(scratch, block, lane)
        _finish_q2(scratch, out, first, n - 1)


@njit
def _scale_weighted_45(scratch: int, block: int, lane: int) -> None:
    """d, dmin and 12 bytes of scales and minima; the numbers they stand for go back to SCALES and MINIMA."""
    put_f16(block, get_f(scratch + BLOCK + 4 * lane))
    put_f16(block + 2, get_f(scratch + BLOCK + 64 + 4 * lane))
    put_scales_6(block + 4, scratch + SCALE_LEVELS + 4 * lane, scratch + MINIMUM_LEVELS + 4 * lane)
    d, dmin = get_f16(block), get_f16(block + 2)
    for j in range(8):
        scale, minimum = get_scale_6(block + 4, j)
        put_f(scratch + SCALES + 64 * j + 4 * lane, d * np.float32(scale))
        put_f(scratch + MINIMA + 64 * j + 4 * lane, dmin * np.float32(minimum))


@njit
def _cap(scratch: int, most: int) -> None:
    """Bring levels of scales and minima down to `most`."""
    for at in range(0, 8 * 64, 64):
        for levels in (scratch + SCALE_LEVELS, scratch + MINIMUM_LEVELS):
            store_i(levels + at, clamp(load_i(levels + at), splat_i(np.int32(0)), splat_i(np.int32(most))))


@njit
def _weighted_45(
    x: int, out: int, n: int, scratch: int, importance: int, period: int, top: int, stride: int, steps: np.ndarray
) -> None:
    for first in range(0, n, N):
        _load(x, importance, scratch, first, n, period)
        _search_affine(scratch, 8, top, np.float32(2), steps)
        _fit_scales(scratch, 8, 63, _SCALES_4)
        if top == 31:  # Q4_K keeps levels that wrapped around
            _cap(scratch, 63)
        for lane in range(min(N, n - first)):
            _scale_weighted_45(scratch, out + stride * (first + lane), lane)
        for j in range(8):
            d, m = load_f(scratch + SCALES + 64 * j), load_f(scratch + MINIMA + 64 * j)
            final_affine(scratch, 32 * j, 32, top, d, m)
        if top == 31:
            pack_bits(scratch, 4, out, first, n - 1, stride, 16)
        pack_nibbles(scratch, 32, out, first, n - 1, stride, stride - 128)


@njit
def weighted_q4_k(x: int, out: int, n: int, scratch: int, importance: int, period: int, sigmas: int) -> None:  # noqa: ARG001
    """Q4_K with weights importance * sqrt(2 * mean x^2 + x^2)."""
    _weighted_45(x, out, n, scratch, importance, period, 15, 144, _WEIGHTED_4)


@njit
def weighted_q5_k(x: int, out: int, n: int, scratch: int, importance: int, period: int, sigmas: int) -> None:  # noqa: ARG001
    """Q5_K with weights importance * sqrt(2 * mean x^2 + x^2)."""
    _weighted_45(x, out, n, scratch, importance, period, 31, 176, _WEIGHTED_5)


@njit
def _search_signed(scratch: int, j: int, weights: int, half: int, steps: np.ndarray) -> None:
    """Scale and levels of sub-block j of sixteen."""
    tile = scratch + X + 1024 * j
    scale, inverse, empty = fit_signed(tile, weights, 16, half, steps)
    store_f(scratch + SCALES + 64 * j, scale)
    for i in range(16):
        store_u8(scratch + LEVELS + N * (16 * j + i), signed_level(load_f(tile + 64 * i), inverse, empty, half))


@njit
def weighted_q3_k(x: int, out: int, n: int, scratch: int, importance: int, period: int, sigmas: int) -> None:  # noqa: ARG001
    """Q3_K with weights importance * sqrt(2 * mean x^2 + x^2)."""
    for first in range(0, n, N):
        _load(x, importance, scratch, first, n, period)
        sigma2 = mean_square(scratch, np.float32(2))
        for j in range(16):
            store_f(scratch + SUMS + 64 * j, weigh(scratch, 16 * j, 16, sigma2))
            _search_signed(scratch, j, scratch + WEIGHTS, 4, _SIGNED_3)
        d, inverse, empty = fit_signed(scratch + SCALES, scratch + SUMS, 16, 32, _SIGNED_6)
        store_f(scratch + BLOCK, d)
        for j in range(16):
            level = signed_level(load_f(scratch + SCALES + 64 * j), inverse, empty, 32)
            store_u8(scratch + SCALE_LEVELS + N * j, level)
        for lane in range(min(N, n - first)):
            block = out + 110 * (first + lane)
            _clear(block + 96, 12)
            for j in range(16):
                put_scale_3(block + 96, j, np.int32(get_u8(scratch + SCALE_LEVELS + N * j + lane)))
            put_f16(block + 108, get_f(scratch + BLOCK + 4 * lane))
            _decode_q3(scratch, block, lane)
        _finish_q3(scratch, out, first, n - 1)


@njit
def _scale_q6(scratch: int, block: int, lane: int) -> bool:
    """Sixteen int8 scales and d; the numbers they stand for go back to SCALES. False: all are zero."""
    extreme = _extreme_scale(scratch, lane)
    if abs(extreme) < np.float32(1e-15):
        return False
    inverse = divide_1(np.float32(-128), extreme)
    put_f16(block + 208, divide_1(np.float32(1), inverse))
    d = get_f16(block + 208)
    for j in range(16):
        at = scratch + SCALES + 64 * j + 4 * lane
        level = np.int32(min(np.int32(127), nearest_1(inverse * get_f(at))))
        put_u8(block + 192 + j, level)
        put_f(at, d * np.float32(((level + 128) & 255) - 128))
    return True


@njit
def weighted_q6_k(x: int, out: int, n: int, scratch: int, importance: int, period: int, sigmas: int) -> None:  # noqa: ARG001
    """Q6_K with the importances as weights."""
    for first in range(0, n, N):
        _load(x, importance, scratch, first, n, period)
        for j in range(16):
            _search_signed(scratch, j, scratch + IMPORTANCE + 1024 * j, 32, _SIGNED_6)
        for lane in range(min(N, n - first)):
            there = _scale_q6(scratch, out + 210 * (first + lane), lane)
            put_f(scratch + BLOCK + 4 * lane, np.float32(1 if there else 0))
        for j in range(16):
            final_signed(scratch, 16 * j, 16, 32, load_f(scratch + SCALES + 64 * j))
        pack_sixes(scratch, out, first, n - 1, 210)
        for lane in range(min(N, n - first)):
            if get_f(scratch + BLOCK + 4 * lane) == 0:
                _clear(out + 210 * (first + lane), 210)
