"""The searches of IQ2 and IQ3: signs apart, magnitudes by groups of 8 or 4 from a grid, a scale a sub-block.

Source: ggml-quants.c, `quantize_row_iq2_xxs_impl` and its like, in their order of operations. Blocks have 256 elements.
The scales that are tried for a sub-block lie side by side in lanes, and so do a list's points (`nearest_neighbour`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from localmoe.jit import njit

from .fit import fit_positive, positive_steps
from .lanes import (
    N,
    clamp,
    divide_1,
    get_f,
    get_i,
    load_f,
    load_i,
    nearest,
    nearest_1,
    put_f,
    put_f16,
    put_u32,
    splat_f,
    splat_i,
    store_f,
    store_i,
    to_f,
)  # fmt: skip
from .neighbours import Book, nearest_neighbour

_F = np.float32
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
    """One block's work: magnitudes, weights, their roots, and scales; three tiles for a search by lanes.

    `tries`, a sub-block's: points int32 (32, 8) by try and group, and whether they are what the levels ask for.
    """

    values: np.ndarray
    weights: np.ndarray
    roots: np.ndarray
    scales: np.ndarray
    tiles: np.ndarray
    tries: np.ndarray
    on_grid: np.ndarray


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


# Offsets into tiles, in bytes: numbers of sixteen tries, then sixteen levels' codes, or points' levels, of each group
_INVERSES, _SCALES, _QX, _Q2, _CODES = 0, 128, 256, 384, 512
_WORDS = _CODES + 8 * 64


@njit
def _codes(search: Search, block: _Block, at: int, first: int) -> None:
    """The levels of the sub-block at `at` by the inverse scales of tries first .. first + 15, as a grid's codes."""
    half, one, none = splat_f(_F(0.5)), splat_f(_F(1)), splat_i(np.int32(0))
    tiles, values, top = block.tiles.ctypes.data, block.values.ctypes.data + 4 * at, np.int32(search.n_levels - 1)
    inverse, width = load_f(tiles + _INVERSES + 4 * first), 2 if search.group == 8 else 3
    for k in range(search.size // search.group):
        code = none
        for i in range(search.group):
            level = nearest(half * (inverse * splat_f(get_f(values + 4 * (k * search.group + i))) - one))
            code = code | (clamp(level, none, splat_i(top)) << splat_i(np.int32(width * i)))
        store_i(tiles + _CODES + 64 * k, code)


@njit
def _points(search: Search, book: Book, block: _Block, at: int, first: int, n: int) -> None:
    """A point for every group and each of n tries from `first` on; its levels to the tiles."""
    tiles = block.tiles.ctypes.data
    for k in range(search.size // search.group):
        values = block.values.ctypes.data + 4 * (at + search.group * k)
        roots = block.roots.ctypes.data + 4 * (at + search.group * k)
        for t in range(n):
            point = book.by_code[get_i(tiles + _CODES + 64 * k + 4 * t)]
            block.on_grid[first + t, k] = point >= 0
            if point < 0:
                scale = get_f(tiles + _SCALES + 4 * (first + t))
                point = nearest_neighbour(book, -1 - point, values, roots, scale, _F(2), _F(1))
            block.tries[first + t, k] = point
            put_words(book, point, tiles + _WORDS + 128 * k + 4 * t)


@njit
def put_words(book: Book, point: int, at: int) -> None:
    """The levels of a point to two words, 64 bytes apart."""
    put_u32(at, book.words[0, point])
    put_u32(at + 64, book.words[1, point])


@njit
def _sums(search: Search, block: _Block, at: int, first: int) -> None:
    """Sums of w * x * q and w * q * q for the points that tries first .. first + 15 chose."""
    tiles, values, weights = block.tiles.ctypes.data, block.values, block.weights
    sum_qx, sum_q2, one, byte = splat_f(_F(0)), splat_f(_F(0)), splat_f(_F(1)), splat_i(np.int32(255))
    for k in range(search.size // search.group):
        for i in range(search.group):
            word = load_i(tiles + _WORDS + 128 * k + 64 * (i // 4)) >> splat_i(np.int32(8 * (i % 4)))
            level = to_f(word & byte)
            q = level + level + one
            x, w = values[at + search.group * k + i], weights[at + search.group * k + i]
            sum_qx = sum_qx + splat_f(w * x) * q
            sum_q2 = sum_q2 + splat_f(w) * q * q
    store_f(tiles + _QX + 4 * first, sum_qx)
    store_f(tiles + _Q2 + 4 * first, sum_q2)


@njit
def _try(search: Search, book: Book, block: _Block, at: int, n: int) -> None:
    """Points and sums for n tries, whose inverse scales and scales are in the tiles."""
    for first in range(0, n, N):
        _codes(search, block, at, first)
        _points(search, book, block, at, first, min(N, n - first))
        _sums(search, block, at, first)


@njit
def _search(search: Search, book: Book, block: _Block, at: int, high: Any, scale: Any, points: np.ndarray) -> Any:
    """The scale with the least weighted error among those tried around high / (2 * levels - 1), refined."""
    tiles, n = block.tiles.ctypes.data, 2 * search.tries + 1
    for t in range(n):
        inverse = divide_1(_F(2 * search.n_levels - 1) + _F(t - search.tries) * search.step, high)
        put_f(tiles + _INVERSES + 4 * t, inverse)
        put_f(tiles + _SCALES + 4 * t, divide_1(_F(1), inverse))
    _try(search, book, block, at, n)
    best, found = _F(0), -1
    for t in range(n):
        sum_qx, sum_q2 = get_f(tiles + _QX + 4 * t), get_f(tiles + _Q2 + 4 * t)
        if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
            scale = sum_qx / sum_q2
            best, found = scale * sum_qx, t
    all_on_grid = search.refine == OFF_GRID
    points[:] = book.by_code[0]
    if found >= 0:
        points[:] = block.tries[found, : points.size]
        all_on_grid = bool(block.on_grid[found, : points.size].all())
    if scale > 0 and (search.refine == ALWAYS or not all_on_grid):
        scale = _refine(search, book, block, at, found, scale, points)
    return scale


@njit
def _refine(search: Search, book: Book, block: _Block, at: int, found: int, scale: Any, points: np.ndarray) -> Any:
    """Points by the scale that try `found` led to (of groups off the grid alone, or of all), and the scale by them."""
    tiles = block.tiles.ctypes.data
    keep = block.on_grid[max(found, 0), : points.size].copy()
    put_f(tiles + _INVERSES, divide_1(_F(1), scale))
    put_f(tiles + _SCALES, scale)
    _codes(search, block, at, 0)
    _points(search, book, block, at, 0, 1)
    for k in range(points.size):
        if search.refine != OFF_GRID or not keep[k]:
            points[k] = block.tries[0, k]
        put_words(book, points[k], tiles + _WORDS + 128 * k)
    _sums(search, block, at, 0)
    sum_qx, sum_q2 = get_f(tiles + _QX), get_f(tiles + _Q2)
    return sum_qx / sum_q2 if sum_q2 > 0 else scale


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
        np.empty(256, _F), np.empty(256, _F), np.empty(256, _F), np.empty(256 // search.size, _F), np.zeros(1552, _F),
        np.empty((2 * N, 8), np.int32), np.empty((2 * N, 8), np.bool_),
    )  # fmt: skip
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
