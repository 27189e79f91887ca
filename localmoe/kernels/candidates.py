"""The largest of many float32, in one pass, and a draw from them: what a sampler does by default."""

from __future__ import annotations

import math
from typing import Any

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
ROUNDING = 1e-7
"""Logits come as float32: sums of probabilities are only known to about this."""


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


@njit
def _top_p(kept: Any, p: float) -> int:
    """How many of the logits, largest first, it takes until their probabilities add up to p."""
    total = 0.0
    for i in range(kept.size):
        total += math.exp(np.float64(kept[i]) - np.float64(kept[0]))
    enough, running = (p - ROUNDING) * total, 0.0
    for i in range(kept.size):
        running += math.exp(np.float64(kept[i]) - np.float64(kept[0]))
        if running >= enough:
            return i + 1
    return int(kept.size)


@njit
def _min_p(kept: Any, n: int, p: float) -> int:
    """How many of the first n logits, largest first, are at least p times as likely as the first."""
    least = np.float64(kept[0]) + math.log(p)
    while np.float64(kept[n - 1]) < least:
        n -= 1
    return n


@njit
def draw_from_top(
    values: int, n: int, ids: Any, kept: Any, probs: Any, top_p: float, min_p: float, min_keep: int,
    temperature: float, uniform: float,
) -> tuple[int, int]:  # fmt: skip
    """Draw from n float32 by top-k, top-p, min-p and a temperature above 0: the place in `ids`, and how many were left.

    ids int64, kept float32, probs float64, all (k,) with k < n and k <= MOST: tokens, logits and, of those that were
    left, probabilities, largest first. `uniform` in [0, 1) draws. (-1, 0) where a value is infinite or NaN.
    """
    k = ids.size
    if not top_k(values, n, k, ids.ctypes.data, kept.ctypes.data):
        return -1, 0
    left = max(_top_p(kept, top_p), min(min_keep, k)) if top_p < 1.0 else k
    if min_p > 0.0:
        left = max(_min_p(kept, left, min_p), min(min_keep, left))
    total = 0.0
    for i in range(left):
        probs[i] = math.exp((np.float64(kept[i]) - np.float64(kept[0])) / temperature)
        total += probs[i]
    for i in range(left):
        probs[i] /= total
    place, running = left - 1, 0.0
    for i in range(left):
        running += probs[i]
        if running > uniform:
            place = i
            break
    while probs[place] == 0.0:
        place -= 1
    return place, left
