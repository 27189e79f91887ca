"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance matrix, sixteen blocks of 32 side by side.

Source: ggml-quants.c, `quantize_row_q4_0_impl` and its like. Weights are importance * sqrt(mean x^2 of the row + x^2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .fit import affine_steps, fit_affine, fit_signed, signed_level, signed_steps
from .lanes import (
    N,
    clamp,
    divide_1,
    get_f,
    load_f,
    nearest,
    negative,
    put_f,
    splat_i,
    sqrt,
    store_f,
    store_i,
    store_u8,
)  # fmt: skip
from .legacy import fifth, put_bytes, put_header, put_words, transpose

_TILE = 32 * N * 4
_IMPORTANCE, _WEIGHTS, _AUX, _LANES = _TILE, 2 * _TILE, 3 * _TILE, 4 * _TILE
_NIBBLES = _LANES + 64
SCRATCH = _NIBBLES + 16 * N
_SIGNED_4, _SIGNED_5 = signed_steps(8), signed_steps(16)
_AFFINE_4, _AFFINE_5 = (affine_steps(-0.9, 0.05, 36, top) for top in (15, 31))


@njit
def row_means(x: int, n_rows: int, n_columns: int, out: int) -> None:
    """Mean x^2 of each row of float32, summed from left to right: `N` rows at a time, for their sums do not wait."""
    for first in range(0, n_rows, N):
        rows = min(N, n_rows - first)
        for lane in range(rows):
            put_f(out + 4 * (first + lane), np.float32(0))
        for i in range(n_columns):
            for lane in range(rows):
                at = out + 4 * (first + lane)
                v = get_f(x + 4 * ((first + lane) * n_columns + i))
                put_f(at, get_f(at) + v * v)
        for lane in range(rows):
            at = out + 4 * (first + lane)
            put_f(at, divide_1(get_f(at), np.float32(n_columns)))


@njit
def _weigh(x: int, importance: int, scratch: int, first: int, n: int, period: int, means: int) -> None:
    """Blocks first .. first + 15 and their weights to scratch."""
    transpose(x, scratch, first, n - 1, 32)
    for lane in range(N):
        block = min(first + lane, n - 1)
        row = importance + 128 * (block % period)
        put_f(scratch + _LANES + 4 * lane, get_f(means + 4 * (block // period)))
        for i in range(32):
            put_f(scratch + _IMPORTANCE + 4 * (i * N + lane), get_f(row + 4 * i))
    mean = load_f(scratch + _LANES)
    for i in range(32):
        v = load_f(scratch + 64 * i)
        store_f(scratch + _WEIGHTS + 64 * i, load_f(scratch + _IMPORTANCE + 64 * i) * sqrt(mean + v * v))


@njit
def _pair(scratch: int, j: int, q0: Any, q1: Any) -> Any:
    """Levels of elements j and j + 16 as a byte of nibbles; their fifth bits, in place."""
    low, four = splat_i(np.int32(15)), splat_i(np.int32(4))
    store_u8(scratch + _NIBBLES + N * j, (q0 & low) | ((q1 & low) << four))
    return fifth(q0, j) | fifth(q1, j + 16)


@njit
def _finish(scratch: int, high: Any, out: int, first: int, n: int, stride: int, high_at: int) -> None:
    put_bytes(scratch + _NIBBLES, 16, out, first, n - 1, stride, stride - 16)
    if high_at > 0:
        store_i(scratch + _LANES, high)
        put_words(scratch + _LANES, out, first, n - 1, stride, high_at)


@njit
def _signed(
    x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int, half: int, steps: np.ndarray
) -> None:
    """Q4_0 (half 8) and Q5_0 (half 16)."""
    stride, high_at = (18, 0) if half == 8 else (22, 2)
    for first in range(0, n, N):
        _weigh(x, importance, scratch, first, n, period, means)
        d, inverse, empty = fit_signed(scratch, scratch + _WEIGHTS, 32, half, steps)
        store_f(scratch + _LANES, d)
        put_header(scratch + _LANES, out, first, n - 1, stride, 0)
        high = splat_i(np.int32(0))
        for j in range(16):
            q0 = signed_level(load_f(scratch + 64 * j), inverse, empty, half)
            q1 = signed_level(load_f(scratch + 64 * (j + 16)), inverse, empty, half)
            high = high | _pair(scratch, j, q0, q1)
        _finish(scratch, high, out, first, n, stride, high_at)


@njit
def _affine(
    x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int, top: int, steps: np.ndarray
) -> None:
    """Q4_1 (top 15) and Q5_1 (top 31)."""
    stride, high_at = (20, 0) if top == 15 else (24, 4)
    lowest, highest = splat_i(np.int32(0)), splat_i(np.int32(top))
    for first in range(0, n, N):
        _weigh(x, importance, scratch, first, n, period, means)
        fitted = fit_affine(scratch, scratch + _WEIGHTS, scratch + _AUX, 32, top, steps, True)
        store_f(scratch + _LANES, fitted[0])
        put_header(scratch + _LANES, out, first, n - 1, stride, 0)
        store_f(scratch + _LANES, negative(fitted[1]))
        put_header(scratch + _LANES, out, first, n - 1, stride, 2)
        inverse, base = fitted[2], fitted[3]
        high = splat_i(np.int32(0))
        for j in range(16):
            q0 = clamp(nearest(inverse * (load_f(scratch + 64 * j) - base)), lowest, highest)
            q1 = clamp(nearest(inverse * (load_f(scratch + 64 * (j + 16)) - base)), lowest, highest)
            high = high | _pair(scratch, j, q0, q1)
        _finish(scratch, high, out, first, n, stride, high_at)


@njit
def weighted_q4_0(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:
    """Levels -8 .. 7 times the scale with the least weighted error found."""
    _signed(x, out, n, scratch, importance, period, means, 8, _SIGNED_4)


@njit
def weighted_q5_0(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:
    """Levels -16 .. 15 times the scale with the least weighted error found."""
    _signed(x, out, n, scratch, importance, period, means, 16, _SIGNED_5)


@njit
def weighted_q4_1(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:
    """Levels 0 .. 15 times a scale, plus a minimum, with the least weighted error found."""
    _affine(x, out, n, scratch, importance, period, means, 15, _AFFINE_4)


@njit
def weighted_q5_1(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:
    """Levels 0 .. 31 times a scale, plus a minimum, with the least weighted error found."""
    _affine(x, out, n, scratch, importance, period, means, 31, _AFFINE_5)
