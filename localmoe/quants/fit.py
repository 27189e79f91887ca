"""ggml's searches for scales and levels, a search a lane: sixteen of them side by side, each in ggml's own order.

Source: ggml-quants.c, `make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`, `make_q3_quants`, `make_qp_quants`. A
tile holds element i of sixteen searches at `tile + 64 * i`, float32; weights lie likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localmoe.jit import njit

from .lanes import (
    absolute,
    any_lane,
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
    to_f,
)  # fmt: skip

_FLAT = np.float32(1e-15)  # GROUP_MAX_EPS


def affine_steps(first: float, step: float, count: int, top: int) -> np.ndarray:
    """The numbers of levels that a search for scale and minimum tries: first + step * i + top, in float32."""
    steps = np.float32(first) + np.float32(step) * np.arange(count + 1, dtype=np.float32)
    return np.asarray(steps + np.float32(top), np.float32)


def signed_steps(levels: int) -> np.ndarray:
    """The scales, times the largest element, that a search over -levels .. levels - 1 tries after -levels."""
    return -(np.float32(levels) + np.float32(0.1) * np.array([s for s in range(-9, 10) if s], dtype=np.float32))


def positive_steps(top: int) -> np.ndarray:
    """The numbers of levels that a search over 0 .. top tries after `top`."""
    return np.float32(0.1) * np.array([s for s in range(-4, 5) if s], dtype=np.float32) + np.float32(top)


# --- scale and minimum --------------------------------------------------------------------------------------


@njit
def _sums(tile: int, weights: int, n: int) -> Any:
    """Smallest and largest x, sum of w, sum of w * x."""
    low = load_f(tile)
    high = low
    sum_w = load_f(weights)
    sum_x = sum_w * low
    for i in range(1, n):
        v, w = load_f(tile + 64 * i), load_f(weights + 64 * i)
        low = select(v < low, v, low)
        high = select(v > high, v, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    return low, high, sum_w, sum_x


@njit
def _error(tile: int, weights: int, levels: int, n: int, scale: Any, low: Any, squared: bool) -> Any:
    """Weighted error of scale * level + low: of its square, or its magnitude."""
    error = splat_f(np.float32(0))
    if squared:
        for i in range(n):
            difference = scale * load_f(levels + 64 * i) + low - load_f(tile + 64 * i)
            error = error + load_f(weights + 64 * i) * (difference * difference)
    else:
        for i in range(n):
            difference = scale * load_f(levels + 64 * i) + low - load_f(tile + 64 * i)
            error = error + load_f(weights + 64 * i) * absolute(difference)
    return error


@njit
def fit_affine(tile: int, weights: int, levels: int, n: int, top: int, steps: np.ndarray, squared: bool) -> Any:
    """make_qkx2_quants and make_qkx3_quants: scale, minus the minimum, and (inverse, base) that give the levels chosen.

    Levels are clamp(nearest(inverse * (x - base)), 0, top). `levels` is scratch for n vectors.
    """
    zero, one = splat_f(np.float32(0)), splat_f(np.float32(1))
    lowest, highest = splat_i(np.int32(0)), splat_i(np.int32(top))
    low, high, sum_w, sum_x = _sums(tile, weights, n)
    low = select(low > zero, zero, low)
    flat = high == low
    start = low
    inverse = splat_f(np.float32(top)) / (high - low)
    scale = one / inverse
    for i in range(n):
        q = clamp(nearest(inverse * (load_f(tile + 64 * i) - low)), lowest, highest)
        store_f(levels + 64 * i, to_f(q))
    best = _error(tile, weights, levels, n, scale, low, squared)
    best_inverse, best_base = inverse, low
    for s in range(steps.size):
        inverse = splat_f(steps[s]) / (high - low)
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(n):
            v = load_f(tile + 64 * i)
            q = to_f(clamp(nearest(inverse * (v - low)), lowest, highest))
            store_f(levels + 64 * i, q)
            wq = load_f(weights + 64 * i) * q
            sum_l = sum_l + wq
            sum_l2 = sum_l2 + wq * q
            sum_xl = sum_xl + wq * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        try_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        try_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = try_low > zero
        try_scale = select(positive, sum_xl / sum_l2, try_scale)
        try_low = select(positive, zero, try_low)
        error = _error(tile, weights, levels, n, try_scale, try_low, squared)
        better = (determinant > zero) & (error < best)
        best = select(better, error, best)
        best_inverse = select(better, inverse, best_inverse)
        best_base = select(better, low, best_base)
        scale = select(better, try_scale, scale)
        low = select(better, try_low, low)  # later steps measure from here
    minimum = negative(select(flat, start, low))
    return select(flat, zero, scale), minimum, select(flat, zero, best_inverse), best_base


# --- a signed scale -----------------------------------------------------------------------------------------


@njit
def extreme(tile: int, n: int) -> Any:
    """The largest magnitude and the (first) element that has it."""
    amax, most = splat_f(np.float32(0)), splat_f(np.float32(0))
    for i in range(n):
        v = load_f(tile + 64 * i)
        size = absolute(v)
        more = size > amax
        amax = select(more, size, amax)
        most = select(more, v, most)
    return amax, most


@njit
def flat(amax: Any) -> Any:
    """Lanes whose largest magnitude ggml takes for zero."""
    return amax < splat_f(_FLAT)


@njit
def _signed_sums(tile: int, weights: int, n: int, levels: int, inverse: Any) -> Any:
    """Sums of w * x * l and w * l * l for the levels -levels .. levels - 1 that `inverse` gives."""
    lowest, highest = splat_i(np.int32(-levels)), splat_i(np.int32(levels - 1))
    sum_lx, sum_l2 = splat_f(np.float32(0)), splat_f(np.float32(0))
    for i in range(n):
        v, w = load_f(tile + 64 * i), load_f(weights + 64 * i)
        q = to_f(clamp(nearest(inverse * v), lowest, highest))
        sum_lx = sum_lx + w * v * q
        sum_l2 = sum_l2 + w * q * q
    return sum_lx, sum_l2


@njit
def fit_signed(tile: int, weights: int, n: int, levels: int, steps: np.ndarray) -> Any:
    """make_qx_quants: scale, the inverse scale that gives the levels chosen, and the lanes that are empty (all 0)."""
    zero = splat_f(np.float32(0))
    amax, most = extreme(tile, n)
    empty = flat(amax)
    inverse = splat_f(np.float32(-levels)) / most
    sum_lx, sum_l2 = _signed_sums(tile, weights, n, levels, inverse)
    scale = select(sum_l2 == zero, zero, sum_lx / sum_l2)
    best = scale * sum_lx
    best_inverse = inverse
    for s in range(steps.size):
        inverse = splat_f(steps[s]) / most
        sum_lx, sum_l2 = _signed_sums(tile, weights, n, levels, inverse)
        better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
        best_inverse = select(better, inverse, best_inverse)
    return select(empty, zero, scale), best_inverse, empty


@njit
def signed_level(v: Any, inverse: Any, empty: Any, levels: int) -> Any:
    """The level of v counted from 0, as make_qx_quants leaves it: 0 in an empty lane."""
    q = clamp(nearest(inverse * v), splat_i(np.int32(-levels)), splat_i(np.int32(levels - 1)))
    return select(empty, splat_i(np.int32(0)), q + splat_i(np.int32(levels)))


@njit
def fit_by_descent(tile: int, levels: int, n: int, half: int) -> Any:
    """make_q3_quants: the scale; levels counted from 0 to int32 vectors at `levels`. Weights are x^2."""
    zero, none = splat_f(np.float32(0)), splat_i(np.int32(0))
    lowest, highest, middle = splat_i(np.int32(-half)), splat_i(np.int32(half - 1)), splat_i(np.int32(half))
    amax, most = extreme(tile, n)
    empty = flat(amax)
    inverse = splat_f(np.float32(-half)) / most
    sum_lx, sum_l2 = zero, zero
    for i in range(n):
        v = load_f(tile + 64 * i)
        level = clamp(nearest(inverse * v), lowest, highest)
        store_i(levels + 64 * i, level)
        q, w = to_f(level), v * v
        sum_lx = sum_lx + w * v * q
        sum_l2 = sum_l2 + w * q * q
    for _ in range(5):
        changed = empty & (zero > zero)
        for i in range(n):
            v, old = load_f(tile + 64 * i), load_i(levels + 64 * i)
            q, w = to_f(old), v * v
            without_lx = sum_lx - w * v * q
            without_l2 = sum_l2 - w * q * q
            new = clamp(nearest(v * without_l2 / without_lx), lowest, highest)
            q = to_f(new)
            with_lx = without_lx + w * v * q
            with_l2 = without_l2 + w * q * q
            gains = with_lx * with_lx * sum_l2 > sum_lx * sum_lx * with_l2
            better = (without_lx > zero) & (new != old) & (with_l2 > zero) & gains
            store_i(levels + 64 * i, select(better, new, old))
            sum_lx = select(better, with_lx, sum_lx)
            sum_l2 = select(better, with_l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break
    for i in range(n):
        store_i(levels + 64 * i, select(empty, none, load_i(levels + 64 * i) + middle))
    scale = select(sum_l2 > zero, sum_lx / sum_l2, zero)
    return select(empty, zero, scale)


# --- scales of scales ---------------------------------------------------------------------------------------


@njit
def _positive_start(tile: int, weights: int, n: int, top: int, steps: np.ndarray, high: Any) -> Any:
    """The inverse scale with the least squared error, of those that `top` and `steps` give."""
    one, highest, byte = splat_f(np.float32(1)), splat_i(np.int32(top)), splat_i(np.int32(255))
    least = splat_i(np.int32(-(2**31)))
    best_inverse = splat_f(np.float32(top)) / high
    scale = one / best_inverse
    best = splat_f(np.float32(0))
    for i in range(n):
        v = load_f(tile + 64 * i)
        difference = v - scale * to_f(nearest(best_inverse * v) & byte)
        best = best + load_f(weights + 64 * i) * difference * difference
    for s in range(steps.size):
        inverse = splat_f(steps[s]) / high
        scale = one / inverse
        error = splat_f(np.float32(0))
        for i in range(n):
            v = load_f(tile + 64 * i)
            difference = v - scale * to_f(clamp(nearest(inverse * v), least, highest))
            error = error + load_f(weights + 64 * i) * difference * difference
        better = error < best
        best = select(better, error, best)
        best_inverse = select(better, inverse, best_inverse)
    return best_inverse


@njit
def fit_positive(tile: int, weights: int, levels: int, n: int, top: int, steps: np.ndarray) -> Any:
    """make_qp_quants: the scale; levels 0 .. top, as bytes, to int32 vectors at `levels`.

    There is no lower bound: a negative element's level wraps around in its byte, as it does in ggml.
    """
    zero, none = splat_f(np.float32(0)), splat_i(np.int32(0))
    least, highest, byte = splat_i(np.int32(-(2**31))), splat_i(np.int32(top)), splat_i(np.int32(255))
    high = zero
    for i in range(n):
        v = load_f(tile + 64 * i)
        high = select(high > v, high, v)
    empty = flat(high)
    inverse = _positive_start(tile, weights, n, top, steps, high)
    sum_lx, sum_l2 = zero, zero
    for i in range(n):
        v, w = load_f(tile + 64 * i), load_f(weights + 64 * i)
        level = clamp(nearest(inverse * v), least, highest)
        store_i(levels + 64 * i, level & byte)
        q = to_f(level)
        sum_lx = sum_lx + w * v * q
        sum_l2 = sum_l2 + w * q * q
    for _ in range(5):
        changed = empty & (zero > zero)
        for i in range(n):
            v, w, old = load_f(tile + 64 * i), load_f(weights + 64 * i), load_i(levels + 64 * i)
            q = to_f(old)
            without_lx = sum_lx - w * v * q
            without_l2 = sum_l2 - w * q * q
            new = clamp(nearest(v * without_l2 / without_lx), least, highest)
            q = to_f(new)
            with_lx = without_lx + w * v * q
            with_l2 = without_l2 + w * q * q
            gains = with_lx * with_lx * sum_l2 > sum_lx * sum_lx * with_l2
            better = (without_lx > zero) & (without_l2 > zero) & (new != old) & gains
            store_i(levels + 64 * i, select(better, new & byte, old))
            sum_lx = select(better, with_lx, sum_lx)
            sum_l2 = select(better, with_l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break
    for i in range(n):
        store_i(levels + 64 * i, select(empty, none, load_i(levels + 64 * i)))
    scale = select(sum_l2 > zero, sum_lx / sum_l2, zero)
    return select(empty, zero, scale)
