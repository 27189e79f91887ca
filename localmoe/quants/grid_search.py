"""The searches of IQ2 and IQ3: signs apart, magnitudes by groups of 8 or 4 from a grid, a scale a sub-block.

Source: ggml-quants.c, `quantize_row_iq2_xxs_impl` and its like, in their order of operations. Blocks have 256 elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from localmoe.jit import njit

from .fit import fit_positive, positive_steps
from .lanes import divide_1, get_f, nearest_1, put_f, put_f16, store_f
from .neighbours import Book

_F = np.float32
_MOST = _F(np.finfo(np.float32).max)
_STEPS = positive_steps(4)
SKIPPED = -1
OFF_GRID, ALL_IF_ANY, ALWAYS = range(3)  # which groups the last pass fits anew


class Search(NamedTuple):
    """How a type is searched.

    `size` and `group`: elements of a sub-block, and of a point. `tries` scales on either side of the first, `step`
    apart. `refine`: see above. `parity`: the number of minus signs of eight is even. In the weights, `factor` is that
    of the mean square, and `floor` that of it without importances. Below `zero` a sub-block is. `fudge` is d's factor.
    """

    size: int
    group: int
    n_levels: int
    tries: int
    refine: int
    parity: bool
    factor: np.float32
    floor: np.float32
    step: np.float32
    zero: np.float32
    fudge: np.float32


class Parts(NamedTuple):
    """What becomes of n blocks: points int32 (n, 256 / group), signs uint8 (n, 32), levels of scales, float16 bits.

    Points of a sub-block of zeros are SKIPPED.
    """

    points: np.ndarray
    signs: np.ndarray
    levels: np.ndarray
    halves: np.ndarray


class _Block(NamedTuple):
    """One block's work: magnitudes, weights, their roots, and scales; three tiles for a search by lanes."""

    values: np.ndarray
    weights: np.ndarray
    roots: np.ndarray
    scales: np.ndarray
    tiles: np.ndarray


@njit
def weigh_block(x: np.ndarray, importance: np.ndarray, factor: Any, floor: Any, weights: np.ndarray) -> None:
    """importance * sqrt(sigma2 + x^2), or without importances (of size 0) floor * sigma2 + x^2."""
    sigma2 = _F(0)
    for v in x:
        sigma2 += v * v
    sigma2 = factor * sigma2 / _F(256)
    for i in range(x.size):
        v = x[i]
        if importance.size:
            weights[i] = importance[i] * np.sqrt(sigma2 + v * v)
        elif floor > 0:
            weights[i] = floor * sigma2 + v * v
        else:
            weights[i] = v * v


@njit
def _split_signs(x: np.ndarray, parity: bool, block: _Block, signs: np.ndarray) -> None:
    """Magnitudes and sign bits; with `parity` the cheapest sign of eight flips where their number is odd."""
    values, weights = block.values, block.weights
    for k in range(32):
        bits, flips = 0, 0
        for i in range(8 * k, 8 * k + 8):
            if x[i] >= 0:
                values[i] = x[i]
            else:
                values[i] = -x[i]
                flips += 1
                bits |= 1 << (i - 8 * k)
        if parity and flips % 2:
            at, least = 8 * k, weights[8 * k] * x[8 * k] * x[8 * k]
            for i in range(8 * k + 1, 8 * k + 8):
                cost = weights[i] * x[i] * x[i]
                if cost < least:
                    at, least = i, cost
            values[at] = -values[at]
            bits ^= 1 << (at - 8 * k)
        signs[k] = bits & 127 if parity else bits


@njit
def _nearest_point(start: int, book: Book, values: np.ndarray, roots: np.ndarray, at: int, scale: Any) -> Any:
    """The first neighbour at the least weighted distance from a group, a point's numbers being 2 * level + 1."""
    best, found = _MOST, book.neighbours[start + 1]
    for j in range(start + 1, start + 1 + book.neighbours[start]):
        point = book.neighbours[j]
        distance = _F(0)
        for i in range(book.levels.shape[1]):
            difference = scale * _F(2 * np.int32(book.levels[point, i]) + 1) - values[at + i]
            distance += roots[at + i] * difference * difference
        if distance < best:
            best, found = distance, point
    return found


@njit
def _fit_groups(
    search: Search, book: Book, block: _Block, at: int, inverse: Any, scale: Any, keep: np.ndarray, points: np.ndarray,
    on_grid: np.ndarray,
) -> None:  # fmt: skip
    """A point for every group of the sub-block at `at` that is not kept, and whether its levels are on the grid."""
    group, top = search.group, search.n_levels - 1
    bits = 2 if group == 8 else 3
    for k in range(points.size):
        if keep[k]:
            continue
        first, code = at + group * k, 0
        for i in range(group):
            level = nearest_1(_F(0.5) * (inverse * block.values[first + i] - _F(1)))
            code |= max(0, min(top, level)) << (bits * i)
        point = book.by_code[code]
        on_grid[k] = point >= 0
        if point < 0:
            point = _nearest_point(-1 - point, book, block.values, block.roots, first, scale)
        points[k] = point


