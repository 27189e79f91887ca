"""The largest of many float32, in one pass: what a sampler looks at first."""

from __future__ import annotations

import numpy as np

from localmoe.jit import njit
from localmoe.kernels.simd import (
    LANES,
    add,
    exp,
    fma,
    hmax,
    hsum,
    ld_f32,
    ld_i64,
    load_f32,
    maximum,
    splat_f32,
    st_f32,
    st_i64,
    sub,
    zero_f32,
)

MOST = 128  # insertion into a sorted list is quick for so many
_GROUP = 4 * LANES


@njit
def _insert(value: np.float32, at: int, k: int, ids: int, kept: int) -> None:
    """Put a value into the sorted list of k in place of the last, behind those that are not smaller."""
    i = k - 1
    while i > 0 and ld_f32(kept + 4 * (i - 1)) < value:
        st_f32(kept + 4 * i, ld_f32(kept + 4 * (i - 1)))
        st_i64(ids + 8 * i, ld_i64(ids + 8 * (i - 1)))
        i -= 1
    st_f32(kept + 4 * i, value)
    st_i64(ids + 8 * i, at)


@njit
def top_k(values: int, n: int, k: int, ids: int, kept: int) -> bool:
    """The k largest of n float32, largest first and equal ones by position: int64 `ids` and float32 `kept`, (k,) each.

    k < n, at most MOST. False where a value is infinite or NaN; what is written then means nothing.
    """
    for i in range(k):
        st_f32(kept + 4 * i, np.float32(-np.inf))
        st_i64(ids + 8 * i, 0)
    least = kept + 4 * (k - 1)
    zero, zeros = zero_f32(), zero_f32()
    whole = n - n % _GROUP
    for first in range(0, whole, _GROUP):
        at = values + 4 * first
        a, b = load_f32(at), load_f32(at + 4 * LANES)
        c, d = load_f32(at + 8 * LANES), load_f32(at + 12 * LANES)
        zeros = fma(a, zero, fma(b, zero, fma(c, zero, fma(d, zero, zeros))))  # 0, or NaN of what is not finite
        if hmax(maximum(maximum(a, b), maximum(c, d))) > ld_f32(least):
            for i in range(first, first + _GROUP):
                if ld_f32(values + 4 * i) > ld_f32(least):
                    _insert(ld_f32(values + 4 * i), i, k, ids, kept)
    total = hsum(zeros)
    for i in range(whole, n):
        total += ld_f32(values + 4 * i) * np.float32(0.0)
        if ld_f32(values + 4 * i) > ld_f32(least):
            _insert(ld_f32(values + 4 * i), i, k, ids, kept)
    return total == np.float32(0.0)


@njit(fast=True)
def sum_exp(values: int, n: int, greatest: float) -> float:
    """The sum of exp(x - greatest) over n finite float32, of which `greatest` is the largest."""
    shift = splat_f32(np.float32(greatest))
    a, b, c, d = zero_f32(), zero_f32(), zero_f32(), zero_f32()
    whole = n - n % _GROUP
    for first in range(0, whole, _GROUP):
        at = values + 4 * first
        a = add(a, exp(sub(load_f32(at), shift)))
        b = add(b, exp(sub(load_f32(at + 4 * LANES), shift)))
        c = add(c, exp(sub(load_f32(at + 8 * LANES), shift)))
        d = add(d, exp(sub(load_f32(at + 12 * LANES), shift)))
    total = float(hsum(a)) + float(hsum(b)) + float(hsum(c)) + float(hsum(d))
    for i in range(whole, n):
        total += np.exp(ld_f32(values + 4 * i) - np.float32(greatest))
    return total
