"""IQ4_NL and IQ4_XS encoding, sixteen blocks side by side: four bits choose one of sixteen values set apart unevenly.

Source: ggml-quants.c, `quantize_row_iq4_nl_impl`. Encoders take addresses: n blocks of 32 or 256 float32 at `x`, blocks
at `out`, `SCRATCH` bytes of scratch; with an importance matrix also one row of importances, `period` blocks long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import quants

from localmoe.jit import njit

from .fit import extreme, flat
from .lanes import (
    N,
    absolute,
    clamp,
    load_f,
    load_i,
    nearest,
    negative,
    select,
    splat_f,
    splat_i,
    store_f,
    store_i,
    store_u8,
    to_f,
)  # fmt: skip
from .legacy import put_bytes, put_header
from .sixteen import (
    BLOCK,
    IMPORTANCE,
    LEVELS,
    PACKED,
    SCALE_LEVELS,
    SCALES,
    SCRATCH,
    WEIGHTS,
    X,
    load_blocks,
    pack_nibbles,
    weigh,
)  # fmt: skip

__all__ = ["SCRATCH"]

_VALUES = np.array(quants.IQ4_NL.kvalues, np.float32)
# ggml compares the distances to both neighbours; that is exact, and the middle belongs to the upper one
_BOUNDS = (_VALUES[:-1] + _VALUES[1:]) / np.float32(2)
_STEPS = np.arange(-7, 8, dtype=np.float32) + _VALUES[0]  # what the largest element may stand for


@njit
def _nearest_value(v: Any) -> Any:
    """The nearest of the sixteen values; the last one for NaN, as in ggml."""
    q = splat_f(_VALUES[0])
    for k in range(15):
        q = select(v < splat_f(_BOUNDS[k]), q, splat_f(_VALUES[k + 1]))
    return q


@njit
def _nearest_index(v: Any) -> Any:
    """The place of `_nearest_value`."""
    index = splat_i(np.int32(0))
    for k in range(15):
        index = select(v < splat_f(_BOUNDS[k]), index, splat_i(np.int32(k + 1)))
    return index


@njit
def _sums(tile: int, weights: int, inverse: Any) -> Any:
    """Sums of w * q * x and w * q * q for the values that `inverse` gives."""
    sum_qx, sum_q2 = splat_f(np.float32(0)), splat_f(np.float32(0))
    for i in range(32):
        v = load_f(tile + 64 * i)
        q = _nearest_value(inverse * v)
        wq = load_f(weights + 64 * i) * q
        sum_qx = sum_qx + wq * v
        sum_q2 = sum_q2 + wq * q
    return sum_qx, sum_q2


@njit
def _fit(tile: int, weights: int) -> Any:
    """The scale of 32 elements with the least weighted error found; 0 where all are below 1e-15."""
    zero = splat_f(np.float32(0))
    amax, most = extreme(tile, 32)
    first = negative(most) / splat_f(_VALUES[0])
    sum_qx, sum_q2 = _sums(tile, weights, splat_f(np.float32(1)) / first)
    scale = select(sum_q2 > zero, sum_qx / sum_q2, zero)
    best = scale * sum_qx
    for s in range(_STEPS.size):
        sum_qx, sum_q2 = _sums(tile, weights, splat_f(_STEPS[s]) / most)
        better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    return select(flat(amax), zero, scale)


@njit
def _inverse(d: Any) -> Any:
    """1 / d, or 0 for 0."""
    zero = splat_f(np.float32(0))
    return select(d == zero, zero, splat_f(np.float32(1)) / d)


@njit
def _weigh(scratch: int, at: int, importance: int, sigma2: Any) -> None:
    """Weights of 32 elements: x^2, or with importances importance * sqrt(sigma2 + x^2)."""
    if importance:
        weigh(scratch, at, 32, sigma2)
        return
    for i in range(32):
        v = load_f(scratch + X + 64 * (at + i))
        store_f(scratch + WEIGHTS + 64 * i, v * v)


@njit
def _mean_square(scratch: int, size: int) -> Any:
    """Twice the mean square of each block, as IQ4 has it: the sum times 2 / size."""
    total = splat_f(np.float32(0))
    for i in range(size):
        v = load_f(scratch + X + 64 * i)
        total = total + v * v
    return total * splat_f(np.float32(2) / np.float32(size))


@njit
def _load(x: int, scratch: int, first: int, n: int, importance: int, period: int, size: int) -> None:
    load_blocks(x, scratch + X, first, n - 1, n, size)
    if importance:
        load_blocks(importance, scratch + IMPORTANCE, first, n - 1, period, size)


@njit
def _put_indices(scratch: int, at: int, inverse: Any) -> None:
    """The indices of 32 elements to LEVELS."""
    for i in range(at, at + 32):
        store_u8(scratch + LEVELS + N * i, _nearest_index(inverse * load_f(scratch + X + 64 * i)))


# --- IQ4_NL -----------------------------------------------------------------------------------------------------


@njit
def weighted_iq4_nl(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:  # noqa: ARG001
    """IQ4_NL with weights importance * sqrt(2 * mean x^2 + x^2), or x^2 where `importance` is 0."""
    for first in range(0, n, N):
        _load(x, scratch, first, n, importance, period, 32)
        _weigh(scratch, 0, importance, _mean_square(scratch, 32))
        d = _fit(scratch + X, scratch + WEIGHTS)
        store_f(scratch + BLOCK, d)
        put_header(scratch + BLOCK, out, first, n - 1, 18, 0)
        _put_indices(scratch, 0, _inverse(d))
        pack_nibbles(scratch, 16, out, first, n - 1, 18, 2, 16)


@njit
def encode_iq4_nl(x: int, out: int, n: int, scratch: int) -> None:
    """Blocks of 32 with a float16 scale."""
    weighted_iq4_nl(x, out, n, scratch, 0, 1, 0)


# --- IQ4_XS -----------------------------------------------------------------------------------------------------


@njit
def _search(scratch: int, importance: int) -> Any:
    """Scales of the eight sub-blocks; the first of them that has the largest magnitude."""
    sigma2 = _mean_square(scratch, 256)
    most, largest = splat_f(np.float32(0)), splat_f(np.float32(0))
    for j in range(8):
        _weigh(scratch, 32 * j, importance, sigma2)
        scale = _fit(scratch + X + 2048 * j, scratch + WEIGHTS)
        store_f(scratch + SCALES + 64 * j, scale)
        more = absolute(scale) > most
        most = select(more, absolute(scale), most)
        largest = select(more, scale, largest)
    return largest


@njit
def _put_levels(scratch: int, d: Any) -> None:
    """Levels -32 .. 31 of the scales, counted from 0, to SCALE_LEVELS, and the indices that go with them."""
    inverse = _inverse(d)
    lowest, highest, middle = splat_i(np.int32(-32)), splat_i(np.int32(31)), splat_i(np.int32(32))
    for j in range(8):
        level = clamp(nearest(inverse * load_f(scratch + SCALES + 64 * j)), lowest, highest)
        store_i(scratch + SCALE_LEVELS + 64 * j, level + middle)
        _put_indices(scratch, 32 * j, _inverse(d * to_f(level)))


@njit
def _pack_levels(scratch: int, out: int, first: int, last: int) -> None:
    """Two bytes of upper bits, then four of nibbles."""
    low, four = splat_i(np.int32(15)), splat_i(np.int32(4))
    high = splat_i(np.int32(0))
    for j in range(8):
        level = load_i(scratch + SCALE_LEVELS + 64 * j)
        high = high | ((level >> four) << splat_i(np.int32(2 * j)))
    store_u8(scratch + PACKED, high)
    store_u8(scratch + PACKED + N, high >> splat_i(np.int32(8)))
    for j in range(4):
        even, odd = load_i(scratch + SCALE_LEVELS + 128 * j), load_i(scratch + SCALE_LEVELS + 128 * j + 64)
        store_u8(scratch + PACKED + N * (2 + j), (even & low) | ((odd & low) << four))
    put_bytes(scratch + PACKED, 6, out, first, last, 136, 2)


@njit
def weighted_iq4_xs(x: int, out: int, n: int, scratch: int, importance: int, period: int, means: int) -> None:  # noqa: ARG001
    """IQ4_XS with weights importance * sqrt(2 * mean x^2 + x^2), or x^2 where `importance` is 0."""
    for first in range(0, n, N):
        _load(x, scratch, first, n, importance, period, 256)
        d = negative(_search(scratch, importance)) / splat_f(np.float32(32))
        store_f(scratch + BLOCK, d)
        put_header(scratch + BLOCK, out, first, n - 1, 136, 0)
        _put_levels(scratch, d)
        _pack_levels(scratch, out, first, n - 1)
        pack_nibbles(scratch, 16, out, first, n - 1, 136, 8)


@njit
def encode_iq4_xs(x: int, out: int, n: int, scratch: int) -> None:
    """Eight sub-blocks of 32 with 6-bit scales."""
    weighted_iq4_xs(x, out, n, scratch, 0, 1, 0)
