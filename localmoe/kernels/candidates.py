"""The largest of many float32, in one pass, and a draw from them: what a sampler does by default."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from localmoe.jit import njit
from localmoe.kernels.shapes import ROUNDING
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
from localmoe.kernels.team import as_pointer

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
def draw_from_top(values: int, n: int, k: int, ids: int, kept: int, probs: int, numbers: int, out: int) -> None:
    """Draw from n float32 by top-k, top-p, min-p and a temperature above 0.

    ids int64, kept float32, probs float64, (k,) each with k < n and k <= MOST: tokens, logits and, of those that were
    left, probabilities, largest first. numbers, float64: top_p, min_p, the least number to leave, temperature, and one
    in [0, 1) that draws. out, int64: the place in `ids` and how many were left; (-1, 0) where a value is infinite or
    NaN.
    """
    st_i64(out, -1)
    st_i64(out + 8, 0)
    if not top_k(values, n, k, ids, kept):
        return
    logits, weights = carray(as_pointer(kept), k, np.float32), carray(as_pointer(probs), k, np.float64)
    given = carray(as_pointer(numbers), 5, np.float64)
    top_p, min_p, least, temperature, uniform = given[0], given[1], int(given[2]), given[3], given[4]
    left = max(_top_p(logits, top_p), min(least, k)) if top_p < 1.0 else k
    if min_p > 0.0:
        left = max(_min_p(logits, left, min_p), min(least, left))
    total = 0.0
    for i in range(left):
        weights[i] = math.exp((np.float64(logits[i]) - np.float64(logits[0])) / temperature)
        total += weights[i]
    for i in range(left):
        weights[i] /= total
    place, running = left - 1, 0.0
    for i in range(left):
        running += weights[i]
        if running > uniform:
            place = i
            break
    while weights[place] == 0.0:
        place -= 1
    st_i64(out, place)
    st_i64(out + 8, left)


@njit
def top_k_call(values: int, n: int, k: int, ids: int, kept: int, out: int) -> None:
    """`top_k`, whose answer becomes the int64 at `out`."""
    st_i64(out, top_k(values, n, k, ids, kept))


@njit
def sum_exp_call(values: int, n: int, number: int) -> None:
    """`sum_exp` with the float64 at `number` as `greatest`; the sum takes its place."""
    place = carray(as_pointer(number), 1, np.float64)
    place[0] = sum_exp(values, n, place[0])