@njit
def _sums(book: Book, block: _Block, at: int, points: np.ndarray) -> Any:
    """Sums of w * x * q and w * q * q for the points chosen."""
    sum_qx, sum_q2 = _F(0), _F(0)
    group = book.levels.shape[1]
    for k in range(points.size):
        for i in range(group):
            q = _F(2 * np.int32(book.levels[points[k], i]) + 1)
            w = block.weights[at + group * k + i]
            sum_qx += w * block.values[at + group * k + i] * q
            sum_q2 += w * q * q
    return sum_qx, sum_q2


@njit
def _search(search: Search, book: Book, block: _Block, at: int, high: Any, scale: Any, points: np.ndarray) -> Any:
    """The scale with the least weighted error among those tried around high / (2 * levels - 1), refined."""
    none = np.zeros(points.size, np.bool_)
    tried, tried_on, on_grid = np.zeros(points.size, np.int32), none.copy(), none.copy()
    on_grid[:] = search.refine == OFF_GRID
    points[:] = book.by_code[0]
    best = _F(0)
    for t in range(-search.tries, search.tries + 1):
        inverse = divide_1(_F(2 * search.n_levels - 1) + _F(t) * search.step, high)
        _fit_groups(search, book, block, at, inverse, divide_1(_F(1), inverse), none, tried, tried_on)
        sum_qx, sum_q2 = _sums(book, block, at, tried)
        if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
            scale = sum_qx / sum_q2
            best = scale * sum_qx
            points[:] = tried
            on_grid[:] = tried_on
    if scale > 0 and (search.refine == ALWAYS or not on_grid.all()):
        keep = on_grid if search.refine == OFF_GRID else none
        _fit_groups(search, book, block, at, divide_1(_F(1), scale), scale, keep, points, tried_on)
        sum_qx, sum_q2 = _sums(book, block, at, points)
        if sum_q2 > 0:
            scale = sum_qx / sum_q2
    return scale


@njit
def _positive_scales(block: _Block) -> None:
    """The scales of eight sub-blocks of 32 with levels 0 .. 4, a sub-block a lane."""
    tile = block.tiles.ctypes.data
    for i in range(32):
        for lane in range(16):
            at = 32 * (lane % 8) + i
            put_f(tile + 64 * i + 4 * lane, block.values[at])
            put_f(tile + 2048 + 64 * i + 4 * lane, block.weights[at])
    store_f(tile + 6144, fit_positive(tile, tile + 2048, tile + 4096, 32, 4, _STEPS))
    for j in range(8):
        block.scales[j] = get_f(tile + 6144 + 4 * j)


@njit
def _fit_block(search: Search, book: Book, block: _Block, points: np.ndarray, signs: np.ndarray) -> Any:
    """Scales, points and signs of a block's sub-blocks; the largest scale, or NaN where ggml would give up."""
    size, scales, most, lost = search.size, block.scales, _F(0), False
    if search.refine == ALWAYS:
        _positive_scales(block)
    for j in range(256 // size):
        mine = signs[size // 8 * j : size // 8 * (j + 1)]
        high = block.values[size * j]
        for v in block.values[size * j : size * (j + 1)]:
            high = high if high > v else v
        scale = high / _F(2 * search.n_levels - 1)
        empty = high < search.zero or high == 0
        if search.refine == ALWAYS:
            scale = scales[j]
            high = scale * _F(search.n_levels)
            empty = empty or high <= 0
        if empty:
            mine[:], scales[j] = 0, _F(0)
            continue
        n = size // search.group
        scale = _search(search, book, block, size * j, high, scale, points[n * j : n * (j + 1)])
        if scale < 0:
            scale = -scale
            for k in range(mine.size):
                mine[k] = ~mine[k] & (127 if search.parity else 255)
        scales[j] = scale
        lost = lost or not scale >= 0
        most = most if most > scale else scale
    return _F(np.nan) if lost else most


@njit
def search_blocks(x: np.ndarray, importance: np.ndarray, search: Search, book: Book, parts: Parts) -> None:
    """Search blocks (n, 256) of float32; block i is weighed by importance[i % period], (period, 256) or (0, 256)."""
    block = _Block(
        np.empty(256, _F), np.empty(256, _F), np.empty(256, _F), np.empty(256 // search.size, _F), np.empty(1552, _F)
    )
    empty = np.empty(0, _F)
    for b in range(len(x)):
        mine = importance[b % len(importance)] if len(importance) else empty
        weigh_block(x[b], mine, search.factor, search.floor, block.weights)
        block.roots[:] = np.sqrt(block.weights)
        _split_signs(x[b], search.parity, block, parts.signs[b])
        parts.points[b], parts.levels[b] = SKIPPED, 0
        most = _fit_block(search, book, block, parts.points[b], parts.signs[b])
        d = most / _F(31)
        put_f16(parts.halves[b:].ctypes.data, d * search.fudge)
        if most == 0 and search.parity:
            parts.points[b], parts.signs[b] = 0, 0
        if most != 0:
            inverse = divide_1(_F(1), d)
            for j in range(block.scales.size):
                level = nearest_1(_F(0.5) * (inverse * block.scales[j] - _F(1)))
                parts.levels[b, j] = max(0, min(15, level))
